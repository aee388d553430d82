package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
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

	privileged bool
}

// Entries lists what an overlay changes, by path.
func (p Placed) Entries() ([]Entry, error) {
	entries, err := p.entries()
	if err != nil {
		return nil, fmt.Errorf("overlay %s: %w", p.Name, err)
	}
	return entries, nil
}

func (p Placed) entries() ([]Entry, error) {
	if p.Writable {
		return p.written()
	}
	if p.Generation == 0 {
		return nil, nil
	}
	manifest, err := p.Store.Manifest(p.Overlay)
	if err != nil {
		return nil, err
	}
	return listTree(p.Tree(), "", manifest.Bases)
}

// written lists what was written through a writable overlay. It is not known what that replaced.
func (p Placed) written() ([]Entry, error) {
	return listTree(p.Store.Upper(p.Overlay), "usr", nil)
}

// entries lists a generation that is being made.
func (g *generation) entries() ([]Entry, error) {
	return listTree(filepath.Join(g.dir, treeName), "", g.manifest.Bases)
}

// ListTree lists what is in the tree of a generation.
func ListTree(dir string) ([]Entry, error) { return listTree(dir, "", nil) }

// listTree lists the tree in dir, whose paths get a prefix.
func listTree(dir, prefix string, bases map[string]Base) ([]Entry, error) {
	root, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	l := &listing{bases: bases}
	if err := l.directory(root, prefix); err != nil {
		return nil, err
	}
	return l.entries, nil
}

type listing struct {
	bases   map[string]Base
	entries []Entry
}

func (l *listing) directory(dir *os.File, path string) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := l.entry(dir, name, filepath.Join(path, name)); err != nil {
			return fmt.Errorf("/%s: %w", filepath.Join(path, name), err)
		}
	}
	return nil
}

func (l *listing) entry(dir *os.File, name, path string) error {
	st, err := statAt(dir, name)
	if err != nil || st == nil {
		return err
	}
	entry := Entry{Path: path, Mode: st.Mode & 0o7777}
	if base, known := l.bases[path]; known {
		entry.Base = &base
	}
	switch typeOf(st.Mode) {
	case unix.S_IFREG:
		entry.Kind, entry.Size = File, st.Size
	case unix.S_IFLNK:
		entry.Kind = Link
	case unix.S_IFDIR:
		return l.subdirectory(dir, name, entry)
	default:
		entry.Kind = Special
		if isWhiteout(st) {
			entry.Kind = Masked
		}
	}
	if entry.Kind == File {
		have, err := attributesOf(procPath(dir, name), st)
		if err != nil {
			return err
		}
		entry.privileged = isPrivileged(st, have.xattrs)
	}
	l.entries = append(l.entries, entry)
	return nil
}

// subdirectory lists a directory if it is a change by itself, and what is in it.
func (l *listing) subdirectory(parent *os.File, name string, entry Entry) error {
	dir, err := openDirAt(parent, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if entry.Opaque, err = isOpaque(dir); err != nil {
		return err
	}
	if entry.Base != nil || entry.Opaque {
		entry.Kind = Folder
		l.entries = append(l.entries, entry)
	}
	return l.directory(dir, entry.Path)
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
