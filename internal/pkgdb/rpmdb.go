package pkgdb

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	_ "github.com/glebarez/go-sqlite" // the driver of go-rpmdb
	rpmdb "github.com/knqyf263/go-rpmdb/pkg"
	"github.com/liveapply/liveapply/internal/ostree"
)

// rpmdbs are where rpm's own database is. rpm-ostree puts it into the first, with a link at the other.
var rpmdbs = []string{"usr/share/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/rpmdb.sqlite"}

// maxRPMDB bounds the size of rpm's database, in bytes. With 2000 packages it has 100 MB.
const maxRPMDB = 512 << 20

// findRPMDB returns where the tree has rpm's database, and its file; KindNone if it has none.
func (o *origin) findRPMDB() (name string, entry ostree.Entry, err error) {
	for _, name := range rpmdbs {
		if entry, err := o.lookup(name); err != nil || entry.Kind == ostree.KindFile {
			return name, entry, err
		}
	}
	return "", ostree.Entry{}, nil
}

// readRPMDB returns the packages of rpm's database, and the files of each. Keys that rpm keeps as packages (gpg-pubkey) are left
// out, as in rpm-ostree's list.
func (o *origin) readRPMDB() (map[Package][]string, error) {
	name, entry, err := o.findRPMDB()
	if err != nil {
		return nil, err
	}
	if entry.Kind != ostree.KindFile {
		return nil, errors.New("the tree has no database of rpm")
	}
	infos, err := o.rpmInfos(entry.Checksum)
	if err != nil {
		return nil, fmt.Errorf("rpm's database %s: %w", name, err)
	}
	packages := map[Package][]string{}
	for _, info := range infos {
		if info.Name == "gpg-pubkey" {
			continue
		}
		p := packageOf(info)
		if err := p.check(); err != nil {
			return nil, err
		}
		if packages[p], err = info.InstalledFileNames(); err != nil {
			return nil, fmt.Errorf("the files of %s: %w", p, err)
		}
	}
	return packages, nil
}

func packageOf(info *rpmdb.PackageInfo) Package {
	p := Package{Name: info.Name, Version: info.Version + "-" + info.Release, Arch: info.Arch}
	if info.Epoch != nil && *info.Epoch != 0 {
		p.Version = strconv.Itoa(*info.Epoch) + ":" + p.Version
	}
	return p
}

// rpmInfos reads a copy: SQLite writes files beside what it opens.
func (o *origin) rpmInfos(c ostree.Checksum) (infos []*rpmdb.PackageInfo, err error) {
	content, err := o.repo.ReadFile(c, maxRPMDB)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "liveapply-rpmdb-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "rpmdb.sqlite")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return nil, err
	}
	if infos, err = listPackages(file); err != nil {
		return nil, err
	}
	// go-rpmdb takes a database that ends early for one with fewer packages.
	if n, err := countPackages(file); err != nil || n != len(infos) {
		return nil, errors.Join(err, fmt.Errorf("%d packages can be read of %d", len(infos), n))
	}
	return infos, nil
}

// listPackages is rpmdb's, whose parser trusts the lengths and offsets in headers.
func listPackages(file string) (infos []*rpmdb.PackageInfo, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("a header is damaged: %v", r)
		}
	}()
	db, err := rpmdb.Open(file)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	return db.ListPackages()
}

func countPackages(file string) (n int, err error) {
	db, err := sql.Open("sqlite", file)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.QueryRow("SELECT count(*) FROM Packages").Scan(&n)
	return n, err
}

// readOwnRPMDB reads the packages of a commit in whose metadata no list is: one that was imported from a container image.
func (db *Database) readOwnRPMDB() error {
	packages, err := db.origin.rpmPackages()
	for p := range packages {
		db.Packages = append(db.Packages, p)
	}
	return err
}
