// Package partial puts commits together that are one commit but for some packages, which are as another one has them. Such a commit is like
// any other: it has a tree, a package database, and a checksum. It is made of what the two commits have; what is new in it are directories, dpkg's
// status, or rpm-ostree's list of packages in its metadata, and the account files.
package partial

import (
	"fmt"
	"maps"
	"strings"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/pkgdb"
)

// Wanted is which packages of a target are to be applied, by names or patterns (pkgdb.Closure). At most one of the lists is not empty.
type Wanted struct {
	Packages []string // only these, and what they need
	Exclude  []string // all but these, and what needs to stay with them
}

// IsWhole tells whether all of the target is wanted.
func (w Wanted) IsWhole() bool { return len(w.Packages) == 0 && len(w.Exclude) == 0 }

// About is what a partial commit says of itself.
type About struct {
	Of       ostree.Checksum `json:"of"`       // the target
	Packages []string        `json:"packages"` // that are as in the target, where the rest is as booted
	Without  []string        `json:"without"`  // that are as booted, where the rest is as in the target
}

// String names the packages for people.
func (a About) String() string {
	if len(a.Packages) == 0 {
		return "without " + strings.Join(a.Without, ", ")
	}
	return strings.Join(a.Packages, ", ")
}

// The keys of a partial commit's metadata.
const (
	ofKey       = "liveapply.partial-of"       // s
	packagesKey = "liveapply.partial-packages" // as
	withoutKey  = "liveapply.partial-without"  // as
)

// Of returns what a commit says of itself; nil if it is not partial.
func Of(commit *ostree.Commit) (*About, error) {
	value, found, err := commit.Metadata.Lookup(ofKey)
	if err != nil || !found {
		return nil, err
	}
	text, err := value.Text()
	if err != nil {
		return nil, err
	}
	about := &About{}
	if about.Of, err = ostree.ParseChecksum(text); err != nil {
		return nil, fmt.Errorf("commit %s: its metadata: %s: %w", commit.Checksum, ofKey, err)
	}
	if about.Packages, err = texts(commit, packagesKey); err != nil {
		return nil, err
	}
	about.Without, err = texts(commit, withoutKey)
	return about, err
}

func texts(commit *ostree.Commit, key string) ([]string, error) {
	value, found, err := commit.Metadata.Lookup(key)
	if err != nil || !found {
		return []string{}, err
	}
	return value.Texts()
}

// Draft drafts, in the repo, the commit that has of the target what is wanted, and is as booted otherwise. The same booted commit, target and
// packages give the same commit. Places are those of pkgdb.Read.
func Draft(repo *ostree.Repo, booted, target *ostree.Commit, places []string, wanted Wanted) (ostree.Checksum, error) {
	bootedDB, targetDB, err := pkgdb.ReadBoth(repo, booted, target, places)
	if err != nil {
		return ostree.Checksum{}, err
	}
	base, other, choose, names := side{booted, bootedDB}, side{target, targetDB}, pkgdb.Closure, wanted.Packages
	if len(wanted.Exclude) > 0 {
		base, other, choose, names = other, base, pkgdb.Except, wanted.Exclude
	}
	chosen, err := choose(targetDB, bootedDB, names)
	if err != nil {
		return ostree.Checksum{}, err
	}
	switch nothing := len(chosen.Taken)+len(chosen.Replaced) == 0; {
	case nothing && len(wanted.Exclude) > 0:
		return target.Checksum, nil
	case nothing:
		return ostree.Checksum{}, fmt.Errorf("commit %s has %s as the booted one has: there is nothing to apply", target.Checksum, strings.Join(wanted.Packages, ", "))
	}
	root, err := mix(repo, base, other, target, chosen)
	if err != nil {
		return ostree.Checksum{}, fmt.Errorf("taking packages out of commit %s: %w", target.Checksum, err)
	}
	return repo.DraftCommit(ostree.Commit{
		Parent:    booted.Checksum,
		Subject:   fmt.Sprintf("A part of %s", target.Checksum),
		Timestamp: target.Timestamp,
		Root:      root,
	}, metadata(base, target, wanted, chosen)), nil
}

// side is one of the two commits.
type side struct {
	commit *ostree.Commit
	db     *pkgdb.Database
}

func metadata(base side, target *ostree.Commit, wanted Wanted, chosen pkgdb.Selection) map[string]any {
	key, in, out := packagesKey, chosen.Taken, chosen.Replaced
	if len(wanted.Exclude) > 0 {
		key, in, out = withoutKey, out, in
	}
	all := map[string]any{ofKey: target.Checksum.String(), key: changesOf(in, out)}
	maps.Copy(all, chosen.Metadata(base.db))
	return all
}

// changesOf names packages that come, and those that go without another version of them.
func changesOf(in, out []pkgdb.Package) []string {
	var list []string
	comes := map[string]bool{}
	for _, p := range in {
		comes[p.Name] = true
		list = append(list, p.String())
	}
	for _, p := range out {
		if !comes[p.Name] {
			list = append(list, "the removal of "+p.String())
		}
	}
	return list
}
