package ostree

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// Entry returns what the directory has under a name; KindNone if nothing.
func (t *Dirtree) Entry(name string) Entry {
	if i, ok := slices.BinarySearchFunc(t.Files, name, func(f FileEntry, name string) int { return strings.Compare(f.Name, name) }); ok {
		return Entry{Kind: KindFile, Checksum: t.Files[i].Checksum}
	}
	if i, ok := slices.BinarySearchFunc(t.Dirs, name, func(d DirEntry, name string) int { return strings.Compare(d.Name, name) }); ok {
		return t.Dirs[i].Tree.Entry()
	}
	return Entry{}
}

// Lookup returns what a tree has at a path such as "usr/lib/os-release"; "" is the tree itself. It follows no
// symbolic link, also none on the way. What is not there is an error that satisfies errors.Is(err,
// fs.ErrNotExist).
func (r *Repo) Lookup(t Tree, path string) (Entry, error) {
	entry := t.Entry()
	if entry.Kind == KindNone {
		return Entry{}, fmt.Errorf("look up %q in a tree that does not exist: %w", path, fs.ErrNotExist)
	}
	if path == "" {
		return entry, nil
	}
	for name := range strings.SplitSeq(path, "/") {
		if err := checkName(name); err != nil {
			return Entry{}, fmt.Errorf("look up %q in a tree: %w", path, err)
		}
		if entry.Kind != KindDirectory {
			return Entry{}, fmt.Errorf("look up %q in a tree: what comes before %q is not a directory: %w", path, name, fs.ErrNotExist)
		}
		dirtree, err := r.Dirtree(entry.Checksum)
		if err != nil {
			return Entry{}, fmt.Errorf("look up %q in a tree: %w", path, err)
		}
		if entry = dirtree.Entry(name); entry.Kind == KindNone {
			return Entry{}, fmt.Errorf("look up %q in a tree: there is no %q: %w", path, name, fs.ErrNotExist)
		}
	}
	return entry, nil
}
