// Package inode gives files what OSTree keeps of them besides their content.
package inode

import (
	"fmt"
	"iter"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
)

// Attributes are those of one file. Xattrs are pairs of name and value.
type Attributes struct {
	UID, GID uint32
	Mode     uint32 // the permission bits of it count, with those for setuid, setgid and sticky
	Xattrs   iter.Seq2[string, []byte]
}

// Set gives them to an open file or directory, in this order because chown(2) clears the setuid and setgid bits, and security.capability.
func (a Attributes) Set(fd int) error {
	if err := unix.Fchown(fd, int(a.UID), int(a.GID)); err != nil {
		return fmt.Errorf("chown %d:%d: %w", a.UID, a.GID, err)
	}
	if err := unix.Fchmod(fd, a.Mode&0o7777); err != nil {
		return fmt.Errorf("chmod %#o: %w", a.Mode&0o7777, err)
	}
	for name, value := range a.Xattrs {
		if err := unix.Fsetxattr(fd, name, value, 0); err != nil {
			return fmt.Errorf("set xattr %q: %w", name, err)
		}
	}
	return nil
}

// SetLink gives them to a symbolic link in an open directory. A link has no mode of its own.
func (a Attributes) SetLink(dir int, name string) error {
	if err := unix.Fchownat(dir, name, int(a.UID), int(a.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown %d:%d: %w", a.UID, a.GID, err)
	}
	for xattr, value := range a.Xattrs {
		if err := unix.Lsetxattr(beneath.Path(dir, name), xattr, value, 0); err != nil {
			return fmt.Errorf("set xattr %q: %w", xattr, err)
		}
	}
	return nil
}
