package layer

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/ostree"
)

// copy makes what a link to the object would be, in the directory dir: content, owner, mode, xattrs and modification time.
func (b *builder) copy(dir int, name string, object ostree.Checksum) error {
	file, err := b.repo.File(object)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(b.repo.Fd(), b.repo.FilePath(object), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return b.objectError(object, err)
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, st.Mtim}
	if file.Mode&unix.S_IFMT == unix.S_IFLNK {
		err = copySymlink(dir, name, file)
	} else {
		err = b.copyRegular(dir, name, object, file)
	}
	if err == nil {
		err = unix.UtimesNanoAt(dir, name, times, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("copying file object %s, which cannot be linked: %w", object, err)
	}
	b.copies.Add(1)
	return nil
}

func copySymlink(dir int, name string, file *ostree.File) error {
	if err := unix.Symlinkat(file.Target, dir, name); err != nil {
		return fmt.Errorf("symlink: %w", err)
	}
	return file.Attributes().SetLink(dir, name)
}

// copyRegular sets the attributes after the content, which would clear some.
func (b *builder) copyRegular(dir int, name string, object ostree.Checksum, file *ostree.File) error {
	from, err := openFile(b.repo.Fd(), b.repo.FilePath(object), unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := openFile(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return err
	}
	defer to.Close()
	if unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) != nil {
		n, err := io.Copy(to, from) // by copy_file_range(2) where that works
		if err == nil && n != file.Size {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
	b.bytes.Add(file.Size)
	return file.Attributes().Set(int(to.Fd()))
}

func openFile(dir int, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
