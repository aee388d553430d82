// Package gvariant reads serialized GVariant data, the format of OSTree's metadata objects and of the files
// that libostree leaves below /run.
//
// The format is that of the GVariant specification
// (https://docs.gtk.org/glib/gvariant-specification-1.0.html): alignment is counted from the start of the
// outermost value, framing offsets are little endian everywhere, numbers are in the byte order of whoever
// wrote them, so the reader names it.
//
// Where GLib substitutes a default value for what is not in normal form, this package returns an error. It
// never panics, and it allocates no more than in proportion to the data: values are views.
package gvariant

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"unicode/utf8"
)

// Value is a value of a GVariant type: a view of serialized data, which must not change while the Value or
// anything taken from it is in use. The zero Value has no type; reading from it is an error.
type Value struct {
	layout *layout
	data   []byte
}

// ErrNotNormal is wrapped by the errors about data that no serializer would have written.
var ErrNotNormal = errors.New("not in GVariant normal form")

// New returns the value of type typ that data holds. Only the type string is checked; see CheckNormal.
func New(typ string, data []byte) (Value, error) {
	l, err := parseType(typ)
	if err != nil {
		return Value{}, err
	}
	return Value{layout: l, data: data}, nil
}

// Type returns the type string, "" for the zero Value.
func (v Value) Type() string {
	if v.layout == nil {
		return ""
	}
	return v.layout.typ
}

// Data returns the serialized form, not a copy.
func (v Value) Data() []byte { return v.data }

// Len returns the number of children: elements of an array, members of a tuple or dictionary entry, 0 or 1
// for a maybe, 1 for a variant, 0 for everything else.
func (v Value) Len() (int, error) {
	if v.layout == nil {
		return 0, nil
	}
	switch v.layout.kind() {
	case 'a':
		frame, err := v.frameArray()
		return frame.count, err
	case 'm':
		if len(v.data) == 0 {
			return 0, nil
		}
		return 1, nil
	case 'v':
		return 1, nil
	}
	return len(v.layout.members), nil
}

// Index returns child i, counted from 0, in constant time for a given type.
func (v Value) Index(i int) (Value, error) {
	if n, err := v.Len(); err != nil {
		return Value{}, err
	} else if i < 0 || i >= n {
		return Value{}, fmt.Errorf("GVariant of type %.64q has %d children, no child %d", v.Type(), n, i)
	}
	switch v.layout.kind() {
	case 'a':
		frame, err := v.frameArray()
		if err != nil {
			return Value{}, err
		}
		return frame.element(i)
	case 'm':
		return v.just()
	case 'v':
		return v.Variant()
	}
	return v.member(i)
}

// Children yields the children in order, as Index returns them, in time proportional to their number. An
// error ends it.
func (v Value) Children() iter.Seq2[Value, error] {
	return func(yield func(Value, error) bool) {
		n, err := v.Len()
		if err != nil {
			yield(Value{}, err)
			return
		}
		next := v.reader()
		for range n {
			child, err := next()
			if !yield(child, err) || err != nil {
				return
			}
		}
	}
}

// Members sets into to the members of a tuple, whose number must be that of into.
func (v Value) Members(into []Value) error {
	if v.layout == nil || v.layout.kind() != '(' || len(v.layout.members) != len(into) {
		return fmt.Errorf("GVariant has type %.64q, not that of a tuple of %d", v.Type(), len(into))
	}
	cursor := v.tuple()
	for i := range into {
		var err error
		if into[i], _, err = cursor.read(); err != nil {
			return err
		}
	}
	return nil
}

// Text returns the content of a string, an object path or a signature.
func (v Value) Text() (string, error) {
	text, err := v.text()
	return string(text), err
}

func (v Value) text() ([]byte, error) {
	if err := v.want("s", "o", "g"); err != nil {
		return nil, err
	}
	n := len(v.data) - 1
	if n < 0 || bytes.IndexByte(v.data, 0) != n {
		return nil, v.notNormal("a string must end in its only NUL")
	}
	if !utf8.Valid(v.data[:n]) {
		return nil, v.notNormal("a string must be UTF-8")
	}
	return v.data[:n], nil
}

// Texts returns the content of an array of strings, which is never nil.
func (v Value) Texts() ([]string, error) {
	if err := v.want("as"); err != nil {
		return nil, err
	}
	texts := []string{}
	for child, err := range v.Children() {
		if err != nil {
			return nil, err
		}
		text, err := child.Text()
		if err != nil {
			return nil, err
		}
		texts = append(texts, text)
	}
	return texts, nil
}

// Bytes returns the content of an array of bytes, not a copy.
func (v Value) Bytes() ([]byte, error) {
	if err := v.want("ay"); err != nil {
		return nil, err
	}
	return v.data, nil
}

// Bool returns the content of a boolean.
func (v Value) Bool() (bool, error) {
	if err := v.want("b"); err != nil {
		return false, err
	}
	if len(v.data) != 1 || v.data[0] > 1 {
		return false, v.notNormal("a boolean must be one byte, 0 or 1")
	}
	return v.data[0] == 1, nil
}

// Uint32 returns the content of a u, written in the given byte order.
func (v Value) Uint32(order binary.ByteOrder) (uint32, error) {
	if err := v.wantSized("u"); err != nil {
		return 0, err
	}
	return order.Uint32(v.data), nil
}

// Uint64 returns the content of a t, written in the given byte order.
func (v Value) Uint64(order binary.ByteOrder) (uint64, error) {
	if err := v.wantSized("t"); err != nil {
		return 0, err
	}
	return order.Uint64(v.data), nil
}

// Variant returns what a variant contains: the data, a NUL, the type string.
func (v Value) Variant() (Value, error) {
	if err := v.want("v"); err != nil {
		return Value{}, err
	}
	end := bytes.LastIndexByte(v.data, 0)
	if end < 0 {
		return Value{}, v.notNormal("a variant must name its type")
	}
	l, err := parseType(string(v.data[end+1:]))
	if err != nil {
		return Value{}, fmt.Errorf("%w: %w", err, ErrNotNormal)
	}
	return sized(l, v.data[:end])
}

// Lookup returns what an a{sv} has under a key, taken out of its variant. Of several entries with one key the
// first counts, as in g_variant_lookup_value.
func (v Value) Lookup(key string) (Value, bool, error) {
	if err := v.want("a{sv}"); err != nil {
		return Value{}, false, err
	}
	for entry, err := range v.Children() {
		if err != nil {
			return Value{}, false, err
		}
		cursor := entry.tuple()
		name, _, err := cursor.read()
		if err != nil {
			return Value{}, false, err
		}
		text, err := name.text()
		if err != nil {
			return Value{}, false, err
		}
		if string(text) != key {
			continue
		}
		boxed, _, err := cursor.read()
		if err != nil {
			return Value{}, false, err
		}
		value, err := boxed.Variant()
		return value, err == nil, err
	}
	return Value{}, false, nil
}

func (v Value) want(types ...string) error {
	for _, t := range types {
		if v.Type() == t {
			return nil
		}
	}
	return fmt.Errorf("GVariant has type %.64q, not %q", v.Type(), types[0])
}

func (v Value) wantSized(typ string) error {
	if err := v.want(typ); err != nil {
		return err
	}
	if len(v.data) != v.layout.size {
		return v.notNormal("wrong size")
	}
	return nil
}

// sized returns the value, unless its type has a fixed size and data another.
func sized(l *layout, data []byte) (Value, error) {
	v := Value{layout: l, data: data}
	if l.fixed() && len(data) != l.size {
		return Value{}, v.notNormal("wrong size")
	}
	return v, nil
}

func (v Value) notNormal(why string) error {
	return fmt.Errorf("GVariant of type %.64q in %d bytes: %s: %w", v.Type(), len(v.data), why, ErrNotNormal)
}
