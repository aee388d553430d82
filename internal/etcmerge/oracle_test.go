package etcmerge

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// oracleChecks is how many generated trees are tried: each is a sysroot with two deployments, or several mounts. More with -rapid.checks.
const oracleChecks = "16"

// spec is a generated entry of /etc.
type spec struct {
	kind    string // "", "file", "link", "dir"
	content string
	mode    os.FileMode
	uid     int
	below   map[string]spec
}

var (
	specNames = []string{"a", "b", "c.d"}
	specModes = rapid.SampledFrom([]os.FileMode{0o755, 0o755, 0o700})
)

// drawSpec draws an entry, which is often what it was before.
func drawSpec(t *rapid.T, old spec, depth int) spec {
	s := spec{content: rapid.SampledFrom([]string{"1", "2"}).Draw(t, "content"), mode: specModes.Draw(t, "mode")}
	s.uid = rapid.SampledFrom([]int{0, 0, 0, 5}).Draw(t, "uid")
	kinds := []string{"same", "same", "same", "", "file", "file", "link", "dir", "dir", "dir"}
	if depth == 0 {
		kinds = kinds[:7]
	}
	s.kind = rapid.SampledFrom(kinds).Draw(t, "kind")
	switch s.kind {
	case "same":
		s = old
		if s.kind == "dir" {
			s.below = drawBelow(t, old.below, depth-1)
		}
	case "dir":
		s.content, s.below = "", drawBelow(t, old.below, depth-1)
	case "link":
		s.mode = 0
	}
	return s
}

func drawBelow(t *rapid.T, old map[string]spec, depth int) map[string]spec {
	below := map[string]spec{}
	for _, name := range specNames {
		if s := drawSpec(t, old[name], depth); s.kind != "" {
			below[name] = s
		}
	}
	return below
}

// keepUnchanged undoes what libostree cannot merge and this package does not look at: something else in place of a directory that is the same
// in both defaults.
func keepUnchanged(old, new, local map[string]spec) {
	for name, was := range old {
		now, here := new[name], local[name]
		if was.kind != "dir" || now.kind != "dir" {
			continue
		}
		if reflect.DeepEqual(was, now) && here.kind != "" && here.kind != "dir" {
			local[name] = was
			continue
		}
		keepUnchanged(was.below, now.below, here.below)
	}
}

// writeSpecs makes a tree what below says. What is right already is not touched.
func writeSpecs(t tester, dir string, old, below map[string]spec) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range specNames {
		path, was, s := filepath.Join(dir, name), old[name], below[name]
		if was.kind != s.kind || was.kind != "dir" && was.content != s.content {
			must(os.RemoveAll(path))
			was = spec{}
			switch s.kind {
			case "file":
				must(os.WriteFile(path, []byte(s.content), 0o600))
			case "link":
				must(os.Symlink(s.content, path))
			case "dir":
				must(os.Mkdir(path, 0o700))
			}
		}
		if s.kind == "" {
			continue
		}
		must(os.Lchown(path, s.uid, 0))
		if s.kind != "link" {
			must(os.Chmod(path, s.mode))
		}
		if s.kind == "dir" {
			writeSpecs(t, path, was.below, s.below)
		}
	}
}

// TestGeneratedEtcIsThatOfOSTreeAdminDeploy compares with libostree on generated trees: a few directories, each with a default, a
// new default and a local state of its own.
func TestGeneratedEtcIsThatOfOSTreeAdminDeploy(t *testing.T) {
	checkSome(t, checkOracle)
}

// checkSome is rapid.Check with less than its number of checks.
func checkSome(t *testing.T, check func(*rapid.T)) {
	t.Helper()
	checks := flag.Lookup("rapid.checks")
	if before := checks.Value.String(); before == checks.DefValue {
		if err := checks.Value.Set(oracleChecks); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := checks.Value.Set(before); err != nil {
				t.Error(err)
			}
		}()
	}
	rapid.Check(t, check)
}

func checkOracle(t *rapid.T) {
	root, err := os.MkdirTemp("", "etcmerge-oracle-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(root)
	const parts = 8
	var v1, v2, local [parts]map[string]spec
	for i := range parts {
		v1[i] = drawBelow(t, nil, 2)
		v2[i] = drawBelow(t, v1[i], 2)
		local[i] = drawBelow(t, v1[i], 2)
		keepUnchanged(v1[i], v2[i], local[i])
	}
	mkdirs := ""
	for i := range parts {
		mkdirs += fmt.Sprintf("mkdir -p p%d; ", i)
	}
	write := func(dir string, old, specs [parts]map[string]spec, except []int) {
		for i := range parts {
			if !slices.Contains(except, i) {
				writeSpecs(t, filepath.Join(dir, fmt.Sprintf("p%d", i)), old[i], specs[i])
			}
		}
	}
	l := newLabWith(t, root, []func(string){
		func(etc string) { sh(t, etc, mkdirs); write(etc, [parts]map[string]spec{}, v1, nil) },
		func(etc string) { write(etc, v1, v2, nil) },
	})
	defer l.close()
	write(l.dirs.Etc, v1, local, nil)

	// Those parts that cannot be merged, libostree cannot merge either. Without them everything can be.
	_, err = l.tryPlan("v1", "v2")
	var conflict *ConflictError
	var conflicting []int
	if errors.As(err, &conflict) {
		for _, c := range conflict.Conflicts {
			var i int
			if _, err := fmt.Sscanf(c.Path, "p%d", &i); err != nil {
				t.Fatal(err)
			}
			conflicting = append(conflicting, i)
		}
		// Of several it would only be known that one is right.
		if len(conflict.Conflicts) == 1 && !l.isInReplacement(conflict.Conflicts[0].Path) && !isLinkForDirectory(conflict.Conflicts[0].Path, v1[:], v2[:]) {
			if out, err := trySh(root, "ostree admin --sysroot=sys deploy --os=lab v2"); err == nil {
				t.Fatalf("libostree can merge what is said to be a conflict, %v: %s", conflict, out)
			}
			sh(t, root, "rm -rf sys/ostree/deploy/lab/deploy/$(ostree --repo=sys/ostree/repo rev-parse v2).*")
		}
		for _, i := range slices.Compact(slices.Sorted(slices.Values(conflicting))) {
			part := fmt.Sprintf("p%d", i)
			sh(t, l.dirs.Etc, "rm -r "+part+"; cp -a --no-preserve=links ../usr/etc/"+part+" "+part)
		}
	} else if err != nil {
		t.Fatal(err)
	}
	start := l.etc()
	plan := l.plan("v1", "v2")
	l.deploy("v2")
	l.apply(roundTrip(t, plan))
	got, want := contentOnly(l.etc()), contentOnly(scan(t, l.etcOf("v2")))
	old, new := scan(t, filepath.Join(filepath.Dir(l.dirs.Etc), "usr/etc")), scan(t, filepath.Join(filepath.Dir(l.etcOf("v2")), "usr/etc"))
	for path := range start {
		// A directory that only differs in what it is itself, and whose default does not: see MakePlan.
		if old[path].SubDirs && start[path].SubDirs && old[path].What == new[path].What && got[path].What == start[path].What {
			delete(got, path)
			delete(want, path)
		}
		// A directory that replaced a file on both sides.
		if start[path].SubDirs && new[path].SubDirs && old[path].What != "" && !old[path].SubDirs {
			for p := range got {
				if p == path || strings.HasPrefix(p, path+"/") {
					delete(got, p)
				}
			}
			for p := range want {
				if p == path || strings.HasPrefix(p, path+"/") {
					delete(want, p)
				}
			}
		}
	}
	wantSame(t, "merged /etc", want, got)
	l.reset()
	wantSame(t, "/etc after reset", start, l.etc())
}

// isLinkForDirectory tells whether the target has a link in place of a directory. What was deleted in that, libostree deletes through the link,
// which leads nowhere: see MakePlan.
func isLinkForDirectory(path string, old, new []map[string]spec) bool {
	names := strings.Split(path, "/")
	var i int
	if _, err := fmt.Sscanf(names[0], "p%d", &i); err != nil {
		return false
	}
	was, now := spec{below: old[i]}, spec{below: new[i]}
	for _, name := range names[1:] {
		was, now = was.below[name], now.below[name]
	}
	return was.kind == "dir" && now.kind == "link"
}

// isInReplacement tells whether a path is in a directory that replaced a file locally: libostree does not see what is in it.
func (l *lab) isInReplacement(path string) bool {
	l.t.Helper()
	old := scan(l.t, filepath.Join(filepath.Dir(l.dirs.Etc), "usr/etc"))
	for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
		if was := old[dir]; was.What != "" && !was.SubDirs {
			return true
		}
	}
	return false
}
