package content

import (
	"slices"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/fuzztest"
	"github.com/liveapply/liveapply/internal/overlay"
)

// describedPerByte is how much memory reading may take for a byte of input: of many empty objects in a list, each becomes one of these types.
const describedPerByte = 1024

// A description in a backup names nothing outside of a tree.
func FuzzDescription(f *testing.F) {
	f.Add([]byte(`{"version":1,"overlay":{"name":"a","kind":"overlay","scope":"system"},"bases":{"usr/a":{}},"entries":[{"path":"usr","kind":"directory","mode":493},{"path":"usr/a","kind":"mask"}]}`))
	f.Add([]byte(`{"version":1,"overlay":{"name":"a","kind":"overlay","scope":"system","writable":true},"entries":[{"path":"../x","kind":"file"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var about *description
		var err error
		fuzztest.Bounded(t, len(data), describedPerByte, func() { about, err = parseDescription(data) })
		if err != nil {
			return
		}
		for _, e := range about.Entries {
			if slices.Contains(strings.Split(e.Path, "/"), "..") || strings.ContainsRune(e.Path, 0) || e.Kind == overlay.Special {
				t.Errorf("%q has %+v", data, e)
			}
		}
	})
}
