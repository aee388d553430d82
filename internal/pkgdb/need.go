package pkgdb

import (
	"errors"
	"strings"
	"unicode"
)

// need is what a package needs, or must not be beside: a relation, or needs that an operator joins.
type need struct {
	relation // if op is opNone
	op       operator
	parts    []need
}

// operator joins needs. dpkg has only or; the others are those of rpm's boolean dependencies, and mean what they mean in unsatisfiedDepend
// of rpm's depends.c.
type operator string

const (
	opNone    operator = ""
	opAnd     operator = "and"
	opOr      operator = "or"
	opIf      operator = "if"      // the second part, and then the first; if there is a third, that otherwise
	opUnless  operator = "unless"  // the same with the second part turned round, but without a third part it fails otherwise
	opWith    operator = "with"    // one package is all of the parts
	opWithout operator = "without" // one package is the first part, and not the second
)

func (d need) String() string {
	switch {
	case d.op == opNone:
		return d.relation.String()
	case d.first().format == Dpkg:
		return d.join(" | ")
	case len(d.parts) == 3 && (d.op == opIf || d.op == opUnless):
		return "(" + need{op: d.op, parts: d.parts[:2]}.join(" "+string(d.op)+" ") + " else " + d.parts[2].String() + ")"
	}
	return "(" + d.join(" "+string(d.op)+" ") + ")"
}

func (d need) join(separator string) string {
	var texts []string
	for _, part := range d.parts {
		texts = append(texts, part.String())
	}
	return strings.Join(texts, separator)
}

// first returns the first of the relations.
func (d need) first() relation {
	for d.op != opNone {
		d = d.parts[0]
	}
	return d.relation
}

// relations calls a function with each of the relations.
func (d need) relations(call func(relation)) {
	if d.op == opNone {
		call(d.relation)
	}
	for _, part := range d.parts {
		part.relations(call)
	}
}

// parseRPMNeeds parses lines, each of which is one of a package's dependencies as rpm prints them: "name", "name >= version", or a boolean one
// in brackets. Those on features of rpm itself, rpmlib(…), are left out.
func parseRPMNeeds(lines string) ([]need, error) {
	var needs []need
	for line := range strings.Lines(lines) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "rpmlib(") {
			continue
		}
		p := rpmParser{rest: line}
		d, err := p.need(0)
		if err != nil || p.rest != "" || strings.IndexFunc(line, notPrinted) >= 0 {
			return nil, errNoRelation(line)
		}
		needs = append(needs, d)
	}
	return needs, nil
}

// notPrinted finds what must not get to a terminal. Names are not only of ASCII characters.
func notPrinted(r rune) bool { return !unicode.IsPrint(r) }

// rpmParser parses what it has not parsed yet.
type rpmParser struct{ rest string }

// maxNested is how deep boolean dependencies may be in each other. Those of distributions are not deeper than 3.
const maxNested = 32

var errSyntax = errors.New("syntax")

func (p *rpmParser) need(depth int) (need, error) {
	p.rest = strings.TrimLeft(p.rest, " ")
	if !strings.HasPrefix(p.rest, "(") {
		r, err := p.relation()
		return need{relation: r}, err
	}
	p.rest = p.rest[1:]
	if depth == maxNested {
		return need{}, errSyntax
	}
	var d need
	for {
		part, err := p.need(depth + 1)
		if err != nil {
			return need{}, err
		}
		d.parts = append(d.parts, part)
		if rest, ok := strings.CutPrefix(p.rest, ")"); ok {
			p.rest = strings.TrimLeft(rest, " ")
			return d.checked()
		}
		if err := p.operator(&d); err != nil {
			return need{}, err
		}
	}
}

// operator parses the one before another part.
func (p *rpmParser) operator(d *need) error {
	switch op := operator(p.word()); {
	case d.op == opNone:
		d.op = op
		return nil
	case op == d.op && (op == opAnd || op == opOr || op == opWith):
		return nil
	case op == "else" && (d.op == opIf || d.op == opUnless) && len(d.parts) == 2:
		return nil
	}
	return errSyntax
}

// checked returns d if its operator can join its parts. What is in brackets alone is that.
func (d need) checked() (need, error) {
	switch d.op {
	case opNone:
		return d.parts[0], nil
	case opAnd, opOr, opIf, opUnless:
		return d, nil
	case opWith, opWithout:
		for _, part := range d.parts {
			if !part.isOnePackage() {
				return need{}, errSyntax
			}
		}
		return d, nil
	}
	return need{}, errSyntax
}

// isOnePackage tells whether d is about one package at a time, so that it can be a part of with.
func (d need) isOnePackage() bool {
	if d.op == opOr {
		for _, part := range d.parts {
			if !part.isOnePackage() {
				return false
			}
		}
		return true
	}
	return d.op == opNone || d.op == opWith || d.op == opWithout
}

func (p *rpmParser) relation() (relation, error) {
	r := relation{format: RPM, name: p.word()}
	if rest := strings.TrimLeft(p.rest, " "); rest != "" && isOperator(rest[0]) {
		r.operator, p.rest = span(rest, isOperator)
		r.version = p.word()
		if r.version == "" || !strings.Contains(" < <= = >= > ", " "+r.operator+" ") {
			return relation{}, errSyntax
		}
	}
	if r.name == "" {
		return relation{}, errSyntax
	}
	p.rest = strings.TrimLeft(p.rest, " ")
	return r, nil
}

// word returns what is before a blank, or before a closing bracket that was not opened in it: names have brackets, as in "libc.so.6()(64bit)".
func (p *rpmParser) word() string {
	p.rest = strings.TrimLeft(p.rest, " ")
	depth, end := 0, 0
	for ; end < len(p.rest) && p.rest[end] != ' '; end++ {
		if p.rest[end] == '(' {
			depth++
		} else if p.rest[end] == ')' {
			if depth--; depth < 0 {
				break
			}
		}
	}
	word := p.rest[:end]
	p.rest = p.rest[end:]
	return word
}
