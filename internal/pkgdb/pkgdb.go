// Package pkgdb tells which packages a commit has, how two commits differ in them, and which of them need each other.
//
// The packages are read from the objects of a repo, without a checkout: from the list that rpm-ostree puts into a commit's metadata,
// or from dpkg's database in the tree. What the packages of rpm-ostree need and have is read from rpm's database, if it
// is asked for. A commit with neither has files only, which is no error.
package pkgdb

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/liveapply/liveapply/internal/ostree"
)

// Format is whose packages a database has.
type Format string

// The formats. None is that of a commit without a database.
const (
	None Format = ""
	Dpkg Format = "dpkg"
	RPM  Format = "rpm"
)

// Compare orders two full versions by the rules of the format: CompareDpkg or CompareRPM. It must not be None.
func (f Format) Compare(a, b string) int {
	if f == RPM {
		return CompareRPM(a, b)
	}
	return CompareDpkg(a, b)
}

// Package is a package that a tree has.
type Package struct {
	Name string `json:"name"`
	// Version is all of it, as dpkg and rpm-ostree print it: "epoch:version-release", without an epoch that is 0 (rpm) or not there (dpkg).
	Version string `json:"version"`
	Arch    string `json:"arch"`
}

// String returns name, version and architecture, as in "nginx 1.26.3-3 (amd64)".
func (p Package) String() string { return fmt.Sprintf("%s %s (%s)", p.Name, p.Version, p.Arch) }

// compare orders by name and architecture; several versions of one package, which rpm can install side by side, by their text.
func (p Package) compare(q Package) int {
	return cmp.Or(strings.Compare(p.Name, q.Name), strings.Compare(p.Arch, q.Arch), strings.Compare(p.Version, q.Version))
}

// Database is what a commit has. What it holds is shared, and must not be changed.
type Database struct {
	Format   Format
	Source   string    // where it was found: a path in the tree, or a key of the commit's metadata; "" for None
	Packages []Package // sorted by name and architecture

	controls []control // of each of Packages; nil for rpm, see details
	origin   *origin
}

// Directory is the one in the tree that has the database of dpkg; "" if there is none.
func (db *Database) Directory() string {
	if db.Format != Dpkg || db.origin == nil {
		return ""
	}
	return db.origin.admin
}

// control is what else is known of a package. Relations are kept as they are written, and parsed when somebody asks.
type control struct {
	multiArch                                            string // of dpkg
	preDepends, depends, provides, breaks, conflictsWith string // fields of dpkg; of rpm, lines of one relation each
	obsoletes, files                                     string // of rpm: lines
}

// details returns what else is known of each of Packages. Of rpm, whose database is not read before, it is everything but their names.
func (db *Database) details() ([]control, error) {
	if db.Format != RPM {
		return db.controls, nil
	}
	known, err := db.origin.rpm()
	if err != nil {
		return nil, err
	}
	controls := make([]control, len(db.Packages))
	for i, p := range db.Packages {
		controls[i] = known[p]
	}
	return controls, nil
}

// sortPackages puts packages, and controls beside them, in order. No package may be there twice.
func (db *Database) sortPackages() error {
	order := make([]int, len(db.Packages))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return db.Packages[i].compare(db.Packages[j]) })
	packages, controls := make([]Package, len(order)), make([]control, len(db.controls))
	for to, from := range order {
		packages[to] = db.Packages[from]
		if len(controls) > 0 {
			controls[to] = db.controls[from]
		}
		if to > 0 && packages[to] == packages[to-1] {
			return fmt.Errorf("it has the package %s twice", packages[to])
		}
	}
	db.Packages, db.controls = packages, controls
	return nil
}

// Read reads the packages of a commit. Places are paths in the tree where a dpkg database may be, before the ones that are known: a
// directory such as /var/lib/dpkg, or a file such as /var/lib/dpkg/status. Where a place has none, the next one is tried.
// A commit without any has a Database of the format None; one that cannot be read whole is an error that names it.
//
// The repo must stay open for Files.
func Read(repo *ostree.Repo, commit *ostree.Commit, places []string) (*Database, error) {
	found, err := find(repo, commit, places)
	if err != nil {
		return nil, err
	}
	return found.read()
}

// ReadBoth reads the packages of two commits; a database that both have is read once.
func ReadBoth(repo *ostree.Repo, old, new *ostree.Commit, places []string) (oldDB, newDB *Database, err error) {
	foundOld, err := find(repo, old, places)
	if err != nil {
		return nil, nil, err
	}
	foundNew, err := find(repo, new, places)
	if err != nil {
		return nil, nil, err
	}
	if oldDB, err = foundOld.read(); err != nil {
		return nil, nil, err
	}
	if foundOld.sameContent(foundNew) {
		shared := *oldDB
		shared.Source, shared.origin = foundNew.name, foundNew
		return oldDB, &shared, nil
	}
	newDB, err = foundNew.read()
	return oldDB, newDB, err
}
