package layer

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/treediff"
)

// epoch is the modification time of everything in a tree (OSTREE_TIMESTAMP); access times are left alone.
var epoch = []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {}}

// setAttributes makes the directory fd what its new dirmeta says. It comes last, since every entry that is
// added changes the modification time.
func (b *builder) setAttributes(fd int, change treediff.Change, opaque bool) error {
	meta, err := b.repo.Dirmeta(change.New.Meta)
	if err != nil {
		return err
	}
	for _, xattr := range meta.Xattrs {
		if err := checkXattr(xattr.Name); err != nil {
			return err
		}
	}
	if err := meta.Attributes().Set(fd); err != nil {
		return err
	}
	if opaque {
		if err := unix.Fsetxattr(fd, overlayXattrs+"opaque", []byte("y"), 0); err != nil {
			return fmt.Errorf("setting xattr %sopaque: %w", overlayXattrs, err)
		}
	}
	if err := unix.UtimesNanoAt(fd, "", epoch, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("setting the modification time: %w", err)
	}
	return nil
}

// dropACLs removes from the layer's root what it inherited from the directory it is in, and would pass on.
func dropACLs(fd int) error {
	for _, name := range []string{"system.posix_acl_default", "system.posix_acl_access"} {
		err := unix.Fremovexattr(fd, name)
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("removing xattr %s: %w", name, err)
		}
	}
	return nil
}

// whiteout makes whiteouts: one character device 0/0, and links to it.
type whiteout struct {
	sync.Mutex
	fd int // of the one to link to, 0 for none
}

func (w *whiteout) make(dir int, name string) error {
	w.Lock()
	defer w.Unlock()
	if w.fd != 0 && unix.Linkat(w.fd, "", dir, name, unix.AT_EMPTY_PATH) == nil {
		return nil
	}
	// The first one; or the last has all the links it can have; or this process may not link by descriptor (CAP_DAC_READ_SEARCH).
	w.closeLocked()
	if err := unix.Mknodat(dir, name, unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("making a whiteout: %w", err)
	}
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a whiteout: %w", err)
	}
	w.fd = fd
	return nil
}

func (w *whiteout) close() {
	w.Lock()
	defer w.Unlock()
	w.closeLocked()
}

func (w *whiteout) closeLocked() {
	if w.fd != 0 {
		unix.Close(w.fd)
	}
	w.fd = 0
}
