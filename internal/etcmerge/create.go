package etcmerge

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/inode"
	"github.com/liveapply/liveapply/internal/ostree"
)

// openNew makes a file that only root can read, and opens it for writing. It must not exist.
func openNew(dir int, name string) (int, error) {
	return unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
}

// createFile makes a regular file with the attributes of state, and returns the checksum of what write wrote. Its mtime is the present time, as
// that of a file in a newly deployed /etc (ostree_repo_checkout_at with force_copy).
func createFile(dir int, name string, state State, write func(io.Writer) error) (ostree.Checksum, error) {
	fd, err := openNew(dir, name)
	if err != nil {
		return ostree.Checksum{}, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	digest := sha256.New()
	if err := write(io.MultiWriter(f, digest)); err != nil {
		return ostree.Checksum{}, err
	}
	if err := setAttributes(fd, state); err != nil {
		return ostree.Checksum{}, err
	}
	return ostree.Checksum(digest.Sum(nil)), nil
}

func createDir(dir int, name string, state State) error {
	if err := unix.Mkdirat(dir, name, 0o700); err != nil {
		return err
	}
	fd, err := beneath.Open(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setAttributes(fd, state)
}

func createSymlink(dir int, name, target string, state State) error {
	if err := unix.Symlinkat(target, dir, name); err != nil {
		return err
	}
	return attributesOf(state, state.Xattrs).SetLink(dir, name)
}

// attributesOf are those of a state, with other xattrs.
func attributesOf(state State, xattrs []Xattr) inode.Attributes {
	return inode.Attributes{UID: state.UID, GID: state.GID, Mode: state.Mode, Xattrs: func(yield func(string, []byte) bool) {
		for _, x := range xattrs {
			if !yield(string(x.Name), x.Value) {
				return
			}
		}
	}}
}

// setAttributes gives an open file or directory its owner, mode and xattrs.
func setAttributes(fd int, state State) error {
	have, err := openXattrs(fd)
	if err != nil {
		return err
	}
	set, remove := xattrDifference(have, state.Xattrs)
	return writeAttributes(fd, state, set, remove)
}

// writeAttributes does so with xattrs that differ.
func writeAttributes(fd int, state State, set, remove []Xattr) error {
	if err := attributesOf(state, set).Set(fd); err != nil {
		return err
	}
	for _, x := range remove {
		if err := unix.Fremovexattr(fd, string(x.Name)); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("remove xattr %q: %w", x.Name, err)
		}
	}
	return nil
}

// copyAt copies a file, a symbolic link, or a directory without what is in it, with owner, mode, xattrs and times.
func copyAt(srcDir int, src string, dstDir int, dst string) error {
	p, err := statAt(srcDir, src)
	if err != nil {
		return err
	}
	if p.Xattrs, err = readXattrs(beneath.Path(srcDir, src)); err != nil {
		return err
	}
	switch p.Type {
	case Directory:
		err = createDir(dstDir, dst, p.State)
	case Symlink:
		target, err := readlinkAt(srcDir, src)
		if err != nil {
			return err
		}
		if err := createSymlink(dstDir, dst, target, p.State); err != nil {
			return err
		}
	case Regular:
		_, err = createFile(dstDir, dst, p.State, fromFile(srcDir, src))
	default:
		err = errChanged
	}
	if err != nil {
		return err
	}
	return setMTime(dstDir, dst, p.mtime)
}

func fromFile(dir int, name string) func(io.Writer) error {
	return func(w io.Writer) error {
		f, err := openRegular(dir, name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	}
}

// setMTime sets the modification time, in nanoseconds since 1970, of what is at a name itself.
func setMTime(dir int, name string, mtime int64) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(mtime)}
	return unix.UtimesNanoAt(dir, name, times, unix.AT_SYMLINK_NOFOLLOW)
}
