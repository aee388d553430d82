package ostree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// Resolve returns the commit that a revision names, by the rules of ostree_repo_resolve_rev: a full checksum
// (which need not be in the repo), the unique beginning of the checksum of a commit in it, "remote:ref", a
// ref (local ones before those of remotes), each with any number of "^" behind it for the parent. An unknown
// revision is an error that satisfies errors.Is(err, fs.ErrNotExist).
func (r *Repo) Resolve(rev string) (Checksum, error) {
	base := strings.TrimRight(rev, "^")
	c, err := r.resolveBase(base)
	if err != nil {
		return Checksum{}, fmt.Errorf("resolve %q in the OSTree repo %s: %w", rev, r.name, err)
	}
	for range len(rev) - len(base) {
		commit, err := r.Commit(c)
		if err != nil {
			return Checksum{}, fmt.Errorf("resolve %q: %w", rev, err)
		}
		if commit.Parent.IsZero() {
			return Checksum{}, fmt.Errorf("resolve %q: commit %s has no parent", rev, c)
		}
		c = commit.Parent
	}
	return c, nil
}

func (r *Repo) resolveBase(rev string) (Checksum, error) {
	if c, err := ParseChecksum(rev); err == nil {
		return c, nil
	}
	if rev != "" && strings.Trim(rev, "0123456789abcdef") == "" {
		if c, err := r.resolvePrefix(rev); err != nil || !c.IsZero() {
			return c, err
		}
	}
	return r.resolveRef(rev)
}

// resolvePrefix returns the commit whose checksum begins with prefix, zero if there is none. More than one is
// an error.
func (r *Repo) resolvePrefix(prefix string) (Checksum, error) {
	var found Checksum
	for high := range 256 {
		dir := fmt.Sprintf("%02x", high)
		if !strings.HasPrefix(dir, prefix) && !strings.HasPrefix(prefix, dir) {
			continue
		}
		names, err := r.readDir("objects/" + dir)
		if err != nil {
			return Checksum{}, err
		}
		for _, name := range names {
			digits, ok := strings.CutSuffix(name, commitSuffix)
			c, err := ParseChecksum(dir + digits)
			if !ok || err != nil || !strings.HasPrefix(dir+digits, prefix) {
				continue
			}
			if !found.IsZero() {
				return Checksum{}, fmt.Errorf("it is the beginning of more than one commit, such as %s and %s: give more digits", found, c)
			}
			found = c
		}
	}
	return found, nil
}

// resolveRef finds a ref as resolve_refspec does. Of several remotes that have it the first by name counts;
// libostree leaves that open.
func (r *Repo) resolveRef(refspec string) (Checksum, error) {
	remote, ref, ok := parseRefspec(refspec)
	if !ok {
		return Checksum{}, errors.New("it is neither a checksum nor a valid ref name")
	}
	candidates := []string{"refs/remotes/" + remote + "/" + ref}
	if remote == "" {
		remotes, err := r.readDir("refs/remotes")
		if err != nil {
			return Checksum{}, err
		}
		candidates = []string{"refs/heads/" + ref, "refs/remotes/" + ref}
		for _, remote := range remotes {
			candidates = append(candidates, "refs/remotes/"+remote+"/"+ref)
		}
	}
	for _, path := range candidates {
		if c, err := r.readRef(path); err != nil || !c.IsZero() {
			return c, err
		}
	}
	return Checksum{}, fmt.Errorf("no such ref: see ostree refs, or pull it (ostree pull): %w", fs.ErrNotExist)
}

// maxRef bounds the size of a file that holds a ref: 64 digits and a newline, in bytes.
const maxRef = 4096

// readRef returns the commit that a ref names, zero if there is no such ref. An alias is a symbolic link
// (ostree refs --alias); it may not lead out of the repo.
func (r *Repo) readRef(path string) (Checksum, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := openAt2(r.fd, path, &how)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return Checksum{}, nil
	}
	if err != nil {
		return Checksum{}, fmt.Errorf("open %s: %w", path, err)
	}
	if isDirectory(fd) { // "debian" where there is a ref "debian/1"
		return Checksum{}, unix.Close(fd)
	}
	data, err := readAndClose(fd, path, maxRef)
	if err != nil {
		return Checksum{}, err
	}
	c, err := parseRef(data)
	if err != nil {
		return Checksum{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// parseRef parses what is in a ref's file.
func parseRef(data []byte) (Checksum, error) {
	return ParseChecksum(strings.TrimRight(string(data), " \t\r\n"))
}

func (r *Repo) readDir(path string) ([]string, error) {
	fd, err := openAt(r.fd, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", path, err)
	}
	slices.Sort(names)
	return names, nil
}

// parseRefspec splits "remote:ref"; remote is empty for a local ref. The rule is that of
// ostree_parse_refspec.
func parseRefspec(refspec string) (remote, ref string, ok bool) {
	remote, ref, found := strings.Cut(refspec, ":")
	if !found {
		remote, ref = "", refspec
	} else if !isRefFragment(remote) {
		return "", "", false
	}
	for fragment := range strings.SplitSeq(ref, "/") {
		if !isRefFragment(fragment) {
			return "", "", false
		}
	}
	return remote, ref, true
}

// isRefFragment mirrors the regular expression [\w\d][-._\w\d]* (OSTREE_REF_FRAGMENT_REGEXP), which excludes
// "." and "..".
func isRefFragment(s string) bool {
	for i, c := range s {
		word := c == '_' || unicode.IsLetter(c) || unicode.IsNumber(c)
		if c == unicode.ReplacementChar || !word && (i == 0 || c != '-' && c != '.') {
			return false
		}
	}
	return s != ""
}
