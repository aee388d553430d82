package pkgdb

import (
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"
)

// graph is the packages of two databases and what they need. A package that both have is one node, unless it was built anew with the same
// version and needs something else.
type graph struct {
	format    Format
	native    string // the architecture of packages for all of them, in dpkg's database
	nodes     []*node
	byName    map[string][]*node
	providers map[string][]provider
}

type node struct {
	Package
	control
	needs    []need
	refuses  []refusal
	provided []need // relations

	base, wanted bool // who has it: the database that stays, the one that packages are taken from
	mixed        bool // it is in the mixture of the two
}

// refusal is what a package must not be beside.
type refusal struct {
	need
	field  string // of the database, in which that is
	byName bool   // it is about packages of the name, not about those that provide it
}

// provider is a package that stands for another one, operator and version "" for no version of it.
type provider struct {
	node              *node
	operator, version string
}

// newGraph begins with a mixture that is the base.
func newGraph(base, wanted *Database) (*graph, error) {
	baseControls, err := base.details()
	if err != nil {
		return nil, err
	}
	wantedControls, err := wanted.details()
	if err != nil {
		return nil, err
	}
	g := &graph{format: wanted.Format, byName: map[string][]*node{}, providers: map[string][]provider{}}
	g.native = nativeArch(wanted)
	known := map[Package]*node{}
	for i, p := range base.Packages {
		n, err := g.add(base, p, baseControls[i])
		if err != nil {
			return nil, err
		}
		n.base, n.mixed = true, true
		known[p] = n
	}
	for i, p := range wanted.Packages {
		n := known[p]
		if n == nil || n.control != wantedControls[i] {
			if n, err = g.add(wanted, p, wantedControls[i]); err != nil {
				return nil, err
			}
		}
		n.wanted = true
	}
	return g, g.addFiles(wanted)
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

func (g *graph) add(db *Database, p Package, c control) (*node, error) {
	n := &node{Package: p, control: c}
	if err := n.parse(db.Format); err != nil {
		return nil, fmt.Errorf("package database %s is damaged: package %s: %w", db.Source, n.Package, err)
	}
	g.nodes = append(g.nodes, n)
	g.byName[n.Name] = append(g.byName[n.Name], n)
	for _, d := range n.provided {
		d.relations(func(r relation) {
			g.providers[r.name] = append(g.providers[r.name], provider{n, r.operator, r.version})
		})
	}
	return n, nil
}

func (n *node) parse(format Format) error {
	parse, conflicts := parseNeeds, "Breaks or Conflicts"
	if format == RPM {
		parse, conflicts = parseRPMNeeds, "Conflicts"
	}
	for _, field := range []struct {
		value string
		use   func(d need)
	}{
		{n.preDepends, func(d need) { n.needs = append(n.needs, d) }},
		{n.depends, func(d need) { n.needs = append(n.needs, d) }},
		{n.breaks, func(d need) { n.refuses = append(n.refuses, refusal{need: d, field: conflicts}) }},
		{n.conflictsWith, func(d need) { n.refuses = append(n.refuses, refusal{need: d, field: conflicts}) }},
		{n.obsoletes, func(d need) { n.refuses = append(n.refuses, refusal{need: d, field: "Obsoletes", byName: true}) }},
		{n.provides, func(d need) { n.provided = append(n.provided, d) }},
	} {
		needs, err := parse(field.value)
		if err != nil {
			return err
		}
		for _, d := range needs {
			field.use(d)
		}
	}
	return nil
}

// addFiles makes the packages that have a file, in rpm's database, its providers, if a package needs or refuses a file of that path. Paths may
// lead through links in the root of the tree.
func (g *graph) addFiles(db *Database) error {
	if g.format != RPM {
		return nil
	}
	inTree, err := db.pathsInTree()
	if err != nil {
		return err
	}
	asked, bases := map[string][]string{}, map[string]bool{} // the paths in the tree, and the last parts of them
	note := func(r relation) {
		if !path.IsAbs(r.name) {
			return
		}
		if file := inTree(r.name); !slices.Contains(asked[file], r.name) {
			asked[file], bases[path.Base(file)] = append(asked[file], r.name), true
		}
	}
	for _, n := range g.nodes {
		for _, d := range n.needs {
			d.relations(note)
		}
		for _, d := range n.refuses {
			d.relations(note)
		}
	}
	for _, n := range g.nodes {
		for file := range strings.SplitSeq(n.files, "\n") {
			if !bases[path.Base(file)] {
				continue
			}
			for _, name := range asked[inTree(file)] {
				g.providers[name] = append(g.providers[name], provider{node: n})
			}
		}
	}
	return nil
}

// The sets in which something is looked for.
func inBase(n *node) bool   { return n.base }
func inWanted(n *node) bool { return n.wanted }
func inMix(n *node) bool    { return n.mixed }

// holds tells whether what n needs is in a set.
func (g *graph) holds(n *node, d need, set func(*node) bool) bool {
	holds := func(part need) bool { return g.holds(n, part, set) }
	switch d.op {
	case opAnd:
		return !slices.ContainsFunc(d.parts, func(part need) bool { return !holds(part) })
	case opOr:
		return slices.ContainsFunc(d.parts, holds)
	case opIf, opUnless:
		part, asked := d.branch(holds)
		return !asked && d.op == opIf || asked && holds(part)
	}
	return g.find(n, d, set) != nil
}

// branch returns which part of a need with a condition must hold, if one must.
func (d need) branch(holds func(need) bool) (part need, asked bool) {
	switch {
	case holds(d.parts[1]) == (d.op == opIf):
		return d.parts[0], true
	case len(d.parts) == 3:
		return d.parts[2], true
	}
	return need{}, false
}

// find returns the first package of a set that is what n needs, nil if none is.
func (g *graph) find(n *node, d need, set func(*node) bool) *node {
	for m := range g.matches(d) {
		if set(m) && g.fitsArch(n, m, d.relation) {
			return m
		}
	}
	return nil
}

// matches yields the packages, of either database, that a need is about which one package can satisfy, whatever their architecture: those of the
// name, and those that provide it, for a version only if they say which one they provide.
func (g *graph) matches(d need) iter.Seq[*node] {
	return func(yield func(*node) bool) {
		switch d.op {
		case opOr:
			for _, part := range d.parts {
				for m := range g.matches(part) {
					if !yield(m) {
						return
					}
				}
			}
			return
		case opWith, opWithout:
			for m := range g.matches(d.parts[0]) {
				others := slices.ContainsFunc(d.parts[1:], func(part need) bool { return g.is(m, part) == (d.op == opWithout) })
				if !others && !yield(m) {
					return
				}
			}
			return
		}
		for _, m := range g.byName[d.name] {
			if d.allows(isVersion, m.Version) && !yield(m) {
				return
			}
		}
		for _, p := range g.providers[d.name] {
			if d.allows(p.operator, p.version) && !yield(p.node) {
				return
			}
		}
	}
}

// is tells whether a package is one that a need is about.
func (g *graph) is(n *node, d need) bool {
	for m := range g.matches(d) {
		if m == n {
			return true
		}
	}
	return false
}

// fitsArch tells whether m may be what n needs (deparchsatisfied in dpkg's depcon.c). Packages of rpm say in the name which architecture they
// need, as in "libc.so.6()(64bit)".
func (g *graph) fitsArch(n, m *node, r relation) bool {
	if g.format == RPM {
		return true
	}
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

// refused tells of what is in the mixture, and n must not be beside: which package, if it is one, and why. What is together in either database
// may be so.
func (g *graph) refused(n *node) (m *node, why string) {
	for _, other := range g.byName[n.Name] {
		if other.mixed && !together(n, other) {
			return other, "one version for all architectures"
		}
	}
	for _, r := range n.refuses {
		m, is := g.refusedBy(n, r)
		if is {
			return m, fmt.Sprintf("%s: %s of %s", r.field, r, n.Name)
		}
	}
	return nil, ""
}

func (g *graph) refusedBy(n *node, r refusal) (m *node, is bool) {
	switch r.op {
	case opNone, opWith, opWithout:
		for m := range g.concerned(r) {
			if m.mixed && m.Name != n.Name && !together(n, m) && (r.arch == "" || r.arch == "any" || g.arch(m) == r.arch) {
				return m, true
			}
		}
		return nil, false
	}
	holds := func(set func(*node) bool) bool { return g.holds(n, r.need, set) }
	return nil, holds(inMix) && !(n.base && holds(inBase)) && !(n.wanted && holds(inWanted))
}

// concerned yields the packages that a refusal is about. One without a version, that stands for a package, is any version of it to rpm when it comes to
// conflicts (rpmdsCompare); what is needed in some version it is not, as for libsolv.
func (g *graph) concerned(r refusal) iter.Seq[*node] {
	return func(yield func(*node) bool) {
		if r.byName {
			for _, m := range g.byName[r.name] {
				if r.allows(isVersion, m.Version) && !yield(m) {
					return
				}
			}
			return
		}
		for m := range g.matches(r.need) {
			if !yield(m) {
				return
			}
		}
		if g.format != RPM || r.op != opNone {
			return
		}
		for _, p := range g.providers[r.name] {
			if p.operator == "" && !yield(p.node) {
				return
			}
		}
	}
}

// coexist tells whether two packages of one name, for different architectures, can be beside each other.
func (g *graph) coexist(n, m *node) bool {
	if g.format == RPM {
		return n.Arch != m.Arch && n.Arch != "noarch" && m.Arch != "noarch"
	}
	return n.Arch != m.Arch && n.multiArch == "same" && m.multiArch == "same"
}

func together(n, m *node) bool { return n.base && m.base || n.wanted && m.wanted }
