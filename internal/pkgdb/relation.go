package pkgdb

import (
	"fmt"
	"strings"
)

// relation is "name[:arch] [(operator version)]" of dpkg (deb-control(5)), or "name [operator version]" of rpm.
type relation struct {
	format            Format
	name, arch        string
	operator, version string // "" for any version
}

func (r relation) String() string {
	text := r.name
	if r.arch != "" {
		text += ":" + r.arch
	}
	switch {
	case r.operator == "":
		return text
	case r.format == RPM:
		return text + " " + r.operator + " " + r.version
	}
	return text + " (" + r.operator + " " + r.version + ")"
}

// allows tells whether a version, or one of a range of them, is what the relation asks for. Operators are of the characters <, = and >.
func (r relation) allows(operator, version string) bool {
	if r.operator == "" || operator == "" {
		return r.operator == ""
	}
	order := r.format.Compare(version, r.version)
	if r.format == RPM {
		var every bool
		if order, every = compareReleases(operator, version, r); every {
			return true
		}
	}
	switch {
	case order < 0:
		return strings.Contains(r.operator, "<") || strings.Contains(operator, ">")
	case order > 0:
		return strings.Contains(r.operator, ">") || strings.Contains(operator, "<")
	}
	return strings.ContainsAny(operator, r.operator)
}

// isVersion is the operator of what a package is.
const isVersion = "="

// alternatives are needs of which one is enough.
func alternatives(needs []need) need {
	if len(needs) == 1 {
		return needs[0]
	}
	return need{op: opOr, parts: needs}
}

// parseNeeds parses the value of one of dpkg's fields, such as Depends.
func parseNeeds(value string) ([]need, error) {
	if strings.TrimSpace(value) == "" {
		return nil, nil
	}
	var needs []need
	for list := range strings.SplitSeq(strings.TrimSuffix(strings.TrimSpace(value), ","), ",") {
		var parts []need
		for text := range strings.SplitSeq(list, "|") {
			r, err := parseRelation(strings.TrimSpace(text))
			if err != nil {
				return nil, err
			}
			parts = append(parts, need{relation: r})
		}
		needs = append(needs, alternatives(parts))
	}
	return needs, nil
}

func parseRelation(text string) (relation, error) {
	full, constraint, constrained := strings.Cut(text, "(")
	full = strings.TrimSpace(full)
	name, arch, qualified := strings.Cut(full, ":")
	r := relation{format: Dpkg, name: name, arch: arch}
	if name == "" || qualified && arch == "" || strings.ContainsAny(full, "()[]<>") || strings.IndexFunc(full, notGraphic) >= 0 {
		return relation{}, errNoRelation(text)
	}
	if !constrained {
		return r, nil
	}
	constraint, ok := strings.CutSuffix(strings.TrimSpace(constraint), ")")
	r.operator, r.version = span(constraint, isOperator)
	r.version = strings.TrimSpace(r.version)
	switch r.operator {
	case "<<", "<=", "=", ">=", ">>":
	case "<", ">": // what was the old way to write it
		r.operator += "="
	default:
		ok = false
	}
	if !ok || r.version == "" || strings.ContainsAny(r.version, "()") || strings.IndexFunc(r.version, notGraphic) >= 0 {
		return relation{}, errNoRelation(text)
	}
	return r, nil
}

func errNoRelation(text string) error { return fmt.Errorf("%.64q is no relation to a package", text) }

func isOperator(c byte) bool { return c == '<' || c == '=' || c == '>' }
