// Package beneath reaches files from a directory that is held open, and nothing but what is in it: through no symbolic link, and in no other
// mount. Whoever else can write there leads nobody out of it.
package beneath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Open is openat2(2) (Linux 5.6) of a path below a directory.
func Open(dir int, path string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(dir, path, &how)
		if err == nil || !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) { // EAGAIN: a rename elsewhere came in between
			return fd, err
		}
	}
}

// OpenRoot opens the directory that all else is reached from. It is not a symbolic link itself.
func OpenRoot(dir string) (*os.File, error) {
	return os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// OpenDir opens a directory below another one.
func OpenDir(dir *os.File, path string) (*os.File, error) {
	fd, err := Open(int(dir.Fd()), path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// CloseAll closes files.
func CloseAll(files []*os.File) {
	for _, file := range files {
		file.Close()
	}
}

// Stat looks at an entry of a directory, and not at what a link there leads to; nil if there is none.
func Stat(dir *os.File, name string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return &st, err
}

// Path names an entry of a directory for the calls that take no descriptor of it (setxattrat and its like are in Linux 6.13 and later only). Only
// those are safe that do not follow a symbolic link at its end.
func Path(dir int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
}

// Remove deletes dir and everything below it. It is no error if there is no dir, and one if something is mounted below it.
func Remove(dir string) error {
	parent, err := unix.Open(filepath.Dir(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing %s: %w", dir, err)
	}
	defer unix.Close(parent)
	if err := removeAt(parent, filepath.Base(dir)); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing %s: %w", dir, err)
	}
	return nil
}

func removeAt(parent int, name string) error {
	fd, err := Open(parent, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("opening directory %s: %w", name, err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return fmt.Errorf("reading directory %s: %w", name, err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			err = removeAt(fd, entry.Name())
		} else {
			err = unix.Unlinkat(fd, entry.Name(), 0)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
}
