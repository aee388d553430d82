package gvariant

import "strings"

// CheckNormal returns an error unless v is in normal form, that is, exactly what a serializer makes of some
// value (GLib: g_variant_is_normal_form). libostree takes only such objects. It reads all data once.
func (v Value) CheckNormal() error {
	if v.layout == nil {
		return v.notNormal("no type")
	}
	return v.checkNormal(0)
}

func (v Value) checkNormal(depth int) error {
	if depth >= maxDepth {
		return v.notNormal("nested too deep")
	}
	if v.layout.fixed() && len(v.data) != v.layout.size {
		return v.notNormal("wrong size")
	}
	switch v.layout.kind() {
	case 'b':
		_, err := v.Bool()
		return err
	case 's', 'o', 'g':
		return v.checkText()
	case 'v':
		return v.checkVariant(depth)
	case 'm':
		return v.checkMaybe(depth)
	case 'a':
		return v.checkArray(depth)
	case '(', '{':
		return v.checkTuple(depth)
	}
	return nil
}

func (v Value) checkText() error {
	text, err := v.text()
	if err != nil {
		return err
	}
	if v.Type() == "o" && !isObjectPath(string(text)) {
		return v.notNormal("not a D-Bus object path")
	}
	if v.Type() == "g" && !isSignature(string(text)) {
		return v.notNormal("not a D-Bus signature")
	}
	return nil
}

func (v Value) checkVariant(depth int) error {
	inner, err := v.Variant()
	if err != nil {
		return err
	}
	return inner.checkNormal(depth + 1)
}

func (v Value) checkMaybe(depth int) error {
	if len(v.data) == 0 {
		return nil
	}
	inner, err := v.just()
	if err != nil {
		return err
	}
	return inner.checkNormal(depth + 1)
}

func (v Value) checkArray(depth int) error {
	frame, err := v.frameArray()
	if err != nil {
		return err
	}
	if frame.width > 0 && minimalWidth(frame.table, frame.count) != frame.width {
		return v.notNormal("framing offsets wider than needed")
	}
	pos := 0
	for i := range frame.count {
		element, err := frame.element(i)
		if err != nil {
			return err
		}
		if !frame.elem.fixed() {
			start, end, _ := frame.bounds(i)
			if !zeros(v.data[pos:start]) {
				return v.notNormal("padding that is not zero")
			}
			pos = end
		}
		if err := element.checkNormal(depth + 1); err != nil {
			return err
		}
	}
	return nil
}

func (v Value) checkTuple(depth int) error {
	cursor := v.tuple()
	for range v.layout.members {
		child, padding, err := cursor.read()
		if err != nil {
			return err
		}
		if start := cursor.pos - len(child.data); !zeros(v.data[start-padding : start]) {
			return v.notNormal("padding that is not zero")
		}
		if err := child.checkNormal(depth + 1); err != nil {
			return err
		}
	}
	if v.layout.fixed() {
		if !zeros(v.data[cursor.pos:]) {
			return v.notNormal("padding that is not zero")
		}
		return nil
	}
	offsets := (len(v.data) - cursor.table) / cursor.width
	if cursor.pos != cursor.table || minimalWidth(cursor.pos, offsets) != cursor.width && offsets > 0 {
		return v.notNormal("bytes between the members and their framing offsets")
	}
	return nil
}

// minimalWidth is the width that a serializer chooses for the framing offsets of a container: the smallest
// with which content and offsets together can be addressed.
func minimalWidth(content, offsets int) int {
	for _, width := range []int{1, 2, 4} {
		if offsetWidth(content+offsets*width) <= width {
			return width
		}
	}
	return 8
}

func zeros(data []byte) bool {
	for _, b := range data {
		if b != 0 {
			return false
		}
	}
	return true
}

// isObjectPath follows the D-Bus specification: "/" or elements of [A-Za-z0-9_], each after a slash.
func isObjectPath(s string) bool {
	if s == "/" {
		return true
	}
	if !strings.HasPrefix(s, "/") {
		return false
	}
	for element := range strings.SplitSeq(s[1:], "/") {
		if element == "" || strings.IndexFunc(element, notPathRune) >= 0 {
			return false
		}
	}
	return true
}

func notPathRune(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_')
}

// isSignature tells whether s is a sequence of complete types that D-Bus has (no maybe).
func isSignature(s string) bool {
	if strings.ContainsRune(s, 'm') {
		return false
	}
	for s != "" {
		_, rest, err := parseOne(s, 0)
		if err != nil {
			return false
		}
		s = rest
	}
	return true
}
