package overlay

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/xattr"
)

// EntryKind tells what an overlay has at a path.
type EntryKind string

// The kinds of entries.
const (
	File    EntryKind = "file"
	Link    EntryKind = "symlink"
	Folder  EntryKind = "directory" // one that is only there because the overlay has it, or that hides what was there
	Masked  EntryKind = "mask"
	Special EntryKind = "special" // which the rules refuse
)

// Entry is something that an overlay changes.
type Entry struct {
	Path   string    `json:"path"` // below the root directory, without a slash at the begin
	Kind   EntryKind `json:"kind"`
	Opaque bool      `json:"opaque"`         // of a directory: hides all that is there otherwise
	Mode   uint32    `json:"mode"`           // permission bits
	Size   int64     `json:"size,omitempty"` // of a file, in bytes
	Base   *Base     `json:"base,omitempty"` // what it replaced when it was put there, if that is known
	// Stale: what it replaced is another one now.
	Stale bool `json:"stale"`

	// Privileged: the file gives rights to those who run it.
	Privileged bool `json:"-"`
}

// Entries lists what an overlay changes, by path.
func (p Placed) Entries() ([]Entry, error) {
	if p.Generation == 0 {
		return nil, nil
	}
	manifest, err := p.Store.Manifest(p.Overlay)
	if err != nil {
		return nil, err
	}
	entries, err := listTree(p.Tree(), listing{bases: manifest.Bases, written: p.Writable})
	if err != nil {
		return nil, fmt.Errorf("listing what is in overlay %s: %w", p.Name, err)
	}
	return entries, nil
}

// ListTree lists what is in the tree of a generation. bases, if known, are those of its manifest.
func ListTree(dir string, bases map[string]Base) ([]Entry, error) {
	return listTree(dir, listing{bases: bases})
}

func listTree(dir string, l listing) ([]Entry, error) {
	if err := Walk(dir, l.visit); err != nil {
		return nil, err
	}
	return l.entries, nil
}

type listing struct {
	bases   map[string]Base
	written bool // through a mount
	entries []Entry
}

// visit lists what is a change by itself: a directory that is only on the way to one is not.
func (l *listing) visit(n Node) error {
	entry := Entry{Path: n.Path, Kind: n.Kind(), Opaque: n.Opaque, Mode: n.Stat.Mode & 0o7777}
	if base, known := l.bases[n.Path]; known {
		entry.Base = &base
	}
	switch entry.Kind {
	case Folder:
		isNew, err := l.isNew(n)
		if err != nil || !isNew && entry.Base == nil && !entry.Opaque {
			return err
		}
	case File:
		names, err := xattr.List(n.ProcPath())
		if err != nil {
			return err
		}
		entry.Size = n.Stat.Size
		entry.Privileged = n.Stat.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 || slices.Contains(names, "security.capability")
	}
	l.entries = append(l.entries, entry)
	return nil
}

// isNew tells whether a directory was made through a mount. Those that were there before have their origin noted by overlayfs, all but the topmost.
func (l *listing) isNew(n Node) (bool, error) {
	if !l.written || !strings.Contains(n.Path, "/") {
		return false, nil
	}
	names, err := xattr.List(n.ProcPath())
	return !slices.Contains(names, XattrPrefix+"origin"), err
}

// MarkStale tells of each entry whether what it replaced is another one now.
func MarkStale(entries []Entry, base func(path string) (Base, error)) error {
	for i := range entries {
		e := &entries[i]
		if strings.HasPrefix(e.Path, "run/") || e.Base == nil {
			continue
		}
		now, err := base(e.Path)
		if err != nil {
			return err
		}
		e.Stale = now.Checksum != e.Base.Checksum
	}
	return nil
}
