package etcmerge

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
)

// root is /etc, or a tree that Put takes files from, held by a file descriptor: everything below is reached from there, one directory at a time, and never through a
// symbolic link or into another mount.
type root struct {
	fd   int
	name string // in messages

	// The directory of the last path: in a tree's order the next one is often in the same.
	dir   string
	dirFd int
}

func openRoot(path, name string) (*root, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return &root{fd: fd, name: name, dirFd: -1}, nil
}

// display names a path below it in messages.
func (r *root) display(path string) string { return display(r.name, path) }

func (r *root) close() {
	r.forget()
	unix.Close(r.fd)
}

// forget drops the directory that is kept open, for when another may have taken its path.
func (r *root) forget() {
	if r.dirFd >= 0 {
		unix.Close(r.dirFd)
	}
	r.dirFd = -1
}

// parent returns the directory that path is in, open until the next call, and its name there. See notThere and isMountPoint for the
// errors that say something about /etc.
func (r *root) parent(path string) (int, string, error) {
	dir, name := split(path)
	if dir == "" {
		return r.fd, name, nil
	}
	if r.dirFd >= 0 && r.dir == dir {
		return r.dirFd, name, nil
	}
	r.forget()
	fd, err := r.openDir(dir)
	if err != nil {
		return -1, "", err
	}
	r.dir, r.dirFd = dir, fd
	return fd, name, nil
}

// openDir opens a directory below /etc.
func (r *root) openDir(path string) (int, error) {
	if path == "" {
		path = "."
	}
	return beneath.Open(r.fd, path, unix.O_RDONLY|unix.O_DIRECTORY)
}

// notThere tells whether a path does not exist because it, or a directory on the way to it, is missing or is something else: a symbolic
// link in place of a directory is the administrator's, and what is behind it is not below /etc.
func notThere(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// isMountPoint tells whether a call failed because something is mounted at the path, or above it.
func isMountPoint(err error) bool {
	return errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EBUSY)
}

// names returns what a directory below /etc has, sorted.
func (r *root) names(path string) ([]string, error) {
	fd, err := r.openDir(path)
	if err != nil {
		return nil, fmt.Errorf("open the directory %s: %w", r.display(path), err)
	}
	return namesOf(fd, r.display(path))
}

// namesOf lists a directory, and closes it.
func namesOf(fd int, path string) ([]string, error) {
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list the directory %s: %w", path, err)
	}
	slices.Sort(names)
	return names, nil
}
