package layer

import (
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
)

// tree makes a Spec of paths below usr. What follows "=" is the content.
func tree(paths ...string) ostreetest.Spec {
	spec := ostreetest.Spec{"usr/same": ostreetest.File("")}
	for _, path := range paths {
		name, content, _ := strings.Cut(path, "=")
		spec["usr/"+name] = ostreetest.File(content)
	}
	return spec
}

func TestKeptPathStaysAsItWas(t *testing.T) {
	const modules = "lib/modules/6.1"
	for _, test := range []struct {
		name          string
		before, after ostreetest.Spec
		want          ostreetest.Spec // nil: as after
	}{
		{"equal", tree(modules+"/a=1", "b=1"), tree(modules+"/a=1", "b=2"), nil},
		{"removed", tree(modules+"/a=1", modules+"/sub/b=1", "lib/modules/5/x"), tree("lib/modules/7/a=2"),
			tree(modules+"/a=1", modules+"/sub/b=1", "lib/modules/7/a=2")},
		{"changed", tree(modules+"/a=1", modules+"/b=1"), tree(modules+"/a=2", modules+"/c=2"), tree(modules+"/a=1", modules+"/b=1")},
		{"replaced by a file", tree(modules + "/a=1"), tree(modules + "=file"), tree(modules + "/a=1")},
		{"ancestor removed", tree(modules+"/a=1", "lib/modules/5/x", "lib/other"), tree("b"), tree(modules+"/a=1", "b")},
		{"ancestor replaced by a file", tree(modules+"/a=1", "lib/other"), tree("lib=file", "b"), tree(modules+"/a=1", "b")},
		{"added", tree("lib/modules/5/x"), tree(modules+"/a=1", modules+"/b=1"), nil},
		{"added with an ancestor", tree("b"), tree(modules + "/a=1"), nil},
		{"in place of a file above", tree("lib=file"), tree(modules + "/a=1"), nil},
		{"in neither", tree("lib/x=1"), tree("lib/x=2"), nil},
		{"similar names", tree(modules+"/a=1", modules+".1/a=1", modules+" /a=1"), tree(modules+"/a=2", modules+".1/a=2"),
			tree(modules+"/a=1", modules+".1/a=2")},
		{"all but the kept is replaced", merge(tree(modules+"/a=1"), numbered("lib/modules/old")), merge(tree("lib/modules/x"), numbered("lib/modules/new")),
			merge(tree(modules+"/a=1", "lib/modules/x"), numbered("lib/modules/new"))},
		{"the only one kept", merge(tree(modules+"/a=1"), numbered("lib/modules/old")), tree("lib/modules/x"), tree(modules+"/a=1", "lib/modules/x")},
	} {
		t.Run(test.name, func(t *testing.T) {
			u := newUpdate(t, test.before, test.after)
			want := u.new
			if test.want != nil {
				want = ostreetest.Commit(t, u.repo.Path(), "want", test.want.Write(t))
			}
			before := len(u.changes)
			changes, err := Keep(u.changes, modules)
			u.check(err)
			if len(u.changes) != before {
				t.Error("the list that was passed is another one now")
			}
			u.changes = changes
			layer, _ := u.build()
			if diff := differences(t, everything(t, u.checkout(want)), everything(t, u.mount(layer))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// numbered has enough files that Build looks whether the directory can be opaque.
func numbered(prefix string) ostreetest.Spec {
	spec := ostreetest.Spec{}
	for i := range 2 * worthReading {
		spec["usr/"+prefix+strings.Repeat("x", i)] = ostreetest.File(prefix)
	}
	return spec
}

func TestOnlyPathsInATreeCanBeKept(t *testing.T) {
	for _, path := range []string{"", ".", "/lib/modules", "lib/", "../lib", "lib//modules"} {
		if _, err := Keep(nil, path); err == nil {
			t.Errorf("no error for %q", path)
		}
	}
}
