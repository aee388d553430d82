package ostree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/gvariant"
	"github.com/liveapply/liveapply/internal/inode"
)

// Kind tells what a tree has at a path.
type Kind uint8

// The kinds of entries. A file is everything that is not a directory: a regular file or a symbolic link,
// which only the file object tells apart.
const (
	KindNone Kind = iota
	KindFile
	KindDirectory
)

// Tree is a directory: its dirtree (what is in it) and its dirmeta (what it is). The zero value means that it
// does not exist.
type Tree struct{ Contents, Meta Checksum }

// IsZero tells whether t stands for a directory that does not exist.
func (t Tree) IsZero() bool { return t == Tree{} }

// Entry returns the directory as an entry; that of the zero value has KindNone.
func (t Tree) Entry() Entry {
	if t.IsZero() {
		return Entry{}
	}
	return Entry{Kind: KindDirectory, Checksum: t.Contents, Meta: t.Meta}
}

// Entry is what a tree has at a path. Two entries are the same file, or the same directory with all below it,
// exactly if they are ==. The zero value means nothing is there.
type Entry struct {
	Kind     Kind
	Checksum Checksum // the file object of a file, the dirtree of a directory
	Meta     Checksum // the dirmeta of a directory
}

// Tree returns the directory that e stands for, or the zero Tree when e is not a directory.
func (e Entry) Tree() Tree {
	if e.Kind != KindDirectory {
		return Tree{}
	}
	return Tree{Contents: e.Checksum, Meta: e.Meta}
}

// FileEntry is a file in a directory.
type FileEntry struct {
	Name     string
	Checksum Checksum
}

// DirEntry is a directory in a directory.
type DirEntry struct {
	Name string
	Tree Tree
}

// Dirtree is what a directory contains. Each list is sorted bytewise by name, no name occurs twice, and each
// is one that a file system takes: UTF-8, not empty, not "." or "..", without "/" and NUL.
type Dirtree struct {
	Files []FileEntry
	Dirs  []DirEntry
}

// Xattr is an extended attribute, with its full name ("user.x", "security.capability").
type Xattr struct {
	Name  string
	Value []byte
}

func eachXattr(xattrs []Xattr) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for _, xattr := range xattrs {
			if !yield(xattr.Name, xattr.Value) {
				return
			}
		}
	}
}

// Attributes are those of a file.
func (f *File) Attributes() inode.Attributes {
	return inode.Attributes{UID: f.UID, GID: f.GID, Mode: f.Mode, Xattrs: eachXattr(f.Xattrs)}
}

// Attributes are those of a directory.
func (d *Dirmeta) Attributes() inode.Attributes {
	return inode.Attributes{UID: d.UID, GID: d.GID, Mode: d.Mode, Xattrs: eachXattr(d.Xattrs)}
}

// Dirmeta is what a directory is. Mode includes S_IFDIR. Xattrs are sorted by name.
type Dirmeta struct {
	UID, GID, Mode uint32
	Xattrs         []Xattr
}

// The types of the objects, as in ostree-core.h. Their numbers are big endian whatever the machine.
const (
	dirtreeSuffix = ".dirtree"
	dirtreeType   = "(a(say)a(sayay))"
	dirmetaSuffix = ".dirmeta"
	dirmetaType   = "(uuua(ayay))"
)

// Dirtree reads a dirtree object. An error that satisfies errors.Is(err, fs.ErrNotExist) means that it is not
// in the repo.
func (r *Repo) Dirtree(c Checksum) (*Dirtree, error) {
	value, err := r.metadata(c, dirtreeSuffix, dirtreeType)
	if err != nil {
		return nil, err
	}
	tree, err := parseDirtree(value)
	if err != nil {
		return nil, r.objectError(c, dirtreeSuffix, err)
	}
	return tree, nil
}

// Dirmeta reads a dirmeta object, once for each checksum; callers share the result and must not change it. An
// error that satisfies errors.Is(err, fs.ErrNotExist) means that it is not in the repo.
func (r *Repo) Dirmeta(c Checksum) (*Dirmeta, error) {
	if known, ok := r.dirmetas.Load(c); ok {
		return known.(*Dirmeta), nil
	}
	value, err := r.metadata(c, dirmetaSuffix, dirmetaType)
	if err != nil {
		return nil, err
	}
	meta, err := parseDirmeta(value)
	if err != nil {
		return nil, r.objectError(c, dirmetaSuffix, err)
	}
	r.dirmetas.Store(c, meta)
	return meta, nil
}

// parseDirtree is stricter than ostree_validate_structureof_dirtree, which leaves the order alone: a name
// that occurs twice would make a tree mean two things.
func parseDirtree(v gvariant.Value) (*Dirtree, error) {
	var lists [2]gvariant.Value
	err := v.Members(lists[:])
	if err != nil {
		return nil, err
	}
	tree := &Dirtree{}
	if tree.Files, err = parseEntries(lists[0], parseFileEntry); err != nil {
		return nil, err
	}
	if tree.Dirs, err = parseEntries(lists[1], parseDirEntry); err != nil {
		return nil, err
	}
	return tree, tree.check()
}

func parseEntries[E any](v gvariant.Value, parse func(gvariant.Value) (E, error)) ([]E, error) {
	n, err := v.Len()
	if err != nil {
		return nil, err
	}
	// An array can claim an element for every 3 bytes of it; a good one takes 16 bytes or more for each.
	entries := make([]E, 0, min(n, len(v.Data())/16))
	for child, err := range v.Children() {
		if err != nil {
			return nil, err
		}
		entry, err := parse(child)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry)
	}
	return entries, nil
}

func parseFileEntry(v gvariant.Value) (entry FileEntry, err error) {
	var members [2]gvariant.Value
	if err := v.Members(members[:]); err != nil {
		return FileEntry{}, err
	}
	if entry.Name, err = members[0].Text(); err != nil {
		return FileEntry{}, err
	}
	entry.Checksum, err = checksumOf(members[1])
	return entry, err
}

func parseDirEntry(v gvariant.Value) (entry DirEntry, err error) {
	var members [3]gvariant.Value
	if err := v.Members(members[:]); err != nil {
		return DirEntry{}, err
	}
	if entry.Name, err = members[0].Text(); err != nil {
		return DirEntry{}, err
	}
	entry.Tree, err = treeOf(members[1], members[2])
	return entry, err
}

// check walks both lists as one sorted list.
func (t *Dirtree) check() error {
	for i, file := range t.Files {
		if err := checkName(file.Name); err != nil {
			return err
		}
		if i > 0 && t.Files[i-1].Name >= file.Name {
			return fmt.Errorf("file entry %q is not sorted after %q", file.Name, t.Files[i-1].Name)
		}
	}
	next := 0
	for i, dir := range t.Dirs {
		if err := checkName(dir.Name); err != nil {
			return err
		}
		if i > 0 && t.Dirs[i-1].Name >= dir.Name {
			return fmt.Errorf("directory entry %q is not sorted after %q", dir.Name, t.Dirs[i-1].Name)
		}
		for next < len(t.Files) && t.Files[next].Name < dir.Name {
			next++
		}
		if next < len(t.Files) && t.Files[next].Name == dir.Name {
			return fmt.Errorf("entry %q is both a file and a directory", dir.Name)
		}
	}
	return nil
}

// checkName refuses what must not be a name in a directory (libostree: ot_util_filename_validate). That it is
// UTF-8 without NUL was checked with the GVariant.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("an entry has an empty name")
	case name == "." || name == "..":
		return fmt.Errorf("an entry is named %q", name)
	case strings.Contains(name, "/"):
		return fmt.Errorf("entry %q has a slash in its name", name)
	}
	return nil
}

func parseDirmeta(v gvariant.Value) (*Dirmeta, error) {
	var members [4]gvariant.Value
	if err := v.Members(members[:]); err != nil {
		return nil, err
	}
	var meta Dirmeta
	var err error
	for i, field := range []*uint32{&meta.UID, &meta.GID, &meta.Mode} {
		if *field, err = members[i].Uint32(binary.BigEndian); err != nil {
			return nil, err
		}
	}
	if meta.Mode&unix.S_IFMT != unix.S_IFDIR || meta.Mode&^(unix.S_IFMT|0o7777) != 0 {
		return nil, fmt.Errorf("mode %#o is not that of a directory", meta.Mode)
	}
	meta.Xattrs, err = parseXattrs(members[3])
	return &meta, err
}

// parseXattrs reads an a(ayay): names that end in NUL, and values. The rules are those of
// _ostree_validate_structureof_xattrs.
func parseXattrs(v gvariant.Value) ([]Xattr, error) {
	xattrs, err := parseEntries(v, parseXattr)
	if err != nil {
		return nil, err
	}
	for i := 1; i < len(xattrs); i++ {
		if xattrs[i-1].Name >= xattrs[i].Name {
			return nil, fmt.Errorf("xattr %q is not sorted after %q", xattrs[i].Name, xattrs[i-1].Name)
		}
	}
	return xattrs, nil
}

func parseXattr(v gvariant.Value) (Xattr, error) {
	var members [2]gvariant.Value
	if err := v.Members(members[:]); err != nil {
		return Xattr{}, err
	}
	data, err := members[0].Bytes()
	if err != nil {
		return Xattr{}, err
	}
	name, ok := strings.CutSuffix(string(data), "\x00")
	if !ok || name == "" || strings.Contains(name, "\x00") {
		return Xattr{}, fmt.Errorf("xattr name %q is empty or does not end in its only NUL", data)
	}
	value, err := members[1].Bytes()
	return Xattr{Name: name, Value: value}, err
}
