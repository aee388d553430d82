package accounts

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/fuzztest"
)

// perByte is how much memory may be taken for a byte of an account file: the least that a line can be is a few bytes, of which many things are remembered.
const perByte = 512

// An account merge keeps what is local, invents nothing, says where numbers clash, and is at its end after one time.
func FuzzAccounts(f *testing.F) {
	text := func(s ...string) []byte { return []byte(strings.Join(s, "\n") + "\n") }
	f.Add(uint8(0), text("root:x:0:0::/:"), text("root:x:0:0::/:", "bob:x:1:1::/:"), text("root:x:0:0::/:", "pg:x:1:1::/:"),
		text("root:*::"), text("root:h::", "bob:h::"), text("root:*::", "pg:!::"))
	f.Add(uint8(0), text("a:x:1", "pg:x:2"), text("a:x:1:changed", "pg:x:2"), text("root:x:0"), // the target removes both
		text("a:*", "pg:*"), text("a:*", "pg:changed"), text("root:*"))
	f.Add(uint8(1), text("ssl:x:5:a,b"), text("ssl:x:5:a,b,c"), text("ssl:x:5:b,d"), text("ssl:!:a:b"), text("ssl:!::b"), text("ssl:!:a:b,c"))
	f.Add(uint8(2), text(), text("bob:100:1000", "ann:150:10"), text("bob:155:5"), []byte(nil), []byte(nil), []byte(nil))
	f.Add(uint8(3), text("a:1:2"), text("a:1:2", "a:9:2", "+"), text("-", "a:1:2", "b:4:65536"), []byte(nil), []byte(nil), []byte(nil))
	f.Add(uint8(2), []byte("a:1:2\na:1:2\n"), []byte("a:1:2\n"), []byte("a:1:4294967295\nb:4294967295:4294967295\n"), []byte(nil), []byte(nil), []byte(nil))
	f.Add(uint8(1), []byte("a:x:1:b,c\n"), []byte("a:x:1:b,c,d\n\n#\n+\n"), []byte("a:x:1:c\nb:x:2:\n"), []byte("a:!:b:c"), []byte("a:!::c\na:!::\n"), []byte("a:!:b,b:\n:::\n"))
	f.Add(uint8(0), []byte("\x00\n\n"), []byte("\n"), []byte(":\n"), []byte("\x00\n\n"), []byte("\n"), []byte(":\n"))
	paths := []string{"passwd", "group", "subuid", "subgid"}
	f.Fuzz(func(t *testing.T, which uint8, base, ours, theirs, shadowBase, shadowOurs, shadowTheirs []byte) {
		path := paths[int(which)%len(paths)]
		names := &File{Base: base, Ours: ours, Theirs: theirs}
		shadow := &File{Base: shadowBase, Ours: shadowOurs, Theirs: shadowTheirs}
		merges := map[string]*File{path: names}
		if path := formats[path].shadow; path != "" {
			merges[path] = shadow
		}
		var clashes []Clash
		n := len(base) + len(ours) + len(theirs) + len(shadowBase) + len(shadowOurs) + len(shadowTheirs)
		fuzztest.Bounded(t, n, perByte, func() {
			Merge(merges)
			clashes = names.Clashes(path)
		})
		for path, m := range merges {
			checkInvented(t, path, m)
			checkMerge(t, path, m.Base, m.Ours, m.Theirs)
		}
		checkLocal(t, path, names)
		checkClashes(t, path, names, clashes)
		if len(merges) == 2 {
			checkShadow(t, names, shadow)
		}
	})
}

// firstOf returns the first line of each user, group or owner, as getpwnam(3) finds it.
func firstOf(content []byte) map[string]string {
	first := map[string]string{}
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSuffix(line, "\n")
		name, _, ok := strings.Cut(line, ":")
		if _, known := first[name]; ok && !known && name != "" && strings.IndexAny(name, "+-#") != 0 {
			first[name] = line
		}
	}
	return first
}

func linesOf(content []byte) []string {
	return strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
}

func checkInvented(t *testing.T, path string, m *File) {
	t.Helper()
	ours, theirs := firstOf(m.Ours), firstOf(m.Theirs)
	for name := range firstOf(m.Result) {
		if _, ok := ours[name]; !ok && theirs[name] == "" {
			t.Errorf("%s: %q is in neither", path, name)
		}
	}
}

// checkLocal looks for what the administrator added, changed and deleted.
func checkLocal(t *testing.T, path string, m *File) {
	t.Helper()
	if formats[path].ids == idRanges { // an owner may have several lines: each counts for itself
		base, result := linesOf(m.Base), linesOf(m.Result)
		for _, line := range linesOf(m.Ours) {
			if line != "" && !slices.Contains(base, line) && !slices.Contains(result, line) {
				t.Errorf("%s: %q, which is local, is lost", path, line)
			}
		}
		return
	}
	base, ours, theirs, result := firstOf(m.Base), firstOf(m.Ours), firstOf(m.Theirs), firstOf(m.Result)
	for name, line := range ours {
		switch got, ok := result[name]; {
		case line == base[name]:
		case !ok:
			t.Errorf("%s: %q, which was added or changed, is lost", path, line)
		case (theirs[name] == "" || theirs[name] == base[name]) && got != line:
			t.Errorf("%s: %q, which only ours changed, became %q", path, line, got)
		}
	}
	for name := range base {
		if _, ok := result[name]; ok && ours[name] == "" {
			t.Errorf("%s: %q, which was deleted, is back", path, name)
		}
	}
}

// checkClashes compares every entry that arrives with every local one.
func checkClashes(t *testing.T, path string, m *File, got []Clash) {
	t.Helper()
	ours, theirs, result := numbersOf(path, m.Ours), numbersOf(path, m.Theirs), numbersOf(path, m.Result)
	if len(result) > 100 {
		return // too many to compare all
	}
	want := map[string]bool{}
	for a := range result {
		for l := range result {
			if !ours[a] && !theirs[l] && a.owner != l.owner && a.first <= l.last && l.first <= a.last {
				want[fmt.Sprint(a, l)] = true
			}
		}
	}
	if (len(want) > 0) != (len(got) > 0) {
		t.Errorf("%s of %q and %q: clashes %v, want %v", path, m.Ours, m.Theirs, got, slices.Sorted(maps.Keys(want)))
	}
}

type numbers struct {
	owner       string
	first, last uint64
}

func numbersOf(path string, content []byte) map[numbers]bool {
	all := map[numbers]bool{}
	for _, line := range linesOf(content) {
		fields := strings.Split(line, ":")
		if len(fields) < 3 || fields[0] == "" || strings.IndexAny(fields[0], "+-#") == 0 {
			continue
		}
		n := numbers{owner: fields[0]}
		second, err := strconv.ParseUint(fields[2], 10, 32)
		if err != nil {
			continue
		}
		n.first, n.last = second, second
		if path == "subuid" || path == "subgid" {
			if n.first, err = strconv.ParseUint(fields[1], 10, 32); err != nil || second == 0 {
				continue
			}
			n.last = n.first + second - 1
		}
		all[n] = true
	}
	return all
}

// checkShadow compares which names come and go with which lines of the shadow file do.
func checkShadow(t *testing.T, names, shadow *File) {
	t.Helper()
	had, has := firstOf(names.Ours), firstOf(names.Result)
	local, theirs, result := firstOf(shadow.Ours), firstOf(shadow.Theirs), firstOf(shadow.Result)
	for name := range had {
		if _, ok := result[name]; ok && has[name] == "" {
			t.Errorf("%q is gone, its password is not", name)
		}
	}
	for name := range has {
		if _, ok := result[name]; !ok && (local[name] != "" || had[name] == "" && theirs[name] != "") {
			t.Errorf("%q is there without its line in the shadow file", name)
		}
	}
}
