package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// What Linux takes at most: NAME_MAX, PATH_MAX with the NUL at its end, and, of xattr(7), XATTR_NAME_MAX, XATTR_SIZE_MAX and
// XATTR_LIST_MAX.
const (
	maxName      = 255
	maxPath      = 4095
	maxXattrName = 255
	maxXattr     = 65536
	maxXattrList = 65536
)

var errTruncated = fmt.Errorf("it is truncated: %w", io.ErrUnexpectedEOF)

// reader hands entries to the sink, if they keep the rules.
type reader struct {
	ctx    context.Context
	limits Limits
	left   Limits // of limits
	sink   func(Entry) error
	kinds  map[string]uint32 // the type (S_IFMT) of each path that the sink has
}

// entry checks an entry, whose Path and Link are as the image names them, and hands it on. With it, its content is read.
func (r *reader) entry(e Entry) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if err := r.take(e); err != nil {
		return fmt.Errorf("entry %.256q: %w", e.Path, err)
	}
	return nil
}

func (r *reader) take(e Entry) (err error) {
	if e.Path, err = clean(e.Path); err != nil {
		return err
	}
	if e.Path == "" {
		if e.Mode&unix.S_IFMT != unix.S_IFDIR {
			return errors.New("the root of the image is no directory")
		}
		return nil
	}
	if e.Link != "" {
		if e, err = r.link(e); err != nil {
			return err
		}
	}
	if err := e.check(); err != nil {
		return err
	}
	if err := r.parents(e); err != nil {
		return err
	}
	if before, repeated := r.kinds[e.Path]; repeated && (!isDir(before) || !isDir(e.Mode)) {
		return fmt.Errorf("it is there twice, first as a %s, then as a %s", kindName(before), kindName(e.Mode))
	}
	return r.hand(e)
}

// link makes of an entry that is a hard link what is known about the entry that it leads to.
func (r *reader) link(e Entry) (Entry, error) {
	to, err := clean(e.Link)
	if err != nil {
		return e, fmt.Errorf("it is a hard link to %.256q: %w", e.Link, err)
	}
	kind := r.kinds[to]
	if kind != unix.S_IFREG && kind != unix.S_IFLNK {
		return e, fmt.Errorf("it is a hard link to %.256q, which is no file that came before in the image", e.Link)
	}
	return Entry{Path: e.Path, Link: to, Mode: kind | e.Mode&0o7777, ModTime: e.ModTime}, nil
}

// parents sees to it that what the entry is in is a directory.
func (r *reader) parents(e Entry) error {
	for at := range len(e.Path) {
		if e.Path[at] != '/' {
			continue
		}
		parent := e.Path[:at]
		kind, known := r.kinds[parent]
		if known && !isDir(kind) {
			return fmt.Errorf("%.256q, which it lies below, is a %s in the image", parent, kindName(kind))
		}
		if known {
			continue
		}
		if err := r.hand(Entry{Path: parent, Mode: unix.S_IFDIR | 0o755, ModTime: e.ModTime}); err != nil {
			return err
		}
	}
	return nil
}

// hand gives an entry to the sink, and reads what the sink has left of its content.
func (r *reader) hand(e Entry) error {
	if err := r.spend(e); err != nil {
		return err
	}
	r.kinds[e.Path] = e.Mode & unix.S_IFMT
	if e.Content == nil {
		return r.sink(e)
	}
	rest := &content{ctx: r.ctx, from: e.Content, left: e.Size}
	e.Content = rest
	if err := r.sink(e); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, rest)
	return err
}

func (r *reader) spend(e Entry) error {
	if r.left.Entries--; r.left.Entries < 0 {
		return fmt.Errorf("the image has more than %d entries, which is the limit", r.limits.Entries)
	}
	size := int64(len(e.Path) + len(e.Target))
	for name, value := range e.Xattrs {
		size += int64(len(name) + len(value))
	}
	if e.Size > r.left.Bytes-size {
		return r.tooLarge()
	}
	r.left.Bytes -= size + e.Size
	return nil
}

func (r *reader) tooLarge() error {
	return fmt.Errorf("the image unpacks to more than %d bytes, which is the limit", r.limits.Bytes)
}

// clean makes the path of an entry from its name in the image: "" for the root.
func clean(name string) (string, error) {
	switch {
	case name == "":
		return "", errors.New("it has no name")
	case len(name) > maxPath:
		return "", fmt.Errorf("its name has %d bytes, more than the %d that Linux takes", len(name), maxPath)
	case strings.Contains(name, "\x00"):
		return "", errors.New("its name has a NUL byte")
	case name[0] == '/':
		return "", errors.New("its name is absolute")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errors.New(`its name has ".."`)
		}
		if len(part) > maxName {
			return "", fmt.Errorf("its name has a part of %d bytes, more than the %d that Linux takes", len(part), maxName)
		}
	}
	if name = path.Clean(name); name == "." {
		return "", nil
	}
	return name, nil
}

// check tells what is wrong with an entry by itself.
func (e Entry) check() error {
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
	case unix.S_IFLNK:
		if err := e.checkTarget(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("it is a %s: an image has only directories, files and links", kindName(e.Mode))
	}
	if e.Mode > math.MaxUint16 {
		return fmt.Errorf("its mode is %#o", e.Mode)
	}
	if e.Size < 0 {
		return fmt.Errorf("its size is negative: %d", e.Size)
	}
	if e.UID == math.MaxUint32 || e.GID == math.MaxUint32 {
		return fmt.Errorf("its owner is %d:%d, and nobody has that number", e.UID, e.GID)
	}
	return e.checkXattrs()
}

func (e Entry) checkTarget() error {
	switch {
	case e.Link != "":
		return nil // the target is that of the entry it leads to
	case e.Target == "":
		return errors.New("it is a symbolic link to nothing")
	case len(e.Target) > maxPath:
		return fmt.Errorf("it is a symbolic link to a name of %d bytes, more than the %d that Linux takes", len(e.Target), maxPath)
	case strings.Contains(e.Target, "\x00"):
		return errors.New("it is a symbolic link to a name with a NUL byte")
	}
	return nil
}

func (e Entry) checkXattrs() error {
	list := 0
	for name, value := range e.Xattrs {
		switch {
		case strings.HasPrefix(name, "trusted.overlay."):
			return fmt.Errorf("it has the xattr %.256q, which overlayfs would obey", name)
		case !isKeptXattr(name):
			return fmt.Errorf("it has the xattr %.256q, which is none of user.*, security.* and trusted.*", name)
		case len(name) > maxXattrName || strings.Contains(name, "\x00"):
			return fmt.Errorf("it has the xattr %.256q, a name that Linux does not take", name)
		case len(value) > maxXattr:
			return fmt.Errorf("its xattr %q has %d bytes, more than the %d that Linux takes", name, len(value), maxXattr)
		}
		list += len(name) + 1
	}
	if list > maxXattrList {
		return fmt.Errorf("the names of its xattrs have %d bytes together, more than the %d that Linux takes", list, maxXattrList)
	}
	return nil
}

// isKeptXattr is about ACLs, too: without one, the permissions of its group would be wider than they are with it.
func isKeptXattr(name string) bool {
	for _, prefix := range []string{"user.", "security.", "trusted."} {
		if len(name) > len(prefix) && strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

func isDir(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFDIR }

func kindName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "device node"
	case unix.S_IFIFO:
		return "FIFO"
	case unix.S_IFSOCK:
		return "socket"
	}
	return fmt.Sprintf("thing of an unknown type (mode %#o)", mode)
}

// content is what is left of a file's content. If the image has less, that is an error.
type content struct {
	ctx  context.Context
	from io.Reader
	left int64
}

func (c *content) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	if c.left == 0 {
		return 0, io.EOF
	}
	n, err := c.from.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if c.left > 0 && (err == io.EOF || err == io.ErrUnexpectedEOF) {
		return n, errTruncated
	}
	if err == io.EOF {
		err = nil
	}
	return n, err
}
