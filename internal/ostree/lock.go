package ostree

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/lockfile"
)

// SysrootLock is the lock under which libostree changes what is deployed (ostree_sysroot_lock).
type SysrootLock struct {
	file *os.File
	path string
}

// LockSysroot takes it. root is the sysroot, to be written to, which must stay open until Close. It calls busy first if somebody else has the lock. What it holds
// off is every ostree command that deploys, stages, or cleans up: none may be run under it.
func LockSysroot(ctx context.Context, root string, busy func()) (*SysrootLock, error) {
	path := filepath.Join(root, "ostree/lock")
	for {
		// glnx_make_lock_file: an open file description lock.
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err == nil {
			err = lockfile.OFD(ctx, file, busy)
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Fstat(int(file.Fd()), &st)
		}
		if err != nil {
			return nil, fmt.Errorf("taking libostree's lock of the sysroot: %w", err)
		}
		if st.Nlink > 0 {
			return &SysrootLock{file, path}, nil
		}
		file.Close() // who had it has removed it: the next one locks another file
		busy = func() {}
	}
}

// Close gives the lock back, as glnx_release_lock_file does: its file goes before. A second call does nothing.
func (l *SysrootLock) Close() {
	if l.file != nil {
		_ = os.Remove(l.path)
		l.file.Close()
		l.file = nil
	}
}

// DropStaged makes the staged deployment be no more, but for its directory, which `ostree admin cleanup` removes. The caller has the lock of the
// sysroot.
func (s *Sysroot) DropStaged() error {
	for _, path := range []string{stagedPath, stagedLockedPath} {
		if err := os.Remove(filepath.Join(s.root, path)); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("dropping the staged deployment: %w", err)
		}
	}
	return nil
}
