package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
)

// node is something in a tree.
type node struct {
	path   string
	st     *unix.Stat_t
	opaque bool // of a directory

	dir  *os.File // that has it
	name string
}

// walk visits all that is in a tree, by name, each directory before what is in it. The root is not visited, nor is what describes the tree to systemd.
func walk(dir string, visit func(node) error) error {
	root, err := beneath.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return walkDir(root, "", visit)
}

func walkDir(dir *os.File, path string, visit func(node) error) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		n := node{path: filepath.Join(path, name), dir: dir, name: name}
		if isExtensionRelease(n.path) {
			continue
		}
		if err := n.walk(visit); err != nil {
			return fmt.Errorf("/%s: %w", n.path, err)
		}
	}
	return nil
}

func (n node) walk(visit func(node) error) (err error) {
	if n.st, err = beneath.Stat(n.dir, n.name); err != nil || n.st == nil {
		return err
	}
	if n.kind() != Folder {
		return visit(n)
	}
	sub, err := beneath.OpenDir(n.dir, n.name)
	if err != nil {
		return err
	}
	defer sub.Close()
	if n.opaque, err = isOpaque(sub); err != nil {
		return err
	}
	if err := visit(n); err != nil {
		return err
	}
	return walkDir(sub, n.path, visit)
}

func (n node) kind() EntryKind {
	switch {
	case typeOf(n.st.Mode) == unix.S_IFREG:
		return File
	case typeOf(n.st.Mode) == unix.S_IFLNK:
		return Link
	case typeOf(n.st.Mode) == unix.S_IFDIR:
		return Folder
	case isWhiteout(n.st):
		return Masked
	}
	return Special
}

func (n node) attributes() (attributes, error) {
	return attributesOf(beneath.Path(int(n.dir.Fd()), n.name), n.st)
}
