package ostree

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/lockfile"
)

// LockSysroot takes the lock under which libostree changes what is deployed (ostree_sysroot_lock), until the file is closed. root is the sysroot, to be
// written to. It calls busy first if somebody else has the lock. What it holds off is every ostree command that deploys, stages, or cleans up: none may be run under it.
func LockSysroot(ctx context.Context, root string, busy func()) (*os.File, error) {
	// libglnx's make_lock_file: an open file description lock.
	file, err := os.OpenFile(filepath.Join(root, "ostree/lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		err = lockfile.OFD(ctx, file, busy)
	}
	if err != nil {
		return nil, fmt.Errorf("taking libostree's lock of the sysroot: %w", err)
	}
	return file, nil
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
