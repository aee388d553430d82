package pkgdb

import "slices"

// Difference is what it means for the packages to go from one commit to another. Its lists are sorted by name and architecture.
//
// In JSON, lists that are empty are [], and a package is an object of three strings:
//
//	{"format": "dpkg" | "rpm" | "",
//	 "added": [{"name", "version", "arch"}…], "removed": [{"name", "version", "arch"}…],
//	 "upgraded": [{"old": {"name", "version", "arch"}, "new": {"name", "version", "arch"}}…], "downgraded": [{"old", "new"}…]}
type Difference struct {
	// Format is that of both databases. It is None, and the lists say nothing, if a commit has no database or the two have not one format:
	// then only the files tell what changes.
	Format     Format    `json:"format"`
	Added      []Package `json:"added"`
	Removed    []Package `json:"removed"`
	Upgraded   []Change  `json:"upgraded"`
	Downgraded []Change  `json:"downgraded"`
}

// Change is a package that stays, in another version or for another architecture.
type Change struct {
	Old Package `json:"old"`
	New Package `json:"new"`
}

// Empty tells whether all packages stay as they are, as far as is known: see Format.
func (d Difference) Empty() bool {
	return len(d.Added)+len(d.Removed)+len(d.Upgraded)+len(d.Downgraded) == 0
}

// Diff tells what differs between two databases. Packages of one name for several architectures are packages of their own, unless there is
// one on either side: then it has changed its architecture (as in rpm-ostree's _rpm_ostree_diff_package_lists). What has changed, but
// has a version that is no older, is upgraded.
func Diff(old, new *Database) Difference {
	d := Difference{Added: []Package{}, Removed: []Package{}, Upgraded: []Change{}, Downgraded: []Change{}}
	if old.Format != new.Format {
		return d
	}
	d.Format = old.Format
	if old.origin != nil && new.origin != nil && old.origin.sameContent(new.origin) {
		return d
	}
	left, right := old.Packages, new.Packages
	for len(left) > 0 || len(right) > 0 {
		name := firstName(left, right)
		var oldOnes, newOnes []Package
		oldOnes, left = cutName(left, name)
		newOnes, right = cutName(right, name)
		d.compareName(oldOnes, newOnes)
	}
	return d
}

// firstName returns the name that comes first in two sorted lists, which are not both empty.
func firstName(left, right []Package) string {
	if len(right) == 0 || len(left) > 0 && left[0].Name < right[0].Name {
		return left[0].Name
	}
	return right[0].Name
}

// cutName cuts off the packages of a name, which a sorted list may begin with.
func cutName(list []Package, name string) (these, rest []Package) {
	n := 0
	for n < len(list) && list[n].Name == name {
		n++
	}
	return list[:n], list[n:]
}

// compareName compares all packages of one name.
func (d *Difference) compareName(old, new []Package) {
	if len(old) == 1 && len(new) == 1 {
		d.change(old[0], new[0])
		return
	}
	for _, arch := range archs(old, new) {
		d.compareArch(without(old, new, arch), without(new, old, arch))
	}
}

// compareArch compares the packages of one name and architecture that only one side has: more than one each if rpm installs
// several versions side by side, which then have no successor.
func (d *Difference) compareArch(old, new []Package) {
	if len(old) == 1 && len(new) == 1 {
		d.change(old[0], new[0])
		return
	}
	d.Removed = append(d.Removed, old...)
	d.Added = append(d.Added, new...)
}

func (d *Difference) change(old, new Package) {
	switch {
	case old == new:
	case d.Format.Compare(old.Version, new.Version) > 0:
		d.Downgraded = append(d.Downgraded, Change{Old: old, New: new})
	default:
		d.Upgraded = append(d.Upgraded, Change{Old: old, New: new})
	}
}

func archs(lists ...[]Package) []string {
	var archs []string
	for _, list := range lists {
		for _, p := range list {
			archs = append(archs, p.Arch)
		}
	}
	slices.Sort(archs)
	return slices.Compact(archs)
}

// without returns the packages of an architecture that others do not have.
func without(list, others []Package, arch string) []Package {
	var these []Package
	for _, p := range list {
		if p.Arch == arch && !slices.Contains(others, p) {
			these = append(these, p)
		}
	}
	return these
}

// Replaced names the packages that do not stay as they are: removed, upgraded or downgraded, as "name old → new".
func (d Difference) Replaced() []string {
	var names []string
	for _, p := range d.Removed {
		names = append(names, p.Name+" "+p.Version+" → none")
	}
	for _, c := range slices.Concat(d.Upgraded, d.Downgraded) {
		names = append(names, c.Old.Name+" "+c.Old.Version+" → "+c.New.Version)
	}
	slices.Sort(names)
	return names
}
