package etcmerge

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/xattr"
)

// Type tells what a path is. The zero value means that nothing is there.
type Type string

// The types. OSTree has no others than files, symbolic links and directories; anything else in /etc is the administrator's.
const (
	Absent    Type = ""
	Regular   Type = "file"
	Symlink   Type = "symlink"
	Directory Type = "directory"
	Other     Type = "other" // a device, fifo or socket
)

// State is what is at a path.
type State struct {
	Type     Type            `json:"type,omitempty"`
	Mode     uint32          `json:"mode,omitempty"` // permission bits, at most 07777
	UID      uint32          `json:"uid,omitempty"`
	GID      uint32          `json:"gid,omitempty"`
	Checksum ostree.Checksum `json:"sha256,omitzero"`  // SHA-256 of a file's content, or of a symbolic link's target; not an object's name
	Xattrs   []Xattr         `json:"xattrs,omitempty"` // sorted by name
	MTime    int64           `json:"mtime,omitempty"`  // of a directory, in nanoseconds since 1970; no part of any comparison
}

// Xattr is an extended attribute. Neither part need be text, so both are base64 in JSON.
type Xattr struct {
	Name  []byte `json:"name"`
	Value []byte `json:"value"`
}

// IsFile tells whether s is what OSTree calls a file: a regular file or a symbolic link.
func (s State) IsFile() bool { return s.Type == Regular || s.Type == Symlink }

// sameDefault tells whether a and b are the same by libostree's rule (ostree_diff_dirs with OSTREE_DIFF_FLAGS_IGNORE_XATTRS):
// type, mode, owner and content.
func sameDefault(a, b State) bool {
	return a.Type == b.Type && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.Checksum == b.Checksum
}

// same tells whether a and b are the same by the stricter rule that decides whether a path still is what was put there: an access control list,
// for one, is an xattr that an administrator sets. Only what the system writes by itself does not count.
func same(a, b State) bool {
	return sameDefault(a, b) && slices.EqualFunc(withoutLabels(a.Xattrs), withoutLabels(b.Xattrs), sameXattr)
}

func sameXattr(a, b Xattr) bool { return bytes.Equal(a.Name, b.Name) && bytes.Equal(a.Value, b.Value) }

// withoutLabels leaves out the xattrs that the SELinux and IMA tools write anew over a whole system (restorecon, evmctl).
func withoutLabels(xattrs []Xattr) []Xattr {
	if !slices.ContainsFunc(xattrs, isLabel) {
		return xattrs
	}
	return slices.DeleteFunc(slices.Clone(xattrs), isLabel)
}

func isLabel(x Xattr) bool {
	switch string(x.Name) {
	case "security.selinux", "security.ima", "security.evm":
		return true
	}
	return false
}

// present is what is at a path right now. Until complete was called on it, it has neither Checksum nor Xattrs.
type present struct {
	State
	identity
	mountPoint bool // something is mounted there
	immutable  bool // chattr +i or +a
	whiteout   bool // a character device 0/0, by which overlayfs hides a path
}

// isHeld tells whether nothing can be put in place of what is there.
func (p present) isHeld() bool { return p.mountPoint || p.immutable }

// identity tells, without reading it, whether a path still has the very file that was looked at. It has no ctime, because a hard link
// made elsewhere changes that.
type identity struct {
	dev   uint64
	ino   uint64
	size  int64
	mtime int64 // nanoseconds
	mode  uint32
	uid   uint32
	gid   uint32
}

// stat tells what is at a path, without content and xattrs. What is not there, or not there by a way that follows no symbolic link,
// is Absent.
func (r *root) stat(path string) (present, error) {
	dir, name, err := r.parent(path)
	if err == nil {
		var p present
		p, err = statAt(dir, name)
		if err == nil {
			p.mountPoint = p.mountPoint && path != "" // /etc itself may be one
			return p, nil
		}
	}
	switch {
	case notThere(err):
		return present{}, nil
	case isMountPoint(err):
		return present{State: State{Type: Other}, mountPoint: true}, nil
	}
	return present{}, fmt.Errorf("look at %s: %w", r.display(path), err)
}

// look tells what is at a path, with content and xattrs.
func (r *root) look(path string) (present, error) {
	p, err := r.stat(path)
	if err != nil {
		return p, err
	}
	return p, r.complete(path, &p)
}

// complete adds checksum and xattrs to what stat said. A file that is written to meanwhile gets the checksum of what was read.
func (r *root) complete(path string, p *present) error {
	if p.Type == Absent || p.mountPoint {
		return nil
	}
	dir, name, err := r.parent(path)
	if err == nil {
		err = completeAt(dir, name, p)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", r.display(path), err)
	}
	return nil
}

func statAt(dir int, name string) (present, error) {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if err := unix.Statx(dir, name, flags, unix.STATX_BASIC_STATS, &st); err != nil {
		return present{}, err
	}
	p := present{
		State:      State{Type: typeOf(uint32(st.Mode)), Mode: uint32(st.Mode) & 0o7777, UID: st.Uid, GID: st.Gid},
		mountPoint: st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
		immutable:  st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0,
		whiteout:   uint32(st.Mode)&unix.S_IFMT == unix.S_IFCHR && st.Rdev_major == 0 && st.Rdev_minor == 0,
	}
	mtime := st.Mtime.Sec*1e9 + int64(st.Mtime.Nsec)
	p.identity = identity{
		dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino, size: int64(st.Size), mtime: mtime,
		mode: uint32(st.Mode), uid: st.Uid, gid: st.Gid,
	}
	if p.Type == Directory {
		p.MTime = mtime
	}
	return p, nil
}

func typeOf(mode uint32) Type {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return Regular
	case unix.S_IFLNK:
		return Symlink
	case unix.S_IFDIR:
		return Directory
	}
	return Other
}

func completeAt(dir int, name string, p *present) (err error) {
	switch p.Type {
	case Regular:
		if p.Checksum, err = checksumAt(dir, name); err != nil {
			return err
		}
	case Symlink:
		target, err := readlinkAt(dir, name)
		if err != nil {
			return err
		}
		p.Checksum = sha256.Sum256([]byte(target))
	case Other:
		return nil
	}
	p.Xattrs, err = readXattrs(beneath.Path(dir, name))
	return err
}

func readlinkAt(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", fmt.Errorf("read the symbolic link: %w", err)
	}
	return string(buf[:n]), nil
}

// openRegular opens a file for reading; what has become something else meanwhile is not read.
func openRegular(dir int, name string) (*os.File, error) {
	fd, err := beneath.Open(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil, errors.New("it is no regular file any more")
	}
	return f, nil
}

func checksumAt(dir int, name string) (ostree.Checksum, error) {
	f, err := openRegular(dir, name)
	if err != nil {
		return ostree.Checksum{}, err
	}
	defer f.Close()
	return checksumOf(f)
}

func checksumOf(r io.Reader) (ostree.Checksum, error) {
	digest := sha256.New()
	if _, err := io.Copy(digest, r); err != nil {
		return ostree.Checksum{}, err
	}
	return ostree.Checksum(digest.Sum(nil)), nil
}

// maxAccounts bounds how much of an account file is read into memory, in bytes.
const maxAccounts = 64 << 20

// readSmall reads a file that is merged by entry.
func readSmall(dir int, name string) ([]byte, error) {
	f, err := openRegular(dir, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxAccounts+1))
	if err == nil && len(content) > maxAccounts {
		err = fmt.Errorf("it has more than %d bytes, which no account file has", maxAccounts)
	}
	return content, err
}

// readXattrs does not follow a symbolic link at the end of path.
func readXattrs(path string) (xattrs []Xattr, err error) {
	err = xattr.Read(path, addTo(&xattrs))
	return xattrs, err
}

// openXattrs reads the xattrs of an open file or directory.
func openXattrs(fd int) (xattrs []Xattr, err error) {
	err = xattr.ReadOpen(fd, addTo(&xattrs))
	return xattrs, err
}

func addTo(xattrs *[]Xattr) func(name string, value []byte) {
	return func(name string, value []byte) { *xattrs = append(*xattrs, Xattr{Name: []byte(name), Value: value}) }
}
