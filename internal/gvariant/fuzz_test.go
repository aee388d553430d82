package gvariant

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/liveapply/liveapply/internal/fuzztest"
)

// perByte is how much memory reading may take for a byte of input: a type that stands in a variant is parsed.
const perByte = 256

// What is in normal form is what a serializer makes of what was read, byte by byte. What is not is an error at worst.
func FuzzValue(f *testing.F) {
	for _, vector := range vectors(f) {
		f.Add(vector.typ, vector.data)
	}
	text := append(bytes.Repeat([]byte{'x'}, 83), 0)
	f.Add("as", append(bytes.Repeat(text, 3), 84, 0, 168, 0, 252, 0)) // framing offsets of two bytes where one is enough
	f.Fuzz(func(t *testing.T, typ string, data []byte) {
		var v Value
		var err, normal error
		fuzztest.Bounded(t, len(typ)+len(data), perByte, func() {
			if v, err = New(typ, data); err != nil {
				return
			}
			normal = v.CheckNormal()
			_, _, _ = v.Lookup("target")
			for child := range v.Children() {
				_, _ = child.Text()
			}
		})
		if err != nil || normal != nil {
			return
		}
		if _, err := show(v); err != nil {
			t.Errorf("%s %x is in normal form, but reading it fails: %v", typ, data, err)
		}
		if again := serialize(t, v); !bytes.Equal(again, data) {
			t.Errorf("%s %x is in normal form, but a serializer makes %x of it", typ, data, again)
		}
	})
}

func TestSerializerOfTheFuzzTargetAgreesWithGLib(t *testing.T) {
	for _, vector := range vectors(t) {
		if vector.value == nil {
			continue
		}
		v, err := New(vector.typ, vector.data)
		if err != nil {
			t.Fatal(err)
		}
		if again := serialize(t, v); !bytes.Equal(again, vector.data) {
			t.Errorf("%s %x: a serializer makes %x of it", vector.typ, vector.data, again)
		}
	}
}

// serialize writes a value anew from its children.
func serialize(t *testing.T, v Value) []byte {
	t.Helper()
	switch v.Type()[0] {
	case 'a', '(', '{', 'm', 'v':
	default:
		return v.Data()
	}
	var children []Value
	for child, err := range v.Children() {
		if err != nil {
			t.Fatal(err)
		}
		children = append(children, child)
	}
	switch v.Type()[0] {
	case 'm':
		if len(children) == 0 {
			return nil
		}
		if just := serialize(t, children[0]); v.layout.members[0].fixed() {
			return just
		} else {
			return append(bytes.Clone(just), 0)
		}
	case 'v':
		return append(append(bytes.Clone(serialize(t, children[0])), 0), children[0].Type()...)
	}
	return serializeContainer(t, v, children)
}

// serializeContainer writes an array, whose framing offsets are in order and one for each element, or a tuple, whose are backwards
// and none for the last.
func serializeContainer(t *testing.T, v Value, children []Value) (data []byte) {
	t.Helper()
	isArray := v.Type()[0] == 'a'
	var ends []int
	for i, child := range children {
		data = pad(data, child.layout.align)
		data = append(data, serialize(t, child)...)
		switch {
		case child.layout.fixed():
		case isArray:
			ends = append(ends, len(data))
		case i < len(children)-1:
			ends = append([]int{len(data)}, ends...)
		}
	}
	if v.layout.fixed() {
		if data = pad(data, v.layout.align); len(children) == 0 {
			data = []byte{0}
		}
		return data
	}
	width := 1
	for uint64(len(data)+width*len(ends)) >= 1<<(8*width) {
		width *= 2
	}
	for _, end := range ends {
		data = append(data, binary.LittleEndian.AppendUint64(nil, uint64(end))[:width]...)
	}
	return data
}

func pad(data []byte, align int) []byte {
	for len(data)%align != 0 {
		data = append(data, 0)
	}
	return data
}
