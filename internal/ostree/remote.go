package ostree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Remote is how a repo's configuration says that commits from a remote are verified.
type Remote struct {
	Name    string
	Options map[string]string // those about signatures of commits (ostree.repo-config(5)); values as they are in the file
	Keyring []byte            // the remote's own GPG keys, nil if it has no file of them
}

// RemoteOf returns the remote that a revision such as "remote:ref^" names, "" if it names none.
func RemoteOf(rev string) string {
	remote, _, _ := parseRefspec(strings.TrimRight(rev, "^"))
	return remote
}

// Remote reads how commits from a remote are verified, from where reload_remote_config and find_keyring in ostree-repo.c read it:
// the repo's config and its directory, then the directory more (for the repo of a booted system, /etc/ostree/remotes.d). A remote that is not
// configured is an error that satisfies errors.Is(err, fs.ErrNotExist).
func (r *Repo) Remote(name, more string) (*Remote, error) {
	if !isRefFragment(name) {
		return nil, fmt.Errorf("%q is not a valid name of a remote", name)
	}
	options, err := r.remoteOptions(name, more)
	if err != nil {
		return nil, fmt.Errorf("remote %s of the OSTree repo %s: read its configuration: %w", name, r.name, err)
	}
	if options == nil {
		return nil, fmt.Errorf("the OSTree repo %s has no remote %s: see ostree remote list, or add it (ostree remote add): %w", r.name, name, fs.ErrNotExist)
	}
	keyring, err := r.keyring(name, more)
	if err != nil {
		return nil, fmt.Errorf("remote %s of the OSTree repo %s: read its keyring: %w", name, r.name, err)
	}
	return &Remote{name, options, keyring}, nil
}

// remoteOptions returns the options about signatures, nil if the remote is not configured.
func (r *Repo) remoteOptions(name, more string) (map[string]string, error) {
	data, err := readFileAt(r.fd, "config", maxConfig)
	if err != nil {
		return nil, err
	}
	options, err := parseRemote(data, name)
	if err != nil || options != nil {
		return options, err
	}
	entries, err := os.ReadDir(more)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, entry := range entries {
		if !entry.Type().IsRegular() || filepath.Ext(entry.Name()) != ".conf" {
			continue
		}
		path := filepath.Join(more, entry.Name())
		if data, err = readFileAt(unix.AT_FDCWD, path, maxConfig); err != nil {
			return nil, err
		}
		if options, err = parseRemote(data, name); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		} else if options != nil {
			return options, nil // libostree opens no repo for which there would be a second one
		}
	}
	return nil, nil
}

// parseRemote returns the options about signatures in a keyfile, nil if it does not have the remote.
func parseRemote(data []byte, name string) (map[string]string, error) {
	file, err := parseKeyfile(data)
	if err != nil {
		return nil, err
	}
	group, found := file[`remote "`+name+`"`]
	if !found {
		return nil, nil
	}
	options := map[string]string{}
	for key, value := range group {
		switch {
		case key == "gpg-verify", key == "gpgkeypath", key == "sign-verify", strings.HasPrefix(key, "verification-"):
			options[key] = value
		}
	}
	return options, nil
}

// maxKeyring bounds the size of a keyring, in bytes.
const maxKeyring = 16 << 20

// keyring reads the remote's own keys, of which there may be none.
func (r *Repo) keyring(name, more string) ([]byte, error) {
	keyring, err := readFileAt(r.fd, KeyringName(name), maxKeyring)
	if errors.Is(err, fs.ErrNotExist) {
		keyring, err = readFileAt(unix.AT_FDCWD, filepath.Join(more, KeyringName(name)), maxKeyring)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return keyring, err
}

// KeyringName is what the file of a remote's own GPG keys is called, in a repo's directory.
func KeyringName(remote string) string { return remote + ".trustedkeys.gpg" }
