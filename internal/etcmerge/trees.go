package etcmerge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/liveapply/liveapply/internal/accounts"
)

// The xattrs by which overlayfs keeps its own notes: Documentation/filesystems/overlayfs.rst in Linux.
const (
	overlayXattrs = "trusted.overlay."
	opaqueXattr   = overlayXattrs + "opaque"
)

// elsewhereXattrs tell that what is at a path is in another layer, or has another name there: a tree that stands alone has none.
var elsewhereXattrs = []string{overlayXattrs + "metacopy", overlayXattrs + "redirect"}

// layered is what trees in overlayfs layer format have at a path, all together.
type layered struct {
	State
	trees  []*root             // topmost first; of a directory, all those that are merged
	opaque bool                // of a directory: it hides what /etc has in it
	below  map[string]*layered // of a directory
}

// isMask tells whether the path is to disappear.
func (l *layered) isMask() bool { return l.Type == Absent }

func (l *layered) close() {
	for _, tree := range l.trees {
		tree.close()
	}
}

// readTrees reads what trees have, topmost first. The trees stay open until close.
func readTrees(ctx context.Context, paths []string) (*layered, error) {
	all := &layered{State: State{Type: Directory}}
	for _, path := range paths {
		tree, err := openRoot(path, path)
		if err == nil {
			all.trees = append(all.trees, tree)
			err = checkRoot(tree)
		}
		if err != nil {
			all.close()
			return nil, err
		}
	}
	if err := all.read(ctx, ""); err != nil {
		all.close()
		return nil, err
	}
	return all, nil
}

func checkRoot(tree *root) error {
	top, err := entryOf(tree, "")
	if err == nil && top.opaque {
		err = fmt.Errorf("%s is opaque, so it would hide everything that the system has there: mask what is to disappear, path by path", tree.name)
	}
	return err
}

// read adds what is in a directory.
func (l *layered) read(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.below = map[string]*layered{}
	for _, tree := range l.trees {
		names, err := tree.names(path)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := l.add(tree, path, name); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l.below)) {
		entry := l.below[name]
		if entry.Type != Directory {
			continue
		}
		if err := entry.read(ctx, filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

// add adds what a tree has, below what those above it have.
func (l *layered) add(tree *root, dir, name string) error {
	entry, err := entryOf(tree, filepath.Join(dir, name))
	if err != nil {
		return err
	}
	above := l.below[name]
	switch {
	case above == nil:
		l.below[name] = entry
	case above.Type != Directory || above.opaque:
		// hidden
	case entry.Type != Directory:
		above.opaque = true
	default:
		above.trees = append(above.trees, tree)
		above.opaque = entry.opaque
	}
	return nil
}

// entryOf reads one path of one tree.
func entryOf(tree *root, path string) (*layered, error) {
	if err := checkEntry(path); err != nil {
		return nil, fmt.Errorf("%s: %w", tree.display(path), err)
	}
	p, err := tree.stat(path)
	if err != nil {
		return nil, err
	}
	entry := &layered{trees: []*root{tree}}
	switch {
	case p.mountPoint:
		return nil, fmt.Errorf("%s: something is mounted there", tree.display(path))
	case p.whiteout:
		return entry, nil
	case p.Type == Absent:
		return nil, fmt.Errorf("%s: %w", tree.display(path), errChanged)
	case p.Type == Other:
		return nil, fmt.Errorf("%s is neither a file, a symbolic link, nor a directory", tree.display(path))
	}
	if err := tree.complete(path, &p); err != nil {
		return nil, err
	}
	for _, name := range elsewhereXattrs {
		if _, ok := p.xattr(name); ok {
			return nil, fmt.Errorf("%s has the xattr %s: its content is in another layer", tree.display(path), name)
		}
	}
	value, _ := p.xattr(opaqueXattr)
	entry.opaque = string(value) == "y"
	entry.State = p.State
	entry.MTime = 0
	entry.Xattrs = slices.DeleteFunc(entry.Xattrs, func(x Xattr) bool { return bytes.HasPrefix(x.Name, []byte(overlayXattrs)) })
	return entry, nil
}

// checkEntry refuses what cannot be put, by its name.
func checkEntry(path string) error {
	if IsAccounts(path) {
		return errors.New("users and groups cannot be changed by a file in place of this one: use sysusers.d(5)")
	}
	if !utf8.ValidString(path) {
		return errors.New("its name is not in UTF-8")
	}
	return nil
}

// IsAccounts tells whether a path relative to /etc is an account database, or the copy that the tools keep of one: what a tree cannot have.
func IsAccounts(path string) bool { return accounts.Is(strings.TrimSuffix(path, "-")) }
