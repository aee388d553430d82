package content

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/internal/xattr"
)

// clone fills the new directory to with what the directory from has: directories are made, all else is linked, so that generations share
// what did not change.
func clone(from, to *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	have, err := attributesOf(beneath.Path(int(from.Fd()), "."), &st)
	if err != nil {
		return err
	}
	opaque, err := overlay.IsOpaque(from)
	if err != nil {
		return err
	}
	entries, err := from.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := cloneEntry(from, to, entry); err != nil {
			return fmt.Errorf("%s: %w", entry.Name(), err)
		}
	}
	if opaque {
		if err := setOpaque(int(to.Fd())); err != nil {
			return err
		}
	}
	return have.set(int(to.Fd()))
}

func cloneEntry(from, to *os.File, entry os.DirEntry) error {
	name := entry.Name()
	if entry.Type()&os.ModeCharDevice != 0 {
		if err := noteOrigin(to); err != nil {
			return err
		}
	}
	if !entry.IsDir() {
		return cloneFile(from, to, name)
	}
	source, err := beneath.OpenDir(from, name)
	if err != nil {
		return err
	}
	defer source.Close()
	if err := unix.Mkdirat(int(to.Fd()), name, 0o700); err != nil {
		return err
	}
	target, err := beneath.OpenDir(to, name)
	if err != nil {
		return err
	}
	defer target.Close()
	return clone(source, target)
}

// cloneFile links what is no directory. On a regular file that was written through overlayfs, that may have left notes, which are about another
// mount: it is copied, without them.
func cloneFile(from, to *os.File, name string) error {
	noted, err := hasNotes(from, name)
	if err != nil {
		return err
	}
	if !noted {
		return unix.Linkat(int(from.Fd()), name, int(to.Fd()), name, 0)
	}
	file, err := openRegular(beneath.Path(int(from.Fd()), name))
	if err != nil {
		return err
	}
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return err
	}
	have, err := attributesOf(beneath.Path(int(from.Fd()), name), &st)
	if err != nil {
		return err
	}
	return putFile(to, name, file, have)
}

func hasNotes(dir *os.File, name string) (bool, error) {
	st, err := beneath.Stat(dir, name)
	if err != nil || st == nil || typeOf(st.Mode) != unix.S_IFREG {
		return false, err
	}
	names, err := xattr.List(beneath.Path(int(dir.Fd()), name))
	for _, name := range names {
		if strings.HasPrefix(name, overlay.XattrPrefix) {
			return true, nil
		}
	}
	return false, err
}

func setOpaque(fd int) error {
	if err := unix.Fsetxattr(fd, overlay.XattrPrefix+"opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("setting xattr %sopaque: %w", overlay.XattrPrefix, err)
	}
	return nil
}
