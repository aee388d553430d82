// Package xattr reads the extended attributes of files.
package xattr

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// List returns the names of the xattrs that path itself has, not what a symbolic link there leads to, sorted: one system call
// when it has none. A file system without xattrs has none.
func List(path string) ([]string, error) { return atPath(path).names() }

// Read calls add with each xattr that path itself has, by name. One that is listed, but not to be had, is left out, as libostree
// does.
func Read(path string, add func(name string, value []byte)) error { return atPath(path).read(add) }

// ReadOpen is Read of an open file or directory.
func ReadOpen(fd int, add func(name string, value []byte)) error { return ofOpen(fd).read(add) }

// source is where xattrs come from: the two calls, which return how much they wrote.
type source struct {
	list func(buf []byte) (int, error)
	get  func(name string, buf []byte) (int, error)
}

func atPath(path string) source {
	return source{
		list: func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) },
		get:  func(name string, buf []byte) (int, error) { return unix.Lgetxattr(path, name, buf) },
	}
}

func ofOpen(fd int) source {
	return source{
		list: func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) },
		get:  func(name string, buf []byte) (int, error) { return unix.Fgetxattr(fd, name, buf) },
	}
}

func (s source) names() ([]string, error) {
	data, err := growing(s.list)
	if errors.Is(err, unix.EOPNOTSUPP) || err == nil && len(data) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	names := strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
	slices.Sort(names)
	return names, nil
}

func (s source) read(add func(name string, value []byte)) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		value, err := growing(func(buf []byte) (int, error) { return s.get(name, buf) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read xattr %q: %w", name, err)
		}
		add(name, value)
	}
	return nil
}

// largest is the largest value or list of names that Linux has (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const largest = 65536

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
	large := make([]byte, largest)
	if n, err = read(large); err != nil {
		return nil, err
	}
	return bytes.Clone(large[:n]), nil
}
