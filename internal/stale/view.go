package stale

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// identity tells files apart.
type identity struct {
	dev, ino uint64
	size     int64
	changed  unix.Timespec // the last change of the inode
}

// isSame tells whether two files are one, perhaps seen through different trees. The inode number alone is not enough where a layer is on
// another filesystem, of whose numbers some are those of the booted tree, too. The device does not help: it is one of its own for each
// filesystem in each tree.
func (i identity) isSame(other identity) bool {
	return i.ino == other.ino && i.size == other.size && i.changed == other.changed
}

func identify(dirfd int, path string, flags int) (identity, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, path, &st, flags); err != nil {
		return identity{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return identity{st.Dev, st.Ino, st.Size, st.Ctim}, nil
}

// view is what the processes of a mount namespace find at paths. What was asked once is remembered.
type view struct {
	root    int  // its root directory
	behind  bool // its /usr is one that was shown before, perhaps of the same commit under other overlays
	oldTree bool // its /usr is a tree that was live before

	mu    sync.Mutex
	paths map[string]*identity // nil: there is nothing
	seen  map[mapping]Reason   // "" if nothing is wrong
}

func openView(root string) (*view, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	return &view{root: fd, paths: map[string]*identity{}, seen: map[mapping]Reason{}}, nil
}

// at tells what is at an absolute path, nil if nothing is.
func (v *view) at(path string) (*identity, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if known, found := v.paths[path]; found {
		return known, nil
	}
	var is *identity
	id, err := identify(v.root, "."+path, 0)
	switch {
	case err == nil:
		is = &id
	case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP):
		return nil, err
	}
	v.paths[path] = is
	return is, nil
}

// hasContent tells whether what is at a path has the same content as a file that can be opened at another one; false if it cannot be.
func (v *view) hasContent(path string, size int64, file string) bool {
	old, err := openRegular(unix.AT_FDCWD, file, size)
	if err != nil {
		return false
	}
	defer old.Close()
	now, err := openRegular(v.root, "."+path, size)
	if err != nil {
		return false
	}
	defer now.Close()
	return sameContent(old, now)
}

// openRegular opens a regular file of a size, and nothing else: a FIFO would wait for a writer, and to open a device may do something.
func openRegular(dirfd int, path string, size int64) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, path, &st, 0); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != size {
		return nil, unix.EINVAL
	}
	fd, err := unix.Openat(dirfd, path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func sameContent(a, b io.Reader) bool {
	const chunk = 64 << 10
	bufA, bufB := make([]byte, chunk), make([]byte, chunk)
	for {
		nA, errA := io.ReadFull(a, bufA)
		nB, errB := io.ReadFull(b, bufB)
		if !bytes.Equal(bufA[:nA], bufB[:nB]) {
			return false
		}
		if errA != nil || errB != nil {
			return isEnd(errA) && isEnd(errB)
		}
	}
}

func isEnd(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }
