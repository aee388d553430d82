package nspawn

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Snapshot is what a directory held at one time: paths relative to it ("." is itself), and what was there.
// It is taken by plain system calls and shares no code with the project, which it judges.
type Snapshot map[string]Entry

// Entry is all that OSTree keeps of a file or directory. Times are not among it.
type Entry struct {
	Mode     uint32 // as st_mode: type and permission bits
	UID, GID uint32
	Rdev     uint64 // of a device
	Size     int64  // of a regular file
	SHA256   string // of a regular file's content
	Target   string // of a symbolic link
	Xattrs   string // name=value, one a line, sorted, quoted
}

// IsDir tells whether it is a directory.
func (e Entry) IsDir() bool { return e.Mode&unix.S_IFMT == unix.S_IFDIR }

func (e Entry) String() string {
	s := fmt.Sprintf("mode %06o owner %d:%d", e.Mode, e.UID, e.GID)
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		s += fmt.Sprintf(" size %d sha256 %.12s", e.Size, e.SHA256)
	case unix.S_IFLNK:
		s += fmt.Sprintf(" -> %q", e.Target)
	case unix.S_IFCHR, unix.S_IFBLK:
		s += fmt.Sprintf(" device %d:%d", unix.Major(e.Rdev), unix.Minor(e.Rdev))
	}
	if e.Xattrs != "" {
		s += " xattrs " + strings.ReplaceAll(e.Xattrs, "\n", " ")
	}
	return s
}

// TakeSnapshot records all that is at and below a directory, across mounts, without following links.
func TakeSnapshot(dir string) (Snapshot, error) {
	s := Snapshot{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		s[relative], err = readEntry(path)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("take a snapshot of %s: %w", dir, err)
	}
	return s, nil
}

func readEntry(path string) (Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Entry{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	e := Entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size = st.Size
		e.SHA256, err = hashFile(path)
	case unix.S_IFLNK:
		e.Target, err = os.Readlink(path)
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Rdev = st.Rdev
	}
	if err != nil {
		return Entry{}, err
	}
	e.Xattrs, err = readXattrs(path)
	return e, err
}

// buffers are for whole files in parts and for extended attributes, which have no more than 64 KiB (XATTR_LIST_MAX, XATTR_SIZE_MAX).
var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

func hashFile(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	buffer := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buffer)
	hash := sha256.New()
	if _, err := io.CopyBuffer(hash, struct{ io.Reader }{file}, buffer[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

func readXattrs(path string) (string, error) {
	names := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(names)
	n, err := unix.Llistxattr(path, names[:])
	if errors.Is(err, unix.EOPNOTSUPP) {
		return "", nil
	}
	if err != nil {
		return "", &fs.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	if n == 0 {
		return "", nil
	}
	var xattrs []string
	value := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(value)
	for _, name := range strings.Split(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		n, err := unix.Lgetxattr(path, name, value[:])
		if err != nil {
			return "", &fs.PathError{Op: "lgetxattr " + name, Path: path, Err: err}
		}
		xattrs = append(xattrs, fmt.Sprintf("%s=%q", name, value[:n]))
	}
	slices.Sort(xattrs)
	return strings.Join(xattrs, "\n"), nil
}

// Without returns the snapshot without some paths and all that is below them.
func (s Snapshot) Without(paths ...string) Snapshot {
	rest := maps.Clone(s)
	maps.DeleteFunc(rest, func(path string, _ Entry) bool {
		return slices.ContainsFunc(paths, func(out string) bool {
			return path == out || strings.HasPrefix(path, out+"/")
		})
	})
	return rest
}

// Diff returns what got has and want has not, and the other way round, one line per difference, sorted by
// path; it is empty if the two are equal.
func Diff(want, got Snapshot) string {
	var lines []string
	for path, w := range want {
		switch g, ok := got[path]; {
		case !ok:
			lines = append(lines, fmt.Sprintf("%q: missing, want %v", path, w))
		case g != w:
			lines = append(lines, fmt.Sprintf("%q:\n\twant %v\n\tgot  %v", path, w, g))
		}
	}
	for path, g := range got {
		if _, ok := want[path]; !ok {
			lines = append(lines, fmt.Sprintf("%q: not wanted, got %v", path, g))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
