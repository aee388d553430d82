package pkgdb

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/liveapply/liveapply/internal/gvariant"
)

// pkglistKey is where rpm-ostree writes the packages of a commit, of a compose as of a client layer: an a(sssss) of name, epoch,
// version, release and architecture, of all that is in the tree (rpmostree_variant_pkgs_from_sack). What else a client layer has,
// rpmostree.packages, is only what was asked for.
const (
	pkglistKey  = "rpmostree.rpmdb.pkglist"
	pkglistType = "a(sssss)"
)

func (db *Database) readPkglist(v gvariant.Value) error {
	if v.Type() != pkglistType {
		return fmt.Errorf("it has type %.64q, not %q", v.Type(), pkglistType)
	}
	for child, err := range v.Children() {
		if err != nil {
			return err
		}
		p, err := parseNEVRA(child)
		if err != nil {
			return err
		}
		db.Packages = append(db.Packages, p)
	}
	return nil
}

// parseNEVRA reads one of the list.
func parseNEVRA(v gvariant.Value) (Package, error) {
	var members [5]gvariant.Value
	if err := v.Members(members[:]); err != nil {
		return Package{}, err
	}
	var text [5]string
	for i, member := range members {
		var err error
		if text[i], err = member.Text(); err != nil {
			return Package{}, err
		}
	}
	return newRPM(text)
}

// newRPM returns the package of a name, epoch, version, release and architecture. An epoch of 0 is not shown, as in
// _rpm_ostree_package_new_from_variant.
func newRPM(nevra [5]string) (Package, error) {
	name, epoch, version, release, arch := nevra[0], nevra[1], nevra[2], nevra[3], nevra[4]
	p := Package{Name: name, Version: version + "-" + release, Arch: arch}
	if epoch != "" && epoch != "0" {
		p.Version = epoch + ":" + p.Version
	}
	if version == "" || release == "" {
		return Package{}, fmt.Errorf("package %.64q has version %.64q and release %.64q", name, version, release)
	}
	return p, p.check()
}

// nevra is what newRPM makes a package of.
func (p Package) nevra() [5]string {
	epoch, version, release := splitRPM(p.Version)
	return [5]string{p.Name, cmp.Or(epoch, "0"), version, strings.TrimPrefix(release, "-"), p.Arch}
}

// Metadata returns what the metadata of a commit with the mixture of two databases must say of its packages, for DraftCommit: the list of
// rpm-ostree, if base has one.
func (s Selection) Metadata(base *Database) map[string]any {
	if base.Format != RPM {
		return nil
	}
	packages := slices.Clone(s.Taken)
	for _, p := range base.Packages {
		if !slices.Contains(s.Replaced, p) {
			packages = append(packages, p)
		}
	}
	slices.SortFunc(packages, Package.compare)
	list := make([][5]string, len(packages))
	for i, p := range packages {
		list[i] = p.nevra()
	}
	return map[string]any{pkglistKey: list}
}
