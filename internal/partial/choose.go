package partial

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/accounts"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/pkgdb"
)

// choice tells for each path whose it is.
//
// What no package has was made when the commit was: it goes with a directory, if that is only in one commit; a link goes with what it leads to, such
// as those of `systemctl enable` and update-alternatives(1); the bytecode of Python with its source; a file of the package database with the package
// it is about. What systemd-tmpfiles and systemd-sysusers make accounts and /var of is as in the target: like the accounts, it may be needed, and is only
// added to what there is. All other such files stay as in base: indexes over the files of many packages, for example.
type choice struct {
	repo        *ostree.Repo
	base, other side
	target      *ostree.Commit  // of base or other
	names       map[string]bool // of packages that follow
	follow      map[string]bool // paths of packages that follow other
	stay        map[string]bool // paths of packages that differ, and stay as in base
}

// mix makes the tree that is base, but for a selection of other's packages.
func mix(repo *ostree.Repo, base, other side, target *ostree.Commit, chosen pkgdb.Selection) (ostree.Tree, error) {
	c := &choice{repo: repo, base: base, other: other, target: target, names: map[string]bool{}}
	if err := c.readFiles(chosen); err != nil {
		return ostree.Tree{}, err
	}
	made, err := c.accounts()
	if err != nil {
		return ostree.Tree{}, err
	}
	if err := c.database(chosen, made); err != nil {
		return ostree.Tree{}, err
	}
	m := &mixer{repo: repo, follows: c.follows, goes: c.goes, made: made}
	from, to := base.commit.Root, other.commit.Root
	contents, err := m.directory("", from, to, false)
	return ostree.Tree{Contents: contents, Meta: from.Meta}, err
}

// readFiles reads which paths belong to the packages in which the commits differ.
func (c *choice) readFiles(chosen pkgdb.Selection) error {
	inBase, inOther := setOf(c.base.db.Packages), setOf(c.other.db.Packages)
	taken, replaced := setOf(chosen.Taken), setOf(chosen.Replaced)
	c.follow, c.stay = map[string]bool{}, map[string]bool{}
	read := func(of side, elsewhere, follows map[pkgdb.Package]bool) error {
		for _, p := range of.db.Packages {
			if elsewhere[p] && !follows[p] {
				continue // the same in both
			}
			files, err := of.db.Files(p)
			if err != nil {
				return err
			}
			into := c.stay
			if follows[p] {
				into, c.names[p.Name] = c.follow, true
			}
			for _, file := range files {
				into[file] = true
			}
		}
		return nil
	}
	return errors.Join(read(c.base, inOther, replaced), read(c.other, inBase, taken))
}

func setOf(packages []pkgdb.Package) map[pkgdb.Package]bool {
	set := map[pkgdb.Package]bool{}
	for _, p := range packages {
		set[p] = true
	}
	return set
}

// goes tells whether a directory that only one commit has follows other.
func (c *choice) goes(name string) bool {
	if !c.follow[name] && !c.stay[name] && makesState(name) {
		return c.other.commit == c.target
	}
	return c.follow[name] && !c.stay[name]
}

// makesState tells whether accounts, or files outside of /usr, are made of a file.
func makesState(name string) bool {
	for _, dir := range []string{"usr/lib/tmpfiles.d", "usr/lib/sysusers.d", "usr/share/factory"} {
		if _, ok := strings.CutPrefix(name, dir+"/"); ok || name == dir {
			return true
		}
	}
	return false
}

func (c *choice) follows(name string, base, other ostree.Entry, withDirectory bool) (bool, error) {
	if c.follow[name] || c.stay[name] {
		return c.follow[name], nil
	}
	if source := sourceOf(name); c.follow[source] || c.stay[source] {
		return c.follow[source], nil
	}
	if of := c.other.db.AdminName(name); of != "" {
		return c.names[of], nil
	}
	if makesState(name) {
		return c.other.commit == c.target, nil
	}
	leads, err := c.leadsToFollowing(c.other, name, other)
	if err == nil && !leads {
		leads, err = c.leadsToFollowing(c.base, name, base)
	}
	return leads || withDirectory, err
}

var bytecode = regexp.MustCompile(`^(.*/)__pycache__/([^/.]+)\.[^/]*\.pyc$`)

// sourceOf returns the path of the file that Python has compiled to another; "" if it is not such a one.
func sourceOf(name string) string {
	parts := bytecode.FindStringSubmatch(name)
	if parts == nil {
		return ""
	}
	return parts[1] + parts[2] + ".py"
}

// maxLinks is how many links a path may lead through, as on Linux.
const maxLinks = 40

// leadsToFollowing tells whether what one of the commits has at a path is a link that leads to a file that follows.
func (c *choice) leadsToFollowing(in side, name string, entry ostree.Entry) (bool, error) {
	for range maxLinks {
		if entry.Kind != ostree.KindFile {
			return false, nil
		}
		file, err := c.repo.File(entry.Checksum)
		if err != nil || file.Mode&unix.S_IFMT != unix.S_IFLNK {
			return false, err
		}
		target := file.Target
		if !path.IsAbs(target) {
			target = path.Join("/", path.Dir(runtimePath(name)), target)
		}
		if name, err = in.db.InTree(target); err != nil || c.follow[name] || c.stay[name] {
			return c.follow[name], err
		}
		entry, err = c.repo.Lookup(in.commit.Root, name)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// runtimePath is where the running system has a path of the tree.
func runtimePath(name string) string {
	if rest, ok := strings.CutPrefix(name, etcTree); ok {
		return "/etc/" + rest
	}
	return "/" + name
}

// etcTree is where a tree has what becomes /etc.
const etcTree = "usr/etc/"

// accountTrees are where a tree has account files: what becomes /etc, and the files of nss-altfiles, in which rpm-ostree has those of its packages.
var accountTrees = []string{etcTree, "usr/lib/"}

// accounts drafts account files that have the accounts of both commits: whose they are is not known, and a service may need its own.
func (c *choice) accounts() (map[string]ostree.Entry, error) {
	made := map[string]ostree.Entry{}
	for _, dir := range accountTrees {
		if err := c.accountsIn(dir, made); err != nil {
			return nil, err
		}
	}
	return made, nil
}

func (c *choice) accountsIn(dir string, made map[string]ostree.Entry) error {
	ours, theirs := map[string][]byte{}, map[string][]byte{}
	for _, name := range accounts.Files() {
		var err error
		if ours[name], err = c.readAccounts(c.base, dir+name); err != nil {
			return err
		}
		if theirs[name], err = c.readAccounts(c.other, dir+name); err != nil {
			return err
		}
	}
	merged, err := etcmerge.AddAccounts(ours, theirs)
	if err != nil {
		return fmt.Errorf("accounts in /%s: %w", dir, err)
	}
	for name, content := range merged {
		if made[dir+name], err = c.remake(c.base, dir+name, content); err != nil {
			return err
		}
	}
	return nil
}

// maxAccounts bounds the size of an account file, in bytes.
const maxAccounts = 16 << 20

// readAccounts returns the content of an account file, nil if the commit has none.
func (c *choice) readAccounts(of side, name string) ([]byte, error) {
	entry, err := c.repo.Lookup(of.commit.Root, name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && entry.Kind != ostree.KindFile {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return c.repo.ReadFile(entry.Checksum, maxAccounts)
}

// database adds the package database of the mixture. That of rpm stays as in base: what its program says of packages is what base has.
func (c *choice) database(chosen pkgdb.Selection, made map[string]ostree.Entry) error {
	if c.base.db.Format == pkgdb.RPM {
		return c.keepRPM(made)
	}
	content, err := chosen.Status(c.base.db, c.other.db)
	if err != nil {
		return err
	}
	made[c.base.db.Source], err = c.remake(c.base, c.base.db.Source, content)
	return err
}

func (c *choice) keepRPM(made map[string]ostree.Entry) error {
	for _, dir := range pkgdb.RPMDirectories() {
		entry, err := c.repo.Lookup(c.base.commit.Root, dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		made[dir] = entry
	}
	return nil
}

// remake drafts a file with other content.
func (c *choice) remake(of side, name string, content []byte) (ostree.Entry, error) {
	entry, err := c.repo.Lookup(of.commit.Root, name)
	if err != nil {
		return ostree.Entry{}, err
	}
	file, err := c.repo.File(entry.Checksum)
	if err != nil {
		return ostree.Entry{}, err
	}
	return ostree.Entry{Kind: ostree.KindFile, Checksum: c.repo.DraftFile(*file, content)}, nil
}
