package pkgdb

import (
	"fmt"

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

// parseNEVRA reads one of the list. An epoch of 0 is not shown, as in _rpm_ostree_package_new_from_variant.
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
	name, epoch, version, release, arch := text[0], text[1], text[2], text[3], text[4]
	p := Package{Name: name, Version: version + "-" + release, Arch: arch}
	if epoch != "" && epoch != "0" {
		p.Version = epoch + ":" + p.Version
	}
	if version == "" || release == "" {
		return Package{}, fmt.Errorf("package %.64q has version %.64q and release %.64q", name, version, release)
	}
	return p, p.check()
}
