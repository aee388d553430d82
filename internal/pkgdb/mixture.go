package pkgdb

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/liveapply/liveapply/internal/ostree"
)

// Status returns the content of dpkg's status file for the mixture of two databases: the stanzas of base, but for those that are replaced, and
// those of what is taken from other. It fails where the database is not one file, or is in another place in other.
func (s Selection) Status(base, other *Database) ([]byte, error) {
	if base.Source != other.Source || base.origin.status.Kind == ostree.KindNone {
		return nil, fmt.Errorf("the package databases %s and %s cannot be put together: both must be one status file, in one place", base.Source, other.Source)
	}
	type block struct{ name, lines string }
	var blocks []block
	taken := map[string]bool{}
	for _, p := range s.Taken {
		taken[p.Name] = true
	}
	add := func(db *Database, keep func(name string, p Package, installed bool) bool) error {
		return db.eachStanza(func(s *stanza, lines string) error {
			p, installed, err := s.parse()
			if name := s.values[packageField]; err == nil && s.begun && keep(name, p, installed) {
				blocks = append(blocks, block{name, strings.TrimRight(lines, "\n")})
			}
			return err
		})
	}
	err := add(base, func(name string, p Package, installed bool) bool {
		return installed && !slices.Contains(s.Replaced, p) || !installed && !taken[name]
	})
	if err != nil {
		return nil, err
	}
	err = add(other, func(_ string, p Package, installed bool) bool { return installed && slices.Contains(s.Taken, p) })
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(blocks, func(a, b block) int { return strings.Compare(a.name, b.name) })
	var text strings.Builder
	for _, b := range blocks {
		text.WriteString(b.lines + "\n\n")
	}
	return []byte(text.String()), nil
}

func (db *Database) eachStanza(call func(s *stanza, lines string) error) error {
	data, err := db.origin.repo.ReadFile(db.origin.status.Checksum, maxStatus)
	if err != nil {
		return err
	}
	return eachStanza(string(data), false, call)
}

// Admin returns the directory of the database in the tree.
func (db *Database) Admin() string { return db.origin.admin }

// AdminName returns which package a file in the database's directory is about, by its path: "info/<package>.list", "status.d/<package>". It is empty
// for the others.
func (db *Database) AdminName(name string) string {
	rest, ok := strings.CutPrefix(name, db.origin.admin+"/")
	dir, file := path.Split(rest)
	switch {
	case !ok:
		return ""
	case dir == "status.d/":
		return strings.TrimSuffix(file, ".md5sums")
	case dir == "info/":
		bare, _, _ := strings.Cut(strings.TrimSuffix(file, path.Ext(file)), ":")
		return bare
	}
	return ""
}

// InTree returns where the tree has what is at an absolute path of the running system: "usr/etc/x" for /etc/x, "usr/lib/x" for /lib/x, if /lib is a link.
func (db *Database) InTree(name string) (string, error) {
	inTree, err := db.pathsInTree()
	if err != nil {
		return "", err
	}
	return inTree(name), nil
}

func (db *Database) pathsInTree() (func(name string) string, error) {
	renames, err := db.origin.renames()
	return func(name string) string { return renames.inTree(Package{}, name) }, err
}
