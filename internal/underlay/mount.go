package underlay

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// moveMountBeneath is MOVE_MOUNT_BENEATH (Linux 6.5): mount beneath what is mounted at the target.
const moveMountBeneath = 0x200

// cloneTree clones what is mounted at path, or the directory there, without what is mounted below, or with it. The clone is
// attached nowhere yet. It is private, and so is all in it: otherwise it would be in the peer group of
// the original, and what is unmounted below that when that goes would go here as well.
func cloneTree(path string, recursive bool) (*os.File, error) {
	flags, deep := uint(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC), uint(0)
	if recursive {
		deep = unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags|deep|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	if err != nil {
		return nil, fmt.Errorf("cloning the mount at %s: open_tree: %w (EINVAL: it is unbindable)", path, err)
	}
	clone := os.NewFile(uintptr(fd), path)
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|deep, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		clone.Close()
		return nil, fmt.Errorf("making the clone of %s private: mount_setattr: %w", path, err)
	}
	return clone, nil
}

// moveMount attaches a mount on top of what is at path, or elsewhere as flags say.
func moveMount(mount *os.File, path string, flags int) error {
	err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH|flags)
	if err != nil {
		return fmt.Errorf("move_mount %s to %s: %w", mount.Name(), path, err)
	}
	return nil
}

// openMount opens the mount at path, so that it can be moved.
func openMount(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the mount at %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// unmount detaches the topmost mount at path, with all below it. Who has files in it open keeps them.
func unmount(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("umount %s: %w", path, err)
	}
	return nil
}

// unmountAll detaches everything at path. It is not an error if there is nothing, or no such path.
func unmountAll(path string) error {
	for {
		mounted, err := isMountPoint(path)
		if err != nil || !mounted {
			return err
		}
		if err := unmount(path); err != nil {
			return err
		}
	}
}

// mkdir is os.Mkdir, without error if the directory exists.
func mkdir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}
