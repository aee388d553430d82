package content

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/image"
	"github.com/liveapply/liveapply/internal/overlay"
)

// tree is the content of a generation that is being made. Everything in it is reached from its root, without following a link: content may have links
// to anywhere.
type tree struct {
	root  *os.File
	under Under
}

func openTree(dir string, under Under) (*tree, error) {
	root, err := beneath.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &tree{root, under}, nil
}

func (t *tree) close() { t.root.Close() }

// openDir opens a directory of the tree.
func (t *tree) openDir(path string) (*os.File, error) {
	return beneath.OpenDir(t.root, path)
}

// stat looks at a path of the tree; nil if nothing is there.
func (t *tree) stat(path string) (*unix.Stat_t, error) {
	dir, err := t.openDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return beneath.Stat(dir, filepath.Base(path))
}

// below looks at what the system has at a path, if the tree does not hide it; nil if nothing is there.
func (t *tree) below(path string) (*unix.Stat_t, error) {
	system, err := t.under.stat(path)
	if err != nil || system == nil {
		return nil, err
	}
	hidden, err := t.hides(path)
	if err != nil || hidden {
		return nil, err
	}
	return system, nil
}

// hides tells whether a directory of the tree hides what the system has at a path below it.
func (t *tree) hides(path string) (bool, error) {
	for path = filepath.Dir(path); path != "."; path = filepath.Dir(path) {
		there, err := t.stat(path)
		if err != nil {
			return false, err
		}
		if there != nil && overlay.IsWhiteout(there) {
			return true, nil
		}
		if there == nil || typeOf(there.Mode) != unix.S_IFDIR {
			continue
		}
		dir, err := t.openDir(path)
		if err != nil {
			return false, err
		}
		opaque, err := overlay.IsOpaque(dir)
		dir.Close()
		if err != nil || opaque {
			return opaque, err
		}
	}
	return false, nil
}

// parent opens the directory that something is about to be put in, and makes it, with all above it, where the tree does not have it.
func (t *tree) parent(path string) (*os.File, error) {
	dir, err := t.openDir(".")
	if err != nil {
		return nil, err
	}
	done := ""
	for _, part := range strings.Split(filepath.Dir(path), "/") {
		done = filepath.Join(done, part)
		next, err := t.enter(dir, part, done)
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

// enter opens a directory in another one; path is that of the directory in the tree.
func (t *tree) enter(dir *os.File, name, path string) (*os.File, error) {
	there, err := beneath.Stat(dir, name)
	if err != nil {
		return nil, err
	}
	switch {
	case there == nil:
		if err := t.makeDir(dir, name, path); err != nil {
			return nil, err
		}
	case overlay.IsWhiteout(there):
		// What the system has there stays hidden.
		if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil {
			return nil, err
		}
		if err := makeDir(dir, name, plainDir, true); err != nil {
			return nil, err
		}
	case typeOf(there.Mode) == unix.S_IFLNK:
		return nil, fmt.Errorf("/%s is a link in this overlay: nothing can be put below it", path)
	case typeOf(there.Mode) != unix.S_IFDIR:
		return nil, fmt.Errorf("/%s is a file in this overlay: nothing can be put below it", path)
	}
	return beneath.OpenDir(dir, name)
}

// plainDir is a directory that only an overlay has, unless something else is said about it.
var plainDir = attributes{mode: 0o755}

// makeDir makes a directory as the system has it; overlayfs shows the attributes of the topmost layer.
func (t *tree) makeDir(dir *os.File, name, path string) error {
	system, err := t.below(path)
	if err != nil {
		return err
	}
	if system == nil {
		return makeDir(dir, name, plainDir, false)
	}
	if typeOf(system.Mode) != unix.S_IFDIR {
		return fmt.Errorf("/%s is no directory in this system: nothing can be put below it", path)
	}
	have, err := attributesOf(filepath.Join(t.under.Root, path), system)
	if err != nil {
		return err
	}
	return makeDir(dir, name, have, false)
}

func makeDir(dir *os.File, name string, a attributes, opaque bool) error {
	if err := unix.Mkdirat(int(dir.Fd()), name, 0o700); err != nil {
		return err
	}
	fd, err := beneath.Open(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if opaque {
		if err := setOpaque(fd); err != nil {
			return err
		}
	}
	return a.set(fd)
}

// file puts a regular file.
func (t *tree) file(path string, content io.Reader, a attributes) error {
	dir, err := t.vacate(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return putFile(dir, filepath.Base(path), content, a)
}

// putFile makes a file that is not there yet.
func putFile(dir *os.File, name string, content io.Reader, a attributes) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	if _, err := image.CopySparse(file, content); err != nil {
		return err
	}
	return a.set(fd)
}

// symlink puts a symbolic link.
func (t *tree) symlink(path, target string, a attributes) error {
	dir, err := t.vacate(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	name, fd := filepath.Base(path), int(dir.Fd())
	if err := unix.Symlinkat(target, fd, name); err != nil {
		return err
	}
	if err := a.inode().SetLink(fd, name); err != nil {
		return err
	}
	if a.mtime.IsZero() {
		return nil
	}
	return unix.UtimesNanoAt(fd, name, a.times(), unix.AT_SYMLINK_NOFOLLOW)
}

// hardlink puts another name of a file that the tree has.
func (t *tree) hardlink(path, of string) error {
	from, err := t.openDir(filepath.Dir(of))
	if err != nil {
		return err
	}
	defer from.Close()
	dir, err := t.vacate(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Linkat(int(from.Fd()), filepath.Base(of), int(dir.Fd()), filepath.Base(path), 0)
}

// directory puts a directory. One that the system has keeps its attributes.
func (t *tree) directory(path string, a attributes) error {
	dir, err := t.parent(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	there, err := beneath.Stat(dir, filepath.Base(path))
	if err != nil {
		return err
	}
	system, err := t.below(path)
	if err != nil {
		return err
	}
	if there == nil && system == nil {
		return makeDir(dir, filepath.Base(path), a, false)
	}
	sub, err := t.enter(dir, filepath.Base(path), path)
	if err != nil {
		return err
	}
	defer sub.Close()
	if system != nil {
		return nil
	}
	return a.set(int(sub.Fd()))
}

// exactDirectory puts a directory with attributes of its own, or gives them to the one that is there. An opaque one hides what the system has at the
// path, whatever that is.
func (t *tree) exactDirectory(path string, a attributes, opaque bool) error {
	dir, err := t.parent(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	there, err := beneath.Stat(dir, filepath.Base(path))
	if err != nil {
		return err
	}
	if there == nil {
		return makeDir(dir, filepath.Base(path), a, opaque)
	}
	sub, err := beneath.OpenDir(dir, filepath.Base(path))
	if err != nil {
		return err
	}
	defer sub.Close()
	return a.set(int(sub.Fd()))
}

// mask hides a path.
func (t *tree) mask(path string) error {
	dir, err := t.parent(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := removeAt(dir, filepath.Base(path)); err != nil {
		return err
	}
	return maskAt(dir, filepath.Base(path))
}

func maskAt(dir *os.File, name string) error {
	if err := noteOrigin(dir); err != nil {
		return err
	}
	return unix.Mknodat(int(dir.Fd()), name, unix.S_IFCHR, 0)
}

// noteOrigin says of a directory that another layer has it, too, without saying where: the note of overlayfs need have no value. A directory
// with masks gets it, because where no other layer has the directory any more, overlayfs would list their names otherwise: it looks for them
// in merged directories, and in those that have this note (ovl_get_inode).
func noteOrigin(dir *os.File) error {
	if err := unix.Fsetxattr(int(dir.Fd()), overlay.XattrPrefix+"origin", nil, 0); err != nil {
		return fmt.Errorf("setting xattr %sorigin: %w", overlay.XattrPrefix, err)
	}
	return nil
}

// noteOrigin says that of a directory of the tree.
func (t *tree) noteOrigin(path string) error {
	dir, err := t.openDir(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return noteOrigin(dir)
}

// keepTimes gives the directories that the system has, too, its modification times: that of /usr tells systemd whether /etc and /var have to follow an
// update (ConditionNeedsUpdate= of systemd.unit(5)).
func (t *tree) keepTimes(dir *os.File, path string) error {
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		sub, err := beneath.OpenDir(dir, entry.Name())
		if err != nil {
			return err
		}
		err = t.keepTimes(sub, filepath.Join(path, entry.Name()))
		sub.Close()
		if err != nil {
			return err
		}
	}
	system, err := t.under.stat(path)
	if err != nil || system == nil || path == "" || typeOf(system.Mode) != unix.S_IFDIR {
		return err
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, system.Mtim}
	return unix.UtimesNanoAt(int(dir.Fd()), "", times, unix.AT_EMPTY_PATH)
}

// remove takes a path out of the tree, with all below it. It tells whether the tree had it.
func (t *tree) remove(path string) (bool, error) {
	there, err := t.stat(path)
	if err != nil || there == nil {
		return false, err
	}
	dir, err := t.openDir(filepath.Dir(path))
	if err != nil {
		return false, err
	}
	defer dir.Close()
	return true, removeAt(dir, filepath.Base(path))
}

// prune removes a directory if nothing is in it, and those above it in which nothing is then, unless they were asked for. One that was a mask before
// something was put below it is a mask again.
func (t *tree) prune(path string, isAsked func(path string) bool) error {
	for ; path != "."; path = filepath.Dir(path) {
		dir, err := t.openDir(filepath.Dir(path))
		if err != nil {
			return err
		}
		more, err := pruneAt(dir, filepath.Base(path), isAsked(path))
		dir.Close()
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// pruneAt does that for one directory. It tells whether there is one name less in dir.
func pruneAt(dir *os.File, name string, isAsked bool) (bool, error) {
	sub, err := beneath.OpenDir(dir, name)
	if err != nil {
		return false, err
	}
	defer sub.Close()
	opaque, err := overlay.IsOpaque(sub)
	if err != nil || isAsked && !opaque {
		return false, err
	}
	err = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return false, nil
	}
	if err == nil && opaque {
		err = maskAt(dir, name)
	}
	return err == nil && !opaque, err
}

// vacate opens the directory of a file that is about to be put, and removes what the tree has in its place. A file that other generations have is never
// written to: it is another one from here on.
func (t *tree) vacate(path string) (*os.File, error) {
	system, err := t.below(path)
	if err != nil {
		return nil, err
	}
	dir, err := t.parent(path)
	if err != nil {
		return nil, err
	}
	there, err := beneath.Stat(dir, filepath.Base(path))
	switch {
	case err != nil:
	case there != nil && typeOf(there.Mode) == unix.S_IFDIR, there == nil && system != nil && typeOf(system.Mode) == unix.S_IFDIR:
		err = fmt.Errorf("/%s is a directory: mask what is in it, or name a file below it", path)
	case there != nil:
		err = unix.Unlinkat(int(dir.Fd()), filepath.Base(path), 0)
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// removeAt deletes what is at a name, if anything is, with all below it.
func removeAt(dir *os.File, name string) error {
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if errors.Is(err, unix.EISDIR) {
		return beneath.Remove(beneath.Path(int(dir.Fd()), name))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
