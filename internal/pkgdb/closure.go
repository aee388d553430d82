package pkgdb

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Selection is how a mixture of two databases differs from one of them, the base. Its lists are sorted.
type Selection struct {
	Taken    []Package `json:"taken"`    // in the mixture, from the other database
	Replaced []Package `json:"replaced"` // of the base, and not in the mixture: other versions of what is taken, and what goes
}

// Closure returns what is to be taken out of the target for the packages of the given names to be as they are there, on a system that is
// as live (the base) otherwise: these, and what they need that live does not have. Names are "nginx", for all architectures that it is
// there for, or "nginx:amd64", or patterns of path.Match, such as "linux-image-*". One that only live has goes. What does not differ is not in the
// selection.
//
// A package that live has, and that will do, stays as it is, also where the target has a newer version: as apt does. Else the first
// alternative that the target has is taken. A selection that cannot stand alone is an error that gives the reason: a name is
// unknown, something needed is not in the target, or what stays would lose what it needs, or is refused by what is taken (Breaks,
// Conflicts, and Obsoletes of what stays; what is taken takes the place of what it obsoletes). What is broken in live already may stay so.
func Closure(target, live *Database, names []string) (Selection, error) {
	return closure(target, live, names, "the target")
}

// Except is the opposite of Closure: what is to be kept of live for the packages of the given names to stay as they are, on a system that
// becomes the target (the base) otherwise: these, and what they need that the target does not have. One that only the target has does
// not come.
func Except(target, live *Database, names []string) (Selection, error) {
	return closure(live, target, names, "the booted commit")
}

func closure(wanted, base *Database, names []string, what string) (Selection, error) {
	switch {
	case wanted.Format == None || base.Format == None:
		return Selection{}, errors.New("packages cannot be selected: a commit has no package database")
	case wanted.Format != base.Format:
		return Selection{}, errors.New("packages cannot be selected: one commit has packages of dpkg, and the other one of rpm")
	}
	g, err := newGraph(base, wanted)
	if err != nil {
		return Selection{}, err
	}
	s := selection{graph: g, what: what}
	for _, name := range names {
		if err := s.selectName(name); err != nil {
			return Selection{}, err
		}
	}
	if err := s.complete(); err != nil {
		return Selection{}, err
	}
	if err := s.check(); err != nil {
		return Selection{}, err
	}
	return s.result(), nil
}

// selection is the nodes that are taken, in the order in which the need for them was found.
type selection struct {
	*graph
	what  string // what messages call the database that packages are taken from
	taken []*node
}

func (s *selection) selectName(pattern string) error {
	bare, arch, _ := strings.Cut(pattern, ":")
	found := false
	for _, n := range s.nodes {
		named, err := path.Match(bare, n.Name)
		if err != nil {
			return fmt.Errorf("package %q cannot be selected: it is no pattern of package names: %w", pattern, err)
		}
		if !named || arch != "" && n.Arch != arch {
			continue
		}
		found = true
		if n.wanted {
			s.take(n)
		} else {
			n.mixed = false
		}
	}
	if !found {
		return fmt.Errorf("package %q cannot be selected: neither the booted commit nor the target has it", pattern)
	}
	return nil
}

// take puts a package into the mixture in place of those that cannot be beside it: the other version, and, unless both are made for that,
// those for other architectures. One that is there for several architectures has one version for all of them.
func (s *selection) take(n *node) {
	if n.mixed {
		return
	}
	n.mixed = true
	s.taken = append(s.taken, n)
	for _, m := range s.byName[n.Name] {
		if m.mixed && !m.wanted && !s.coexist(n, m) {
			m.mixed = false
		}
	}
	for _, r := range n.refuses {
		if r.byName {
			s.drop(n, r)
		}
	}
	for _, m := range s.byName[n.Name] {
		if m.wanted && s.isThere(m) {
			s.take(m)
		}
	}
}

// drop takes out of the mixture what n obsoletes, as rpm does when it is installed.
func (s *selection) drop(n *node, r refusal) {
	for m := range s.concerned(r) {
		if m.Name != n.Name && !m.wanted {
			m.mixed = false
		}
	}
}

// isThere tells whether the mixture has a package of the base for the architecture of m.
func (s *selection) isThere(m *node) bool {
	return slices.ContainsFunc(s.byName[m.Name], func(n *node) bool { return n.mixed && !n.wanted && n.Arch == m.Arch })
}

// complete takes what those that are taken need, until nothing is missing. One that was satisfied can miss something again when a package
// is replaced; each step takes a package, so it ends.
func (s *selection) complete() error {
	for again := true; again; {
		again = false
		for i := 0; i < len(s.taken); i++ {
			took, err := s.satisfy(s.taken[i])
			if err != nil {
				return err
			}
			again = again || took
		}
	}
	return nil
}

func (s *selection) satisfy(n *node) (took bool, err error) {
	for _, d := range n.needs {
		if s.holds(n, d, inMix) {
			continue
		}
		if !s.obtain(n, d) {
			return took, fmt.Errorf("%s cannot be selected: it needs %s, which %s does not have", n.Package, d, s.what)
		}
		took = true
	}
	return took, nil
}

// obtain takes packages for what n needs, and tells whether it found one. It may have to be called again.
func (s *selection) obtain(n *node, d need) bool {
	holds := func(part need) bool { return s.holds(n, part, inMix) }
	switch d.op {
	case opAnd:
		took := false
		for _, part := range d.parts {
			took = !holds(part) && s.obtain(n, part) || took
		}
		return took
	case opOr:
		return slices.ContainsFunc(d.parts, func(part need) bool { return s.holds(n, part, inWanted) && s.obtain(n, part) })
	case opIf, opUnless:
		part, asked := d.branch(holds)
		return asked && s.obtain(n, part)
	}
	m := s.find(n, d, inWanted)
	if m == nil {
		return false
	}
	s.take(m)
	return true
}

// check looks at what stays beside what is taken.
func (s *selection) check() error {
	for _, n := range s.nodes {
		if !n.mixed {
			continue
		}
		if m, why := s.refused(n); m != nil {
			return fmt.Errorf("the selection cannot stand alone: %s and %s must not be together (%s)%s", n.Package, m.Package, why, advice(n, m))
		} else if why != "" {
			return fmt.Errorf("the selection cannot stand alone: %s must not be beside what it makes (%s)%s", n.Package, why, advice(n))
		}
		if !n.base {
			continue // complete has found all that it needs
		}
		for _, d := range n.needs {
			if !s.holds(n, d, inMix) && s.holds(n, d, inBase) {
				return fmt.Errorf("the selection cannot stand alone: %s stays, and needs %s%s", n.Package, d, advice(n))
			}
		}
	}
	return nil
}

// advice names the package that could be selected as well.
func advice(nodes ...*node) string {
	for _, n := range nodes {
		if !n.wanted {
			return fmt.Sprintf(": select %s as well", n.Name)
		}
	}
	return ""
}

func (s *selection) result() Selection {
	result := Selection{Taken: []Package{}, Replaced: []Package{}}
	for _, n := range s.nodes {
		switch {
		case n.mixed && !n.base:
			result.Taken = append(result.Taken, n.Package)
		case n.base && !n.mixed:
			result.Replaced = append(result.Replaced, n.Package)
		}
	}
	slices.SortFunc(result.Taken, Package.compare)
	slices.SortFunc(result.Replaced, Package.compare)
	return result
}
