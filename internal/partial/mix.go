package partial

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/liveapply/liveapply/internal/ostree"
)

// mixer makes a tree that is base, but for the paths that follow other. Only directories that differ are opened.
type mixer struct {
	repo *ostree.Repo
	// follows tells whether a path at which the trees differ, and which is a directory in neither, is to be as in other; unless it is known
	// whose it is, it goes with the directory that it is in, if only one tree has that.
	follows func(path string, base, other ostree.Entry, withDirectory bool) (bool, error)
	// goes tells whether a directory that only one of the trees has is to be as in other.
	goes func(path string) bool
	// made is what is as in neither, by path.
	made map[string]ostree.Entry
}

// directory mixes the contents of two directories at a path, of which one may be missing, and returns the dirtree's checksum, zero if there is
// nothing in it.
func (m *mixer) directory(path string, base, other ostree.Tree, withDirectory bool) (ostree.Checksum, error) {
	baseTree, err := m.read(base)
	if err != nil {
		return ostree.Checksum{}, err
	}
	otherTree, err := m.read(other)
	if err != nil {
		return ostree.Checksum{}, err
	}
	mixed := &ostree.Dirtree{}
	for _, name := range names(baseTree, otherTree) {
		entry, err := m.entry(filepath.Join(path, name), baseTree.Entry(name), otherTree.Entry(name), withDirectory)
		if err != nil {
			return ostree.Checksum{}, err
		}
		switch entry.Kind {
		case ostree.KindFile:
			mixed.Files = append(mixed.Files, ostree.FileEntry{Name: name, Checksum: entry.Checksum})
		case ostree.KindDirectory:
			mixed.Dirs = append(mixed.Dirs, ostree.DirEntry{Name: name, Tree: entry.Tree()})
		}
	}
	switch {
	case len(mixed.Files)+len(mixed.Dirs) == 0:
		return ostree.Checksum{}, nil
	case equal(mixed, baseTree):
		return base.Contents, nil
	case equal(mixed, otherTree):
		return other.Contents, nil
	}
	return m.repo.DraftDirtree(mixed), nil
}

// entry mixes what two directories have under one name.
func (m *mixer) entry(path string, base, other ostree.Entry, withDirectory bool) (ostree.Entry, error) {
	if made, ok := m.made[path]; ok {
		return made, nil
	}
	switch isBase, isOther := base.Kind == ostree.KindDirectory, other.Kind == ostree.KindDirectory; {
	case base == other:
		return base, nil
	case isBase && isOther:
		contents, err := m.contents(path, base, other, false)
		return ostree.Entry{Kind: ostree.KindDirectory, Checksum: contents, Meta: base.Meta}, err
	case isBase || isOther:
		return m.oneDirectory(path, base, other, withDirectory)
	}
	follows, err := m.follows(path, base, other, withDirectory)
	if follows {
		return other, err
	}
	return base, err
}

// contents is directory, for one that stays also if nothing is in it.
func (m *mixer) contents(path string, base, other ostree.Entry, withDirectory bool) (ostree.Checksum, error) {
	contents, err := m.directory(path, base.Tree(), other.Tree(), withDirectory)
	if err == nil && contents.IsZero() {
		contents = m.repo.DraftDirtree(&ostree.Dirtree{})
	}
	return contents, err
}

// oneDirectory mixes a directory with nothing, or with a file.
func (m *mixer) oneDirectory(path string, base, other ostree.Entry, withDirectory bool) (ostree.Entry, error) {
	follows, err := m.goes(path), error(nil)
	if base.Kind == ostree.KindFile || other.Kind == ostree.KindFile {
		follows, err = m.follows(path, base, other, withDirectory)
	}
	if err != nil {
		return ostree.Entry{}, err
	}
	chosen, rejected := base, other
	if follows {
		chosen, rejected = other, base
	}
	if chosen.Kind == ostree.KindDirectory {
		contents, err := m.contents(path, base, other, follows)
		return ostree.Entry{Kind: ostree.KindDirectory, Checksum: contents, Meta: chosen.Meta}, err
	}
	contents, err := m.directory(path, base.Tree(), other.Tree(), follows)
	switch {
	case err != nil:
		return ostree.Entry{}, err
	case contents.IsZero():
		return chosen, nil
	case chosen.Kind == ostree.KindFile:
		return ostree.Entry{}, fmt.Errorf("/%s is a directory in one commit and a file in the other, and both would be needed", path)
	}
	// The directory would not be there, but for what else is in it.
	return ostree.Entry{Kind: ostree.KindDirectory, Checksum: contents, Meta: rejected.Meta}, nil
}

func (m *mixer) read(tree ostree.Tree) (*ostree.Dirtree, error) {
	if tree.IsZero() {
		return &ostree.Dirtree{}, nil
	}
	return m.repo.Dirtree(tree.Contents)
}

func equal(a, b *ostree.Dirtree) bool {
	return slices.Equal(a.Files, b.Files) && slices.Equal(a.Dirs, b.Dirs)
}

// names lists what either directory has, in order.
func names(trees ...*ostree.Dirtree) []string {
	var list []string
	for _, tree := range trees {
		for _, file := range tree.Files {
			list = append(list, file.Name)
		}
		for _, dir := range tree.Dirs {
			list = append(list, dir.Name)
		}
	}
	slices.SortFunc(list, strings.Compare)
	return slices.Compact(list)
}
