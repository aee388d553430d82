package content

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/internal/xattr"
)

// attributes are what a file has besides its content.
type attributes struct {
	mode     uint32 // permission bits
	uid, gid uint32
	mtime    time.Time // zero for now
	xattrs   map[string]string
}

// attributesOf reads those of a file at a path that no one else changes, or at which a change does no harm.
func attributesOf(path string, st *unix.Stat_t) (attributes, error) {
	a := attributes{mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid, mtime: time.Unix(st.Mtim.Unix()), xattrs: map[string]string{}}
	err := xattr.Read(path, func(name string, value []byte) {
		if !strings.HasPrefix(name, overlay.XattrPrefix) {
			a.xattrs[name] = string(value)
		}
	})
	return a, err
}

// set gives an open file or directory its attributes: xattrs and mode after the owner, since chown clears some of them.
func (a attributes) set(fd int) error {
	if err := unix.Fchown(fd, int(a.uid), int(a.gid)); err != nil {
		return fmt.Errorf("chown %d:%d: %w", a.uid, a.gid, err)
	}
	if err := unix.Fchmod(fd, a.mode); err != nil {
		return fmt.Errorf("chmod %#o: %w", a.mode, err)
	}
	for name, value := range a.xattrs {
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil {
			return fmt.Errorf("setting xattr %s: %w", name, err)
		}
	}
	if a.mtime.IsZero() {
		return nil
	}
	return unix.UtimesNanoAt(fd, "", a.times(), unix.AT_EMPTY_PATH)
}

func (a attributes) times() []unix.Timespec {
	return []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(a.mtime.UnixNano())}
}
