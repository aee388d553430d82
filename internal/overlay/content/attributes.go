package content

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/inode"
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

// inode returns all but the time.
func (a attributes) inode() inode.Attributes {
	return inode.Attributes{UID: a.uid, GID: a.gid, Mode: a.mode, Xattrs: func(yield func(string, []byte) bool) {
		for name, value := range a.xattrs {
			if !yield(name, []byte(value)) {
				return
			}
		}
	}}
}

// set gives an open file or directory its attributes.
func (a attributes) set(fd int) error {
	if err := a.inode().Set(fd); err != nil {
		return err
	}
	if a.mtime.IsZero() {
		return nil
	}
	return unix.UtimesNanoAt(fd, "", a.times(), unix.AT_EMPTY_PATH)
}

func (a attributes) times() []unix.Timespec {
	return []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(a.mtime.UnixNano())}
}
