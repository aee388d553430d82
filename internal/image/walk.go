package image

import (
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/xattr"
)

// walk reads a directory that others may change meanwhile: each name is resolved in the open directory that it was listed in, never
// through a link or a mount, and what was opened then is what is read.
type walk struct {
	*reader
	links map[inode]string
	skip  string // a path that is none of the image's
}

type inode struct{ dev, ino uint64 }

func (r *reader) directory(fd int) error {
	root, err := reopen(fd, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	return (&walk{reader: r, links: make(map[inode]string)}).children(root, "")
}

// children reads what is in a directory, and closes it.
func (w *walk) children(dir *os.File, parent string) error {
	defer dir.Close()
	names, err := dir.Readdirnames(w.left.Entries + 1) // one more is too many
	if err != nil && err != io.EOF {
		return fmt.Errorf("directory %q: %w", parent, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if child := path.Join(parent, name); child != w.skip || w.skip == "" {
			if err := w.child(dir, name, child); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walk) child(dir *os.File, name, child string) error {
	fd, err := beneath.Open(int(dir.Fd()), name, unix.O_PATH)
	if err == unix.EXDEV {
		err = fmt.Errorf("something is mounted there: %w", err)
	}
	if err != nil {
		return fmt.Errorf("entry %q: open: %w", child, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("entry %q: fstat: %w", child, err)
	}
	e := Entry{
		Path: child, Mode: st.Mode, UID: st.Uid, GID: st.Gid, ModTime: time.Unix(st.Mtim.Unix()),
		Xattrs: make(map[string]string),
	}
	id := inode{uint64(st.Dev), st.Ino}
	if to, linked := w.links[id]; linked {
		e.Link = to
		return w.entry(e)
	}
	if st.Nlink > 1 && !isDir(st.Mode) {
		w.links[id] = child
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return w.subdirectory(e, fd)
	case unix.S_IFREG:
		return w.regular(e, fd, st)
	case unix.S_IFLNK:
		return w.symlink(e, fd, beneath.Path(int(dir.Fd()), name))
	}
	return w.entry(e) // which refuses it
}

func (w *walk) subdirectory(e Entry, fd int) error {
	dir, err := reopen(fd, unix.O_DIRECTORY)
	if err == nil {
		err = e.readXattrs(dir)
	}
	if err != nil {
		return fmt.Errorf("entry %q: %w", e.Path, err)
	}
	if err := w.entry(e); err != nil {
		dir.Close()
		return err
	}
	return w.children(dir, e.Path)
}

func (w *walk) regular(e Entry, fd int, before unix.Stat_t) error {
	file, err := reopen(fd, 0)
	if err != nil {
		return fmt.Errorf("entry %q: %w", e.Path, err)
	}
	defer file.Close()
	if err := e.readXattrs(file); err != nil {
		return fmt.Errorf("entry %q: %w", e.Path, err)
	}
	e.Size, e.Content = before.Size, file
	if err := w.entry(e); err != nil {
		return err
	}
	var after unix.Stat_t
	if err := unix.Fstat(fd, &after); err != nil {
		return fmt.Errorf("entry %q: fstat: %w", e.Path, err)
	}
	if after.Size != before.Size || after.Mtim != before.Mtim || after.Ctim != before.Ctim {
		return fmt.Errorf("entry %q: it was changed while it was read: try again when nobody does", e.Path)
	}
	return nil
}

// symlink reads the target by the open link. Its xattrs can only be had by a path; they are those of another link if somebody has
// just put that there, but of nothing that is not in this directory.
func (w *walk) symlink(e Entry, fd int, at string) error {
	target := make([]byte, maxPath+1)
	n, err := unix.Readlinkat(fd, "", target)
	if err == nil {
		e.Target = string(target[:n])
		err = xattr.Read(at, func(name string, value []byte) { e.Xattrs[name] = string(value) })
	}
	if err != nil {
		return fmt.Errorf("entry %q: %w", e.Path, err)
	}
	return w.entry(e)
}

func (e Entry) readXattrs(file *os.File) error {
	return xattr.ReadOpen(int(file.Fd()), func(name string, value []byte) { e.Xattrs[name] = string(value) })
}

// reopen opens what fd, which may be one of O_PATH, is open to.
func reopen(fd int, flags int) (*os.File, error) {
	path := fmt.Sprintf("/proc/self/fd/%d", fd)
	again, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	return os.NewFile(uintptr(again), path), nil
}
