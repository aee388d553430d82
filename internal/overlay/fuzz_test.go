package overlay

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveapply/liveapply/internal/fuzztest"
)

// perByte is how much memory reading may take for a byte of input: of many empty objects in a list, each becomes one of these types.
const perByte = 1024

// Of a request, only what can be carried out is left, and names are no way out of a store.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"operations":[{"verb":"set","name":"a","path":"/usr/x","from":"/tmp/x","mode":420}],"force":true,"requested_by":"root"}`))
	f.Add([]byte(`{"operations":[{"verb":"create","name":"../x","scope":"unit:a/b.service"},{"verb":"restore","name":"","from":"b"}]}`))
	f.Add([]byte(`{"operations":[{},{},{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var request *Request
		var err error
		fuzztest.Bounded(t, len(data), perByte, func() { request, err = ParseRequest(data) })
		if err != nil {
			return
		}
		for _, op := range request.Operations {
			if op.Name != "" && (filepath.Base(op.Name) != op.Name || strings.HasPrefix(op.Name, ".")) || op.Name == "" && op.Verb != Restore {
				t.Errorf("%q names the overlay %q", data, op.Name)
			}
			if op.Mode > 0o7777 {
				t.Errorf("%q has the mode %o", data, op.Mode)
			}
			if strings.ContainsAny(op.Scope.Unit(), "/\n ") {
				t.Errorf("%q is for the unit %q", data, op.Scope.Unit())
			}
		}
	})
}

// An index is read as it was meant, and is written as it was read.
func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"version":1,"overlays":[{"name":"a","kind":"overlay","scope":"system","priority":1,"enabled":true,"writable":true,"generation":3},{"name":"b","kind":"updates","scope":"unit:b.service"}]}`))
	f.Add([]byte(`{"version":1,"overlays":[{"name":"b","kind":"overlay","scope":"system"},{"name":"a","kind":"overlay","scope":"system"}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var index *Index
		var err error
		fuzztest.Bounded(t, len(data), perByte, func() { index, err = parseIndex(data) })
		if err != nil {
			return
		}
		for _, o := range index.Overlays {
			if CheckName(o.Name) != nil || index.Find(o.Name) == nil || index.Find(o.Name).Name != o.Name || o.Generation < 0 {
				t.Errorf("%q has %+v, which is not to be found", data, o)
			}
		}
		again, err := json.Marshal(index)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := parseIndex(again); err != nil || !cmp.Equal(index, second) {
			t.Errorf("%q is written as %q, %v", data, again, err)
		}
	})
}

// A manifest that is read says of each path at most one thing.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"version":1,"bases":{"usr/a":{"commit":"c","checksum":"d"},"etc/b":{"checksum":""}}}`))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var manifest *Manifest
		var err error
		fuzztest.Bounded(t, len(data), perByte, func() { manifest, err = parseManifest(data) })
		if err != nil {
			return
		}
		again, err := json.Marshal(manifest)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := parseManifest(again); err != nil || !cmp.Equal(manifest, second) {
			t.Errorf("%q is written as %q, %v", data, again, err)
		}
	})
}
