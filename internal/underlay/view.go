package underlay

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OpenWritable returns a directory through which the tree at path can be written although it is mounted read-only, as
// /sysroot is on an OSTree machine. It is a detached clone of the mount, without those mounted below it: nobody else sees
// it, in any mount namespace, and it is gone when the file is closed. What is reached through it is one mount, so
// that link(2) and rename(2) work between any two directories of it.
//
// libostree does the same with a mount namespace of its own and a remount (ostree_sysroot_initialize_with_mount_namespace).
func OpenWritable(path string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("opening %s for writing: open_tree: %w", path, err)
	}
	view := os.NewFile(uintptr(fd), path)
	attributes := &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attributes); err != nil {
		view.Close()
		return nil, fmt.Errorf("opening %s for writing: mount_setattr: %w", path, err)
	}
	return view, nil
}
