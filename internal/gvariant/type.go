package gvariant

import "fmt"

// maxDepth bounds the nesting of types and of values, as G_VARIANT_MAX_RECURSION_DEPTH does in GLib.
const maxDepth = 128

// maxType bounds the type strings that are read, in bytes: a parsed type takes many times the memory of its
// string, and one inside of a variant is chosen by whoever wrote the data. No type of OSTree has 100.
const maxType = 4096

// layout is a parsed type: how values of it are laid out in bytes.
type layout struct {
	typ     string    // the type string
	align   int       // 1, 2, 4 or 8
	size    int       // in bytes, 0 when it varies
	members []*layout // of an array or a maybe: one; of a tuple or a dictionary entry: each
}

func (l *layout) kind() byte  { return l.typ[0] }
func (l *layout) fixed() bool { return l.size > 0 }

// parseType parses a type string that holds exactly one complete type.
func parseType(typ string) (*layout, error) {
	if len(typ) > maxType {
		return nil, fmt.Errorf("GVariant type %.64q: longer than %d bytes", typ, maxType)
	}
	l, rest, err := parseOne(typ, 0)
	if err != nil {
		return nil, fmt.Errorf("GVariant type %.64q: %w", typ, err)
	}
	if rest != "" {
		return nil, fmt.Errorf("GVariant type %.64q: more than one type", typ)
	}
	return l, nil
}

// parseOne parses the first complete type of typ and returns what follows it.
func parseOne(typ string, depth int) (*layout, string, error) {
	if typ == "" {
		return nil, "", fmt.Errorf("ends too early")
	}
	if depth >= maxDepth {
		return nil, "", fmt.Errorf("nested deeper than %d levels", maxDepth)
	}
	if l, ok := basicLayout(typ[:1]); ok {
		return l, typ[1:], nil
	}
	switch typ[0] {
	case 'a', 'm':
		elem, rest, err := parseOne(typ[1:], depth+1)
		if err != nil {
			return nil, "", err
		}
		return &layout{typ: typ[:len(typ)-len(rest)], align: elem.align, members: []*layout{elem}}, rest, nil
	case '(':
		return parseMembers(typ, ')', depth)
	case '{':
		l, rest, err := parseMembers(typ, '}', depth)
		if err == nil && (len(l.members) != 2 || !isBasic(l.members[0].kind())) {
			err = fmt.Errorf("%.64q is not a dictionary entry", l.typ)
		}
		return l, rest, err
	}
	return nil, "", fmt.Errorf("unknown type %q", typ[0])
}

// parseMembers parses a tuple or a dictionary entry, whose size is fixed if that of all members is.
func parseMembers(typ string, end byte, depth int) (*layout, string, error) {
	l := &layout{align: 1}
	rest, size, fixed := typ[1:], 0, true
	for {
		if rest == "" {
			return nil, "", fmt.Errorf("ends too early")
		}
		if rest[0] == end {
			break
		}
		member, after, err := parseOne(rest, depth+1)
		if err != nil {
			return nil, "", err
		}
		l.members = append(l.members, member)
		l.align = max(l.align, member.align)
		size = alignUp(size, member.align) + member.size
		fixed = fixed && member.fixed()
		rest = after
	}
	rest = rest[1:]
	l.typ = typ[:len(typ)-len(rest)]
	if fixed {
		l.size = max(alignUp(size, l.align), 1) // the unit type () is one zero byte
	}
	return l, rest, nil
}

func basicLayout(typ string) (*layout, bool) {
	switch typ[0] {
	case 'b', 'y':
		return &layout{typ: typ, align: 1, size: 1}, true
	case 'n', 'q':
		return &layout{typ: typ, align: 2, size: 2}, true
	case 'i', 'u', 'h':
		return &layout{typ: typ, align: 4, size: 4}, true
	case 'x', 't', 'd':
		return &layout{typ: typ, align: 8, size: 8}, true
	case 's', 'o', 'g':
		return &layout{typ: typ, align: 1}, true
	case 'v':
		return &layout{typ: typ, align: 8}, true
	}
	return nil, false
}

func isBasic(kind byte) bool {
	switch kind {
	case 'b', 'y', 'n', 'q', 'i', 'u', 'h', 'x', 't', 'd', 's', 'o', 'g':
		return true
	}
	return false
}

func alignUp(n, align int) int { return (n + align - 1) &^ (align - 1) }
