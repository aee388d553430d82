package gvariant

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// vector is a line of testdata/glib.txt, see testdata/glib.py.
type vector struct {
	typ   string
	data  []byte
	value any // what GLib reads; nil if the data is not in normal form
}

func vectors(t testing.TB) []vector {
	t.Helper()
	f, err := os.Open("testdata/glib.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []vector
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), " ", 3)
		v := vector{typ: fields[0]}
		if v.data, err = hex.DecodeString(strings.Trim(fields[1], "-")); err != nil {
			t.Fatal(err)
		}
		if fields[2] != "-" {
			if err := json.Unmarshal([]byte(fields[2]), &v.value); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, v)
	}
	if err := lines.Err(); err != nil || len(all) == 0 {
		t.Fatal("no vectors: ", err)
	}
	return all
}

// show reads a value in the form that the vectors have it in.
func show(v Value) (any, error) {
	switch kind := v.Type()[0]; kind {
	case 's', 'o', 'g':
		return v.Text()
	case 'v':
		inner, err := v.Variant()
		if err != nil {
			return nil, err
		}
		value, err := show(inner)
		return []any{inner.Type(), value}, err
	case 'a', 'm', '(', '{':
		return showChildren(v)
	}
	return map[string]any{"data": hex.EncodeToString(v.Data())}, nil
}

func showChildren(v Value) (any, error) {
	n, err := v.Len()
	if err != nil {
		return nil, err
	}
	children := make([]any, 0, n)
	for child, err := range v.Children() {
		if err != nil {
			return nil, err
		}
		value, err := show(child)
		if err != nil {
			return nil, err
		}
		again, err := v.Index(len(children))
		if err != nil || again.Type() != child.Type() || !bytes.Equal(again.Data(), child.Data()) {
			return nil, fmt.Errorf("child %d of %s is another by index: %v", len(children), v.Type(), err)
		}
		children = append(children, value)
	}
	if len(children) != n {
		return nil, fmt.Errorf("%d children, not %d", len(children), n)
	}
	return children, nil
}

func TestReadsWhatGLibReads(t *testing.T) {
	for _, vector := range vectors(t) {
		v, err := New(vector.typ, vector.data)
		if err != nil {
			t.Fatal(err)
		}
		err = v.CheckNormal()
		if normal := err == nil; normal != (vector.value != nil) {
			t.Errorf("%s %x: normal form: %t (%v), GLib says %t", vector.typ, vector.data, normal, err, !normal)
			continue
		}
		if vector.value == nil {
			if !errors.Is(err, ErrNotNormal) {
				t.Errorf("%s %x: error %v is not ErrNotNormal", vector.typ, vector.data, err)
			}
			_, _ = show(v) // may fail, must not panic
			continue
		}
		got, err := show(v)
		if err != nil {
			t.Errorf("%s %x: %v", vector.typ, vector.data, err)
		}
		if diff := cmp.Diff(vector.value, got); diff != "" {
			t.Errorf("%s %x: differs from GLib (-GLib +ours):\n%s", vector.typ, vector.data, diff)
		}
	}
}

func TestRefusesBadTypes(t *testing.T) {
	for _, typ := range []string{
		"", "z", "a", "m", "(", "(s", ")", "{", "{s}", "{ss", "{sss}", "{vs}", "{(s)s}", "ss", "a{ss", "r", "*", "?",
		strings.Repeat("a", maxDepth) + "s", strings.Repeat("(", maxDepth+1) + strings.Repeat(")", maxDepth+1),
		"(" + strings.Repeat("y", maxType) + ")",
	} {
		if v, err := New(typ, nil); err == nil {
			t.Errorf("type %.80q was taken, as %q", typ, v.Type())
		}
	}
}

func TestReadsNumbersInTheOrderAskedFor(t *testing.T) {
	v, err := New("(ut)", []byte{1, 2, 3, 4, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8})
	if err != nil {
		t.Fatal(err)
	}
	small, err := v.Index(0)
	if err != nil {
		t.Fatal(err)
	}
	large, err := v.Index(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		order binary.ByteOrder
		small uint32
		large uint64
	}{
		{binary.LittleEndian, 0x04030201, 0x0807060504030201},
		{binary.BigEndian, 0x01020304, 0x0102030405060708},
	} {
		if got, err := small.Uint32(tt.order); err != nil || got != tt.small {
			t.Errorf("%v: u is %#x, %v", tt.order, got, err)
		}
		if got, err := large.Uint64(tt.order); err != nil || got != tt.large {
			t.Errorf("%v: t is %#x, %v", tt.order, got, err)
		}
	}
}

func TestLooksUpInDictionaries(t *testing.T) {
	staged := find(t, "a{sv}", "target")
	target, ok, err := staged.Lookup("target")
	if err != nil || !ok || target.Type() != "a{sv}" {
		t.Fatalf("target: %q, %t, %v", target.Type(), ok, err)
	}
	osname, ok, err := target.Lookup("osname")
	if err != nil || !ok {
		t.Fatalf("osname: %t, %v", ok, err)
	}
	if text, err := osname.Text(); err != nil || text != "debian" {
		t.Errorf("osname is %q, %v", text, err)
	}
	locked, ok, err := staged.Lookup("locked")
	if err != nil || !ok {
		t.Fatalf("locked: %t, %v", ok, err)
	}
	if b, err := locked.Bool(); err != nil || !b {
		t.Errorf("locked is %t, %v", b, err)
	}
	if _, ok, err := staged.Lookup("kargs"); ok || err != nil {
		t.Errorf("kargs: %t, %v", ok, err)
	}
	empty, err := New("a{sv}", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := empty.Lookup("target"); ok || err != nil {
		t.Errorf("in an empty dictionary: %t, %v", ok, err)
	}
}

// find returns the first vector of a type whose data contains text.
func find(t *testing.T, typ, text string) Value {
	t.Helper()
	for _, vector := range vectors(t) {
		if vector.typ == typ && vector.value != nil && strings.Contains(string(vector.data), text) {
			v, err := New(typ, vector.data)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no vector of type %s with %q", typ, text)
	return Value{}
}

func TestWrongTypesAndIndexesAreErrors(t *testing.T) {
	v, err := New("(ay)", []byte("abc"))
	if err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func(Value) error{
		"Text":    func(v Value) error { _, err := v.Text(); return err },
		"Texts":   func(v Value) error { _, err := v.Texts(); return err },
		"Bytes":   func(v Value) error { _, err := v.Bytes(); return err },
		"Bool":    func(v Value) error { _, err := v.Bool(); return err },
		"Uint32":  func(v Value) error { _, err := v.Uint32(binary.BigEndian); return err },
		"Uint64":  func(v Value) error { _, err := v.Uint64(binary.BigEndian); return err },
		"Variant": func(v Value) error { _, err := v.Variant(); return err },
		"Lookup":  func(v Value) error { _, _, err := v.Lookup("x"); return err },
		"Members": func(v Value) error { return v.Members(make([]Value, 2)) },
		"Index":   func(v Value) error { _, err := v.Index(1); return err },
		"Index-":  func(v Value) error { _, err := v.Index(-1); return err },
	} {
		if read(v) == nil {
			t.Errorf("%s of a (ay) is no error", name)
		}
		if read(Value{}) == nil {
			t.Errorf("%s of the zero Value is no error", name)
		}
	}
	if (Value{}).CheckNormal() == nil {
		t.Error("the zero Value is in normal form")
	}
}

func TestDeepNestingEnds(t *testing.T) {
	data := []byte("\x00y") // the type of what a variant holds comes last, so each layer appends
	data = append([]byte{7}, data...)
	for range 100_000 {
		data = append(data, 0, 'v')
	}
	v, err := New("v", data)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.CheckNormal(); !errors.Is(err, ErrNotNormal) {
		t.Errorf("100,000 variants in each other: %v", err)
	}
}
