package ostree

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// XattrNames returns the names of a file object's xattrs, sorted: one system call when it has none.
func (r *Repo) XattrNames(c Checksum) ([]string, error) {
	names, err := listXattrs(r.procPath(c))
	if err != nil {
		return nil, r.objectError(c, fileSuffix, err)
	}
	return names, nil
}

// procPath names a file object for the calls that take no directory descriptor (the *xattrat ones are in
// Linux 6.13 and later only).
func (r *Repo) procPath(c Checksum) string {
	return "/proc/self/fd/" + strconv.Itoa(r.fd) + "/" + r.FilePath(c)
}

func (r *Repo) fileXattrs(c Checksum) ([]Xattr, error) {
	path := r.procPath(c)
	names, err := listXattrs(path)
	if err != nil {
		return nil, err
	}
	var xattrs []Xattr
	for _, name := range names {
		value, err := getXattr(path, name)
		if errors.Is(err, unix.ENODATA) {
			continue // listed, but not to be had: libostree leaves such out, too
		}
		if err != nil {
			return nil, err
		}
		xattrs = append(xattrs, Xattr{Name: name, Value: value})
	}
	return xattrs, nil
}

// listXattrs does not follow a symbolic link. A file system without xattrs has none.
func listXattrs(path string) ([]string, error) {
	data, err := growing(func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	if len(data) == 0 {
		return nil, nil
	}
	names := strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
	slices.Sort(names)
	return names, nil
}

func getXattr(path, name string) ([]byte, error) {
	value, err := growing(func(buf []byte) (int, error) { return unix.Lgetxattr(path, name, buf) })
	if err != nil {
		return nil, fmt.Errorf("read xattr %s: %w", name, err)
	}
	return value, nil
}

// maxXattr is the largest value or list of names that Linux has (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const maxXattr = 65536

// growing calls read with a small buffer, and with the largest that can be needed if that was too small.
func growing(read func([]byte) (int, error)) ([]byte, error) {
	var small [256]byte
	n, err := read(small[:])
	if err == nil {
		return bytes.Clone(small[:n]), nil
	}
	if !errors.Is(err, unix.ERANGE) {
		return nil, err
	}
	large := make([]byte, maxXattr)
	if n, err = read(large); err != nil {
		return nil, err
	}
	return bytes.Clone(large[:n]), nil
}
