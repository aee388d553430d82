package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
)

// XattrPrefix starts the names of the xattrs by which overlayfs keeps its own notes.
const XattrPrefix = "trusted.overlay."

// Node is something in a tree.
type Node struct {
	Path   string // in the tree
	Stat   *unix.Stat_t
	Opaque bool // of a directory: hides all that lower layers have in it

	dir  *os.File // that has it, open while it is visited
	name string
}

// Walk visits all that is in a tree, by name, each directory before what is in it. The root is not visited, nor is what describes the tree to systemd.
func Walk(dir string, visit func(Node) error) error {
	root, err := beneath.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return walkDir(root, "", visit)
}

func walkDir(dir *os.File, path string, visit func(Node) error) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		n := Node{Path: filepath.Join(path, name), dir: dir, name: name}
		if isExtensionRelease(n.Path) {
			continue
		}
		if err := n.walk(visit); err != nil {
			return fmt.Errorf("/%s: %w", n.Path, err)
		}
	}
	return nil
}

func (n Node) walk(visit func(Node) error) (err error) {
	if n.Stat, err = beneath.Stat(n.dir, n.name); err != nil || n.Stat == nil {
		return err
	}
	if n.Kind() != Folder {
		return visit(n)
	}
	sub, err := beneath.OpenDir(n.dir, n.name)
	if err != nil {
		return err
	}
	defer sub.Close()
	if n.Opaque, err = IsOpaque(sub); err != nil {
		return err
	}
	if err := visit(n); err != nil {
		return err
	}
	return walkDir(sub, n.Path, visit)
}

// Kind tells what it is.
func (n Node) Kind() EntryKind {
	switch n.Stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return File
	case unix.S_IFLNK:
		return Link
	case unix.S_IFDIR:
		return Folder
	}
	if IsWhiteout(n.Stat) {
		return Masked
	}
	return Special
}

// ProcPath names it, while it is visited, for calls that take a path and do not follow a link at its end.
func (n Node) ProcPath() string { return beneath.Path(int(n.dir.Fd()), n.name) }

// IsWhiteout tells the mark by which overlayfs hides a path of a lower layer.
func IsWhiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// IsOpaque tells whether a directory hides all that lower layers have in it.
func IsOpaque(dir *os.File) (bool, error) {
	value := make([]byte, 1)
	n, err := unix.Fgetxattr(int(dir.Fd()), XattrPrefix+"opaque", value)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	if err != nil && !errors.Is(err, unix.ERANGE) {
		return false, err
	}
	return n == 1 && value[0] == 'y', nil
}
