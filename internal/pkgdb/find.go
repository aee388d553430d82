package pkgdb

import (
	"bytes"
	"fmt"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/gvariant"
	"github.com/liveapply/liveapply/internal/ostree"
)

// known are the directories in which builders of Debian-based OSTree systems leave dpkg's database. /var is not updated with the system, so they
// move it to /usr; one that is in both is read from /usr.
var known = []string{
	"usr/lib/sysimage/dpkg",   // bootc images of Debian and Ubuntu
	"usr/share/dpkg/database", // deb-ostree-builder (Endless), apt-ostree (Wind River)
	"usr/share/dpkg/db",
	"usr/lib/dpkg-db", // deepin, UOS
	"usr/lib/dpkg",
	"usr/share/dpkg",
	"var/lib/dpkg", // apt2ostree, and whoever leaves it in place
}

// maxStatus bounds the size of a status file, a list of files, and a symbolic link's file, in bytes. Debian with everything
// in it would have 200 MB; an installation with 5000 packages has 6 MB.
const maxStatus = 64 << 20

// origin is where a commit has its database.
type origin struct {
	repo     *ostree.Repo
	commit   *ostree.Commit
	dirtrees sync.Map // Checksum → *ostree.Dirtree, read so far: all places are below a few directories
	renames  func() (renames, error)
	rpm      func() (map[Package]control, error)

	name    string         // how messages call it; "" if there is none
	pkglist gvariant.Value // of rpm-ostree, if it has a type
	status  ostree.Entry   // of dpkg: the status file
	parts   ostree.Entry   // of dpkg: the directory status.d, with a file for each package
	admin   string         // of dpkg: the directory with all of the database
}

func find(repo *ostree.Repo, commit *ostree.Commit, places []string) (*origin, error) {
	o := &origin{repo: repo, commit: commit}
	o.renames, o.rpm = sync.OnceValues(o.readRenames), sync.OnceValues(o.readRPM)
	pkglist, found, err := commit.Metadata.Lookup(pkglistKey)
	if err != nil {
		return nil, fmt.Errorf("commit %s: its metadata: %w", commit.Checksum, err)
	}
	if found {
		o.name, o.pkglist = pkglistKey, pkglist
		return o, nil
	}
	for _, place := range append(places[:len(places):len(places)], known...) {
		if err := o.try(strings.TrimPrefix(path.Clean("/"+place), "/")); err != nil {
			return nil, fmt.Errorf("commit %s: look for a package database at /%s: %w", commit.Checksum, place, err)
		}
		if o.name != "" {
			break
		}
	}
	return o, nil
}

// try looks for a database at a path in the tree. Symbolic links are not followed: the one that stands where the database was
// moved away from leads to another place that is known.
func (o *origin) try(place string) error {
	entry, err := o.lookup(place)
	if err != nil {
		return err
	}
	switch {
	case entry.Kind == ostree.KindFile:
		return o.use(path.Dir(place), place, entry, ostree.Entry{})
	case entry.Kind == ostree.KindDirectory && path.Base(place) == "status.d":
		return o.use(path.Dir(place), place, ostree.Entry{}, entry)
	case entry.Kind == ostree.KindDirectory:
		return o.tryDirectory(place)
	}
	return nil
}

func (o *origin) tryDirectory(admin string) error {
	status, err := o.lookup(path.Join(admin, "status"))
	if err != nil {
		return err
	}
	parts, err := o.lookup(path.Join(admin, "status.d"))
	if err != nil {
		return err
	}
	name := path.Join(admin, "status")
	if status.Kind != ostree.KindFile {
		name, status = path.Join(admin, "status.d"), ostree.Entry{}
	}
	if parts.Kind != ostree.KindDirectory {
		parts = ostree.Entry{}
	}
	return o.use(admin, name, status, parts)
}

func (o *origin) use(admin, name string, status, parts ostree.Entry) error {
	if status.Kind == ostree.KindFile {
		file, err := o.repo.File(status.Checksum)
		if err != nil {
			return err
		}
		if file.Mode&unix.S_IFMT != unix.S_IFREG {
			status = ostree.Entry{}
		}
	}
	if status.Kind == ostree.KindNone && parts.Kind == ostree.KindNone {
		return nil
	}
	o.name, o.admin, o.status, o.parts = name, admin, status, parts
	return nil
}

// lookup returns what the commit's tree has at a path, KindNone if nothing. Unlike Repo.Lookup it tells that apart from a directory
// whose object is missing in the repo.
func (o *origin) lookup(name string) (ostree.Entry, error) {
	entry := o.commit.Root.Entry()
	for part := range strings.SplitSeq(name, "/") {
		if entry.Kind != ostree.KindDirectory {
			return ostree.Entry{}, nil
		}
		dirtree, err := o.dirtree(entry)
		if err != nil {
			return ostree.Entry{}, err
		}
		entry = dirtree.Entry(part)
	}
	return entry, nil
}

func (o *origin) dirtree(entry ostree.Entry) (*ostree.Dirtree, error) {
	if known, ok := o.dirtrees.Load(entry.Checksum); ok {
		return known.(*ostree.Dirtree), nil
	}
	dirtree, err := o.repo.Dirtree(entry.Checksum)
	if err == nil {
		o.dirtrees.Store(entry.Checksum, dirtree)
	}
	return dirtree, err
}

// sameContent tells whether two commits have the same packages, without a look at them.
func (o *origin) sameContent(p *origin) bool {
	return o.status == p.status && o.parts == p.parts && o.pkglist.Type() == p.pkglist.Type() && bytes.Equal(o.pkglist.Data(), p.pkglist.Data())
}

func (o *origin) read() (*Database, error) {
	db := &Database{Source: o.name, origin: o}
	var err error
	switch {
	case o.name == "":
		return db, nil
	case o.name == pkglistKey:
		db.Format = RPM
		err = db.readPkglist(o.pkglist)
	default:
		db.Format = Dpkg
		err = db.readStatus()
	}
	if err == nil {
		err = db.sortPackages()
	}
	if err != nil {
		return nil, fmt.Errorf("commit %s: its package database %s is damaged: %w", o.commit.Checksum, o.name, err)
	}
	return db, nil
}
