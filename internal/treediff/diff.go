// Package treediff tells what differs between two trees of an OSTree repo.
//
// Dirtrees form a Merkle tree: two directories with one checksum are equal with everything below them, so the
// cost grows with what differs, not with the trees.
package treediff

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/liveapply/liveapply/internal/ostree"
)

// Change is a path at which two trees differ.
type Change struct {
	Path     string       // relative to the compared trees, without a leading slash; "" is the trees themselves
	Old, New ostree.Entry // never equal; KindNone where one tree has nothing
}

// Source reads dirtrees. *ostree.Repo is one. It must be safe for concurrent use.
type Source interface {
	Dirtree(ostree.Checksum) (*ostree.Dirtree, error)
}

// maxPath bounds the paths in a tree, in bytes, and so its depth: PATH_MAX on Linux, with the NUL.
const maxPath = 4096

// maxChanges bounds the length of a diff. A few small dirtrees that each name the next one twice unfold to
// more entries than any memory holds.
const maxChanges = 1 << 21

// Diff returns every path at which the trees differ, in tree pre-order: a directory comes before what is in
// it, siblings are sorted bytewise by name. A zero Tree does not exist.
//
// A directory whose dirtree or dirmeta differs is itself in the list, so each path's parent is in front of
// it. Everything in an added directory is listed with a zero Old, everything in a removed one with a zero
// New; where a file became a directory, or the reverse, one Change has both and the content of the directory
// follows. Equal directories are not opened.
func Diff(ctx context.Context, src Source, old, new ostree.Tree) ([]Change, error) {
	if old == new {
		return nil, nil
	}
	changes := []Change{{Old: old.Entry(), New: new.Entry()}}
	if old.Contents == new.Contents {
		return changes, nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	w := &walk{ctx: ctx, src: src, group: group}
	root := &part{}
	group.Go(func() error { return w.compare(root, "", old, new) })
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("compare trees: %w", err)
	}
	return root.appendTo(slices.Grow(changes, int(w.count.Load()))), nil
}

// walk is one Diff under way.
type walk struct {
	ctx   context.Context
	src   Source
	group *errgroup.Group
	count atomic.Int64
}

// part is what differs in one directory. The parts form a tree, so that directories can be read in any order.
type part struct {
	changes []Change
	below   []*part // for each of changes: what differs below it, nil if that needs no look
}

// compare fills in what differs between the contents of two directories at path.
func (w *walk) compare(p *part, path string, old, new ostree.Tree) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	oldTree, err := w.read(path, old)
	if err != nil {
		return err
	}
	newTree, err := w.read(path, new)
	if err != nil {
		return err
	}
	if err := p.fill(path, oldTree, newTree); err != nil {
		return err
	}
	if w.count.Add(int64(len(p.changes))) > maxChanges {
		return fmt.Errorf("more than %d paths differ", maxChanges)
	}
	return w.descend(p)
}

// descend compares the directories among the changes: the last one here, which is all there is to do on the
// way to a single change, the others on another goroutine when one is free.
func (w *walk) descend(p *part) error {
	var here func() error
	for i, change := range p.changes {
		old, new := change.Old.Tree(), change.New.Tree()
		if old.Contents == new.Contents {
			continue // two files, or a directory of which only the dirmeta differs
		}
		if here != nil && !w.group.TryGo(here) {
			if err := here(); err != nil {
				return err
			}
		}
		below := &part{}
		p.below[i] = below
		here = func() error { return w.compare(below, change.Path, old, new) }
	}
	if here == nil {
		return nil
	}
	return here()
}

func (w *walk) read(path string, t ostree.Tree) (*ostree.Dirtree, error) {
	if t.IsZero() {
		return &ostree.Dirtree{}, nil
	}
	dirtree, err := w.src.Dirtree(t.Contents)
	if err != nil {
		return nil, fmt.Errorf("directory %q: %w", "/"+path, err)
	}
	return dirtree, nil
}

// fill merges the two sorted lists of entries.
func (p *part) fill(path string, old, new *ostree.Dirtree) error {
	left, right := cursor{dirtree: old}, cursor{dirtree: new}
	for {
		name, ok := earlier(&left, &right)
		if !ok {
			break
		}
		change := Change{Old: left.take(name), New: right.take(name)}
		if change.Old == change.New {
			continue
		}
		if len(path)+1+len(name) >= maxPath {
			return fmt.Errorf("directory %.64q…: the path of %q in it has %d bytes or more: no Linux path can name it", "/"+path, name, maxPath)
		}
		change.Path = filepath.Join(path, name)
		p.changes = append(p.changes, change)
	}
	p.below = make([]*part, len(p.changes))
	return nil
}

func (p *part) appendTo(changes []Change) []Change {
	for i, change := range p.changes {
		changes = append(changes, change)
		if below := p.below[i]; below != nil {
			changes = below.appendTo(changes)
		}
	}
	return changes
}

// cursor walks over a dirtree's files and directories as one sorted list.
type cursor struct {
	dirtree   *ostree.Dirtree
	file, dir int // what comes next
}

func (c *cursor) name() (string, bool) {
	files, dirs := c.dirtree.Files[c.file:], c.dirtree.Dirs[c.dir:]
	switch {
	case len(files) == 0 && len(dirs) == 0:
		return "", false
	case len(dirs) == 0 || len(files) > 0 && files[0].Name < dirs[0].Name:
		return files[0].Name, true
	}
	return dirs[0].Name, true
}

// take returns the entry of the given name and moves on, if it comes next; otherwise there is none.
func (c *cursor) take(name string) ostree.Entry {
	if files := c.dirtree.Files[c.file:]; len(files) > 0 && files[0].Name == name {
		c.file++
		return ostree.Entry{Kind: ostree.KindFile, Checksum: files[0].Checksum}
	}
	if dirs := c.dirtree.Dirs[c.dir:]; len(dirs) > 0 && dirs[0].Name == name {
		c.dir++
		return dirs[0].Tree.Entry()
	}
	return ostree.Entry{}
}

// earlier returns the first name that either cursor has next.
func earlier(left, right *cursor) (string, bool) {
	l, okLeft := left.name()
	r, okRight := right.name()
	if okLeft && (!okRight || l < r) {
		return l, true
	}
	return r, okRight
}

// Below tells whether a path is below a directory. Everything is below "", the root, but not "" itself.
func Below(path, dir string) bool {
	if dir == "" {
		return path != ""
	}
	return len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}

// Within tells whether a path is a directory, or below it.
func Within(path, dir string) bool { return path == dir || Below(path, dir) }
