// Package ostree reads OSTree repos and deployments: refs, commits, trees and file objects of a bare repo,
// and the deployments of a sysroot. It writes refs, and commits that are put together from what is in the repo already (drafts); whatever
// else changes a repo or a deployment is left to the ostree command.
//
// The repo is not trusted: each object is checked against its name before anything in it is used.
package ostree

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Repo is a repo of mode bare, open for reading. It is safe for concurrent use.
type Repo struct {
	path     string
	name     string // what messages call it
	fd       int
	noSync   bool             // core.fsync is false
	dirmetas sync.Map         // Checksum → *Dirmeta: a tree of 100,000 files has a handful
	drafts   map[string]draft // by the paths that they will have
}

// OpenRepo opens the repo at path. See OpenRepoAs.
func OpenRepo(path string) (*Repo, error) { return OpenRepoAs(path, path) }

// OpenRepoAs opens the repo at path, which messages call name: for a path that means something to this process only, such as
// one below /proc/self/fd. A repo of a mode other than bare is refused, because only in a bare one a
// file object is the file itself, with owner, mode and xattrs; so is one with a parent repo (core.parent),
// whose objects are not all below one directory.
func OpenRepoAs(path, name string) (*Repo, error) {
	fd, err := openAt(unix.AT_FDCWD, path, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("open OSTree repo %s: %w", name, err)
	}
	r := &Repo{path: path, name: name, fd: fd}
	if err := r.checkConfig(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Close closes the repo. Values read from it stay valid.
func (r *Repo) Close() error { return unix.Close(r.fd) }

// Path returns the path that the repo was opened with.
func (r *Repo) Path() string { return r.path }

// Name returns what messages call the repo.
func (r *Repo) Name() string { return r.name }

// Fd returns the repo's directory, opened with O_PATH, for calls such as linkat. It stays the Repo's.
func (r *Repo) Fd() int { return r.fd }

// maxConfig bounds the size of a repo's config, of an origin, and of a boot loader entry, in bytes.
const maxConfig = 1 << 20

// checkConfig follows reload_core_config in ostree-repo.c; a repo without core.mode is bare.
func (r *Repo) checkConfig() error {
	data, err := readFileAt(r.fd, "config", maxConfig)
	if err != nil {
		return fmt.Errorf("%s is not an OSTree repo: read its config: %w", r.name, err)
	}
	config, err := parseKeyfile(data)
	if err != nil {
		return fmt.Errorf("OSTree repo %s: config: %w", r.name, err)
	}
	if version := config.get("core", "repo_version"); version != "1" {
		return fmt.Errorf("OSTree repo %s: config: core.repo_version is %q, and only 1 is known", r.name, version)
	}
	if mode := config.get("core", "mode"); mode != "" && mode != "bare" {
		return fmt.Errorf("OSTree repo %s has mode %s: only a bare repo can be read, "+
			"pull the commit into one (ostree pull-local)", r.name, mode)
	}
	if parent := config.get("core", "parent"); parent != "" {
		return fmt.Errorf("OSTree repo %s has the parent repo %s (core.parent): "+
			"pull what it needs into it (ostree pull-local) and remove core.parent", r.name, parent)
	}
	fsync := config.get("core", "fsync")
	r.noSync = fsync == "false" || fsync == "0"
	return nil
}

// IsPartial tells whether objects of a commit may be missing: a pull of it was interrupted, or left out
// subpaths, or fsck found some missing (repo/state/<checksum>.commitpartial).
func (r *Repo) IsPartial(commit Checksum) (bool, error) {
	var st unix.Stat_t
	name := filepath.Join("state", commit.String()+".commitpartial")
	err := unix.Fstatat(r.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("OSTree repo %s: look for %s: %w", r.name, name, err)
	}
	return true, nil
}
