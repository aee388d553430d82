package content

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/liveapply/liveapply/internal/overlay"
)

// model is what an overlay has, by path: "file CONTENT", "link TARGET" or "mask".
type model map[string]string

// hides tells whether what the system has at a path is hidden with a directory above it.
func (m model) hides(path string) bool {
	for at := filepath.Dir(path); at != "."; at = filepath.Dir(at) {
		if m[at] == "mask" || m[at] == "opaque" {
			return true
		}
	}
	return false
}

// drop takes a path out, with all below.
func (m model) drop(path string) {
	maps.DeleteFunc(m, func(at, _ string) bool { return at == path || strings.HasPrefix(at, path+"/") })
}

// modelSystem has the files and directories that the paths of the model are about.
const modelSystem = `mkdir -p usr/d/e etc run; echo a > usr/d/a; echo b > usr/d/e/b; ln -s a usr/d/l; echo c > etc/c`

var modelPaths = []string{"usr/d", "usr/d/a", "usr/d/a/x", "usr/d/e", "usr/d/e/b", "usr/d/e/new", "usr/d/l", "usr/new", "usr/new/deep/x", "etc/c", "etc/new", "run/x"}

var isDirOfModel = map[string]bool{"usr/d": true, "usr/d/e": true}

var linksOfModel = map[string]string{"usr/d/l": "a"}

func inModelSystem(path string) bool {
	return isDirOfModel[path] || slices.Contains([]string{"usr/d/a", "usr/d/e/b", "usr/d/l", "etc/c"}, path)
}

// dirIn tells whether the overlay has a directory at a path.
func (m model) dirIn(path string) bool {
	return m[path] == "opaque" || m.hasBelow(path)
}

func (m model) hasBelow(path string) bool {
	return slices.ContainsFunc(slices.Collect(maps.Keys(m)), func(at string) bool { return strings.HasPrefix(at, path+"/") })
}

// put is what add, set and mask have in common: it makes room, and tells whether there can be something.
func (m model) put(path, what string) bool {
	for at := filepath.Dir(path); at != "."; at = filepath.Dir(at) {
		if strings.HasPrefix(m[at], "file") || strings.HasPrefix(m[at], "link") {
			return false
		}
		if _, has := m[at]; !has && !m.dirIn(at) && !m.hides(at) && inModelSystem(at) && !isDirOfModel[at] {
			return false
		}
	}
	if _, has := m[path]; what != "mask" && (m.dirIn(path) || !has && !m.hides(path) && isDirOfModel[path]) {
		return false
	}
	m.drop(path)
	for at := filepath.Dir(path); at != "."; at = filepath.Dir(at) {
		if m[at] == "mask" {
			m[at] = "opaque"
		}
	}
	m[path] = what
	return true
}

// do does what an operation should do, and tells whether it should be possible.
func (m model) do(op overlay.Operation, content string) bool {
	path := strings.TrimPrefix(op.Path, "/")
	_, has := m[path]
	switch op.Verb {
	case overlay.Add:
		switch {
		case !inModelSystem(path) || isDirOfModel[path]:
			return false
		case linksOfModel[path] != "":
			return m.put(path, "link "+linksOfModel[path])
		}
		return m.put(path, "file "+filepath.Base(path)+"\n")
	case overlay.Set:
		return m.put(path, "file "+content)
	case overlay.Mask:
		return (inModelSystem(path) || has || m.dirIn(path)) && m.put(path, "mask")
	}
	if !has && !m.dirIn(path) {
		return false
	}
	m.drop(path)
	for at := filepath.Dir(path); at != "." && !m.hasBelow(at); at = filepath.Dir(at) {
		if m[at] == "opaque" { // it was a mask before something was put below it
			m[at] = "mask"
		}
	}
	return true
}

// read is what an overlay really has.
func readModel(t tester, p overlay.Placed) model {
	t.Helper()
	m := model{}
	entries, err := p.Entries()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join(p.Tree(), e.Path)
		switch e.Kind {
		case overlay.File:
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			m[e.Path] = "file " + string(content)
		case overlay.Link:
			target, err := os.Readlink(path)
			if err != nil {
				t.Fatal(err)
			}
			m[e.Path] = "link " + target
		case overlay.Masked:
			m[e.Path] = "mask"
		case overlay.Folder:
			m[e.Path] = "opaque"
			if !e.Opaque {
				t.Errorf("%s is listed, and is a directory as in the system", e.Path)
			}
		}
		if e.Base == nil {
			t.Errorf("it is not known what %s replaced", e.Path)
		}
	}
	return m
}

// Whatever is done, an overlay has what a model of maps says, what did not change is the same file in the next generation, and a
// generation that is there never changes.
func TestOverlaysAreWhatAModelSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "overlay")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		l := newLab(t, dir, modelSystem)
		models := map[string]model{}
		generations := map[string][]string{} // directory → what it had when it was made
		var used []string
		names := []string{"a", "b", "c"}
		for _, name := range names {
			l.do(overlay.Operation{Verb: overlay.Create, Name: name, Priority: len(models)})
			models[name] = model{}
		}
		for step := range rapid.IntRange(1, 25).Draw(t, "steps") {
			name := rapid.SampledFrom(names).Draw(t, "name")
			wanted := maps.Clone(models[name])
			var ops []overlay.Operation
			possible := true
			for range rapid.IntRange(1, 3).Draw(t, "operations") {
				content := fmt.Sprint("content ", step, len(ops))
				op := overlay.Operation{
					Verb: rapid.SampledFrom([]overlay.Verb{overlay.Add, overlay.Set, overlay.Set, overlay.Mask, overlay.Unset}).Draw(t, "verb"), Name: name,
					Path: "/" + rapid.SampledFrom(modelPaths).Draw(t, "path"), Mode: 0o644,
				}
				if op.Verb == overlay.Set {
					op.From = l.input(content)
				}
				ops = append(ops, op)
				possible = possible && wanted.do(op, content)
			}
			before := l.placed(name)
			if err := l.try(ops...); (err == nil) != possible {
				t.Fatalf("%+v with %v: %v", ops, models[name], err)
			}
			if !possible {
				l.tidy(used...)
				continue
			}
			now := l.placed(name)
			if diff := cmp.Diff(wanted, readModel(t, now)); diff != "" {
				t.Fatalf("%+v with %v (-want +got):\n%s", ops, models[name], diff)
			}
			touched := func(path string) bool {
				return slices.ContainsFunc(ops, func(op overlay.Operation) bool {
					return "/"+path == op.Path || strings.HasPrefix("/"+path, op.Path+"/")
				})
			}
			for path, what := range wanted {
				same := what != "opaque" && what != "mask" && models[name][path] == what && !touched(path)
				if same && inodeOf(filepath.Join(now.Tree(), path)) != inodeOf(filepath.Join(before.Tree(), path)) {
					t.Errorf("%s did not change, and is another file", path)
				}
			}
			models[name] = wanted
			generations[now.Tree()] = lines(t, now.Tree())
			used = append(used, filepath.Dir(now.Tree()))
		}
		for dir, then := range generations {
			if diff := cmp.Diff(then, lines(t, dir)); diff != "" {
				t.Errorf("generation %s has changed (-was +is):\n%s", dir, diff)
			}
		}
		l.tidy()
		for dir := range generations {
			isOfIndex := slices.ContainsFunc(names, func(name string) bool { return l.placed(name).Tree() == dir })
			if (inodeOf(dir) != 0) != isOfIndex {
				t.Errorf("%s: in the index is %t, there is %t", dir, isOfIndex, inodeOf(dir) != 0)
			}
		}
		for _, name := range names {
			if l.placed(name).Generation == 0 {
				continue
			}
			if diff := cmp.Diff(models[name], readModel(t, l.placed(name))); diff != "" {
				t.Errorf("%s in the end (-want +got):\n%s", name, diff)
			}
		}
	})
}
