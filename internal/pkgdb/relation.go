package pkgdb

import (
	"fmt"
	"strings"
)

// relation is "name[:arch] [(operator version)]" (deb-control(5)).
type relation struct {
	name, arch        string
	operator, version string // "" for any version
}

// group is alternatives, of which one is enough.
type group []relation

func (r relation) String() string {
	text := r.name
	if r.arch != "" {
		text += ":" + r.arch
	}
	if r.operator != "" {
		text += " (" + r.operator + " " + r.version + ")"
	}
	return text
}

func (g group) String() string {
	var texts []string
	for _, r := range g {
		texts = append(texts, r.String())
	}
	return strings.Join(texts, " | ")
}

// allows tells whether a version is one that the relation asks for.
func (r relation) allows(version string) bool {
	if r.operator == "" {
		return true
	}
	c := CompareDpkg(version, r.version)
	switch r.operator {
	case "<<":
		return c < 0
	case "<=", "<": // dpkg takes what was the old way to write it
		return c <= 0
	case "=":
		return c == 0
	case ">=", ">":
		return c >= 0
	}
	return c > 0 // ">>": parseRelation lets no other through
}

// parseGroups parses the value of a field such as Depends.
func parseGroups(value string) ([]group, error) {
	if strings.TrimSpace(value) == "" {
		return nil, nil
	}
	var groups []group
	for alternatives := range strings.SplitSeq(strings.TrimSuffix(strings.TrimSpace(value), ","), ",") {
		var g group
		for text := range strings.SplitSeq(alternatives, "|") {
			r, err := parseRelation(strings.TrimSpace(text))
			if err != nil {
				return nil, err
			}
			g = append(g, r)
		}
		groups = append(groups, g)
	}
	return groups, nil
}

func parseRelation(text string) (relation, error) {
	full, constraint, constrained := strings.Cut(text, "(")
	full = strings.TrimSpace(full)
	name, arch, qualified := strings.Cut(full, ":")
	r := relation{name: name, arch: arch}
	if name == "" || qualified && arch == "" || strings.ContainsAny(full, "()[]<>") || strings.IndexFunc(full, notGraphic) >= 0 {
		return relation{}, fmt.Errorf("%.64q is no relation to a package", text)
	}
	if !constrained {
		return r, nil
	}
	constraint, ok := strings.CutSuffix(strings.TrimSpace(constraint), ")")
	r.operator, r.version = span(constraint, isOperator)
	r.version = strings.TrimSpace(r.version)
	switch r.operator {
	case "<<", "<=", "<", "=", ">", ">=", ">>":
	default:
		ok = false
	}
	if !ok || r.version == "" || strings.ContainsAny(r.version, "()") || strings.IndexFunc(r.version, notGraphic) >= 0 {
		return relation{}, fmt.Errorf("%.64q is no relation to a package", text)
	}
	return r, nil
}

func isOperator(c byte) bool { return c == '<' || c == '=' || c == '>' }
