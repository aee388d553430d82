package pkgdb

import (
	"fmt"
	"iter"
)

// graph is the packages of two databases and what they need. A package that both have is one node, unless it was built anew with the same
// version and needs something else.
type graph struct {
	native    string // the architecture of packages for all of them
	nodes     []*node
	byName    map[string][]*node
	providers map[string][]provider
}

type node struct {
	Package
	control
	needs    []group // Pre-Depends and Depends
	refuses  []group // Breaks and Conflicts; each with one alternative
	provided []group

	base, wanted bool // who has it: the database that stays, the one that packages are taken from
	mixed        bool // it is in the mixture of the two
}

// provider is a package that stands for another one, "" for no version of it.
type provider struct {
	node    *node
	version string
}

// newGraph begins with a mixture that is the base.
func newGraph(base, wanted *Database) (*graph, error) {
	g := &graph{byName: map[string][]*node{}, providers: map[string][]provider{}}
	g.native = nativeArch(wanted)
	known := map[Package]*node{}
	for i := range base.Packages {
		n, err := g.add(base, i)
		if err != nil {
			return nil, err
		}
		n.base, n.mixed = true, true
		known[n.Package] = n
	}
	for i, p := range wanted.Packages {
		n := known[p]
		if n == nil || n.control != wanted.controls[i] {
			var err error
			if n, err = g.add(wanted, i); err != nil {
				return nil, err
			}
		}
		n.wanted = true
	}
	return g, nil
}

// nativeArch is the architecture of the package that most have: of libc, dpkg, or whatever is not for all.
func nativeArch(db *Database) string {
	count, most := map[string]int{}, ""
	for _, p := range db.Packages {
		if p.Arch == "all" {
			continue
		}
		if count[p.Arch]++; count[p.Arch] > count[most] {
			most = p.Arch
		}
	}
	return most
}

func (g *graph) add(db *Database, i int) (*node, error) {
	c := db.controls[i]
	n := &node{Package: db.Packages[i], control: c}
	for _, field := range []struct {
		value string
		into  *[]group
	}{{c.preDepends, &n.needs}, {c.depends, &n.needs}, {c.breaks, &n.refuses}, {c.conflictsWith, &n.refuses}, {c.provides, &n.provided}} {
		groups, err := parseGroups(field.value)
		if err != nil {
			return nil, fmt.Errorf("package database %s is damaged: package %s: %w", db.Source, n.Package, err)
		}
		*field.into = append(*field.into, groups...)
	}
	g.nodes = append(g.nodes, n)
	g.byName[n.Name] = append(g.byName[n.Name], n)
	for _, alternatives := range n.provided {
		for _, r := range alternatives {
			g.providers[r.name] = append(g.providers[r.name], provider{node: n, version: r.version})
		}
	}
	return n, nil
}

// The sets in which something is looked for.
func inBase(n *node) bool   { return n.base }
func inWanted(n *node) bool { return n.wanted }
func inMix(n *node) bool    { return n.mixed }

// find returns the first package of a set that is what n needs, nil if none is.
func (g *graph) find(n *node, alternatives group, set func(*node) bool) *node {
	for _, r := range alternatives {
		for m := range g.matches(r) {
			if set(m) && g.fitsArch(n, m, r) {
				return m
			}
		}
	}
	return nil
}

// matches yields the packages, of either database, that a relation is about, whatever their architecture: those of the name, and those that provide
// it, for a version only if they say which one they provide.
func (g *graph) matches(r relation) iter.Seq[*node] {
	return func(yield func(*node) bool) {
		for _, m := range g.byName[r.name] {
			if r.allows(m.Version) && !yield(m) {
				return
			}
		}
		for _, p := range g.providers[r.name] {
			if (r.operator == "" || p.version != "" && r.allows(p.version)) && !yield(p.node) {
				return
			}
		}
	}
}

// fitsArch tells whether m may be what n needs (deparchsatisfied in dpkg's depcon.c).
func (g *graph) fitsArch(n, m *node, r relation) bool {
	switch r.arch {
	case "":
		return g.arch(n) == g.arch(m) || m.multiArch == "foreign"
	case "any":
		return g.arch(n) == g.arch(m) || m.multiArch == "allowed"
	}
	return g.arch(m) == r.arch || r.arch == "native" && g.arch(m) == g.native
}

func (g *graph) arch(n *node) string {
	if n.Arch == "all" {
		return g.native
	}
	return n.Arch
}

// refused returns a package of the mixture that n must not be beside, and why. What is together in either database may be so.
func (g *graph) refused(n *node) (m *node, why string) {
	for _, other := range g.byName[n.Name] {
		if other.mixed && !together(n, other) {
			return other, "one version for all architectures"
		}
	}
	for _, alternatives := range n.refuses {
		for _, r := range alternatives {
			for m := range g.matches(r) {
				if m.mixed && m.Name != n.Name && !together(n, m) && (r.arch == "" || r.arch == "any" || g.arch(m) == r.arch) {
					return m, fmt.Sprintf("Breaks or Conflicts: %s of %s", r, n.Name)
				}
			}
		}
	}
	return nil, ""
}

func together(n, m *node) bool { return n.base && m.base || n.wanted && m.wanted }
