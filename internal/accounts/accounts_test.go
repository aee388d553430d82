package accounts

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestAccountsMergeByEntry(t *testing.T) {
	cases := []struct{ name, path, base, ours, theirs, want string }{
		{"arrives behind its neighbour", "passwd", "root:0\nnobody:9\n", "root:0\nnobody:9\nbob:1\n", "root:0\npg:5\nnobody:9\nng:6\n", "root:0\npg:5\nnobody:9\nng:6\nbob:1\n"},
		{"goes", "passwd", "root:0\ngames:5\n", "root:0\ngames:5\nbob:1\n", "root:0\n", "root:0\nbob:1\n"},
		{"goes, but was changed here", "passwd", "root:0\ngames:5\n", "root:0\ngames:5:sh\nbob:1\n", "root:0\n", "root:0\ngames:5:sh\nbob:1\n"},
		{"deleted here", "passwd", "root:0\ngames:5\n", "root:0\n", "root:0\ngames:5:new\npg:6\n", "root:0\npg:6\n"},
		{"changed there", "passwd", "root:0\ngames:5\n", "root:0\ngames:5\nbob:1\n", "root:0\ngames:5:new\n", "root:0\ngames:5:new\nbob:1\n"},
		{"changed on both sides", "passwd", "root:0:sh\n", "root:0:zsh\n", "root:0:bash\nx:1\n", "root:0:zsh\nx:1\n"},
		{"added on both sides", "passwd", "root:0\n", "root:0\npg:1000\n", "root:0\npg:5\nng:6\n", "root:0\npg:1000\nng:6\n"},
		{"comments and NIS lines stay where they are", "passwd", "root:0\n", "# mine\nroot:0\n\n-eve\n+::::::\n", "root:0\npg:5\n", "# mine\nroot:0\npg:5\n\n-eve\n+::::::\n"},
		{"never behind a NIS line", "passwd", "root:0\n+::::::\n", "root:0\nbob:1\n+::::::\n", "root:0\n+::::::\npg:5\n", "root:0\npg:5\nbob:1\n+::::::\n"},
		{"members", "group", "wheel:x:10:root,old\n", "wheel:x:10:root,old,bob\n", "wheel:x:10:root,ann\nnew:x:5:\n", "wheel:x:10:root,bob,ann\nnew:x:5:\n"},
		{"members of a group on both sides", "group", "", "docker:x:5:bob\n", "docker:x:7:svc\n", "docker:x:5:bob,svc\n"},
		{"members, and the id changes there", "group", "g:x:5:a\n", "g:x:5:a,b\n", "g:x:6:a\n", "g:x:6:a,b\n"},
		{"administrators and members", "gshadow", "g:!:a:m\n", "g:!:a,bob:m\n", "g:!::m,n\n", "g:!:bob:m,n\n"},
		{"no newline at the end", "passwd", "root:0", "root:0\nbob:1", "root:0\npg:5", "root:0\npg:5\nbob:1\n"},
		{"several ranges of an owner", "subuid", "a:1:2\n", "a:1:2\na:5:6\n", "a:1:2\nb:9:9\n", "a:1:2\nb:9:9\na:5:6\n"},
		{"a range goes", "subuid", "a:1:2\na:5:6\n", "a:1:2\na:5:6\nbob:9:9\n", "a:5:6\n", "a:5:6\nbob:9:9\n"},
		{"the same arrives", "passwd", "root:0\n", "root:0\npg:5\nbob:1\n", "root:0\npg:5\n", "root:0\npg:5\nbob:1\n"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := mergeEntries(c.path, []byte(c.base), []byte(c.ours), []byte(c.theirs))
			if diff := cmp.Diff(c.want, string(got)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestShadowFollowsPasswd(t *testing.T) {
	cases := []struct{ name, passwdOurs, passwdTheirs, shadowOurs, shadowTheirs, want string }{
		{"arrives in both", "root:0\ngames:5\nbob:1\n", "root:0\ngames:5\npg:6\n", "root:*\ngames:*\nbob:h\n", "root:*\ngames:*\npg:!\n", "root:*\ngames:*\npg:!\nbob:h\n"},
		{"stays in passwd, so in shadow", "root:0\ngames:5:sh\n", "root:0\n", "root:*\ngames:*\n", "root:*\n", "root:*\ngames:*\n"},
		{"goes from passwd, so from shadow", "root:0\ngames:5\n", "root:0\n", "root:*\ngames:secret\n", "root:*\n", "root:*\n"},
		{"deleted here, changed there", "root:0\n", "root:0\ngames:7\n", "root:*\n", "root:*\ngames:new\n", "root:*\n"},
		{"no shadow entry here, on purpose", "root:0\ngames:5\n", "root:0\ngames:5\npg:6\n", "root:*\n", "root:*\ngames:*\npg:!\n", "root:*\npg:!\n"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]*File{
				"passwd": {Base: []byte("root:0\ngames:5\n"), Ours: []byte(c.passwdOurs), Theirs: []byte(c.passwdTheirs)},
				"shadow": {Base: []byte("root:*\ngames:*\n"), Ours: []byte(c.shadowOurs), Theirs: []byte(c.shadowTheirs)},
			}
			Merge(files)
			if diff := cmp.Diff(c.want, string(files["shadow"].Result)); diff != "" {
				t.Errorf("shadow, -want +got:\n%s", diff)
			}
		})
	}
}

func TestClashesOfIDs(t *testing.T) {
	cases := []struct{ name, path, base, ours, theirs, want string }{
		{"users", "passwd", "root:x:0\n", "root:x:0\nbob:x:998\n", "root:x:0\npg:x:998\n", "the target's user pg and the local user bob both have the uid 998"},
		{"groups", "group", "root:x:0:\n", "root:x:0:\nbob:x:998:\n", "root:x:0:\npg:x:998:\n", "the target's group pg and the local group bob both have the gid 998"},
		{"ranges", "subuid", "", "bob:100000:65536\n", "pg:165535:10\n", "the target gives pg the ids 165535 to 165544, but the local owner bob has 100000 to 165535"},
		{"range within a range", "subuid", "", "bob:100:1000\nann:5000:10\n", "pg:500:1\n", "but the local owner bob"},
		{"range of another within one's own", "subuid", "", "pg:100:1000\nann:150:10\n", "pg:155:5\n", "but the local owner ann"},
		{"range around a range", "subuid", "", "bob:500:1\n", "pg:100:1000\n", "but the local owner bob"},
		{"number changes", "passwd", "root:x:0\npg:x:5\n", "root:x:0\npg:x:5\nbob:x:998\n", "root:x:0\npg:x:998\n", "user pg"},
		{"the target's own", "passwd", "root:x:0\n", "root:x:0\nbob:x:1\n", "root:x:0\ntoor:x:0\n", ""},
		{"two local ones", "passwd", "root:x:0\n", "root:x:0\na:x:1\nb:x:1\n", "root:x:0\npg:x:5\n", ""},
		{"neighbours", "subuid", "", "bob:100:100\n", "pg:200:1\nng:99:1\n", ""},
		{"the same user", "passwd", "root:x:0\n", "root:x:0\npg:x:5:local\n", "root:x:0\npg:x:5\nng:x:6\n", ""},
		{"not a number", "passwd", "root:x:0\n", "root:x:0\nbob:x:\n", "root:x:0\npg:x:\nx:y:4294967296\n", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m := &File{Base: []byte(c.base), Ours: []byte(c.ours), Theirs: []byte(c.theirs)}
			m.Result = mergeEntries(c.path, m.Base, m.Ours, m.Theirs)
			conflicts := m.Clashes(c.path)
			if c.want == "" && len(conflicts) > 0 || c.want != "" && (len(conflicts) != 1 || !strings.Contains(conflicts[0].Reason, c.want)) {
				t.Errorf("conflicts: %+v, want %q", conflicts, c.want)
			}
		})
	}
}

// One name is told of with everyone whom it clashes with: it must not take memory each time.
func TestClashesOfALongName(t *testing.T) {
	var many strings.Builder
	for i := range 500 {
		fmt.Fprintf(&many, "u%d:x:7:7::/:\n", i)
	}
	m := &File{Ours: []byte(strings.Repeat("l", 20000) + ":x:7:7::/:\n"), Theirs: []byte(many.String())}
	m.Result = mergeEntries("passwd", m.Base, m.Ours, m.Theirs)
	size := 0
	for _, c := range m.Clashes("passwd") {
		size += len(c.Reason)
	}
	if size == 0 || size > 500*1000 {
		t.Errorf("%d bytes of messages", size)
	}
}

// reporter is what *testing.T and *rapid.T have in common.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
}

func checkMerge(t reporter, path string, base, ours, theirs []byte) {
	t.Helper()
	if got := mergeEntries(path, base, ours, base); !bytes.Equal(got, ours) {
		t.Errorf("without a change there: %q, want %q", got, ours)
	}
	if got := mergeEntries(path, base, base, theirs); !bytes.Equal(got, theirs) {
		t.Errorf("without a change here: %q, want %q", got, theirs)
	}
	merged := mergeEntries(path, base, ours, theirs)
	if again := mergeEntries(path, base, merged, theirs); !bytes.Equal(again, merged) {
		t.Errorf("merged again: %q, want %q (base %q, ours %q, theirs %q)", again, merged, base, ours, theirs)
	}
	m := &File{Base: base, Ours: ours, Theirs: theirs}
	shadow := &File{Base: theirs, Ours: base, Theirs: ours}
	Merge(map[string]*File{"passwd": m, "shadow": shadow, "group": shadow, "gshadow": m})
	for _, file := range []string{"passwd", "group", "subuid"} {
		m.Clashes(file)
	}
}

// The files of an account database as programs write them: what came goes again, and nothing else does.
func TestAccountsThatCameGoAgain(t *testing.T) {
	name := rapid.StringMatching(`[a-d]`)
	file := rapid.Custom(func(t *rapid.T) []byte {
		var b strings.Builder
		for _, name := range rapid.SliceOfNDistinct(name, 0, 4, rapid.ID[string]).Draw(t, "names") {
			b.WriteString(name + ":x:" + rapid.StringMatching(`[12]`).Draw(t, "id") + ":" +
				strings.Join(rapid.SliceOfNDistinct(name_, 0, 3, rapid.ID[string]).Draw(t, "members"), ",") + "\n")
		}
		return []byte(b.String())
	})
	rapid.Check(t, func(t *rapid.T) {
		base, ours, theirs := file.Draw(t, "base"), file.Draw(t, "ours"), file.Draw(t, "theirs")
		for _, path := range []string{"passwd", "group"} {
			checkMerge(t, path, base, ours, theirs)
			put := mergeEntries(path, base, ours, theirs)
			if back := mergeEntries(path, put, put, ours); !bytes.Equal(back, ours) {
				t.Errorf("%s went back to %q, not to %q", path, back, ours)
			}
			local := []byte("zoe:x:9:\n")
			live := append(slices.Clone(put), local...)
			back := mergeEntries(path, put, live, ours)
			sortLines := func(b []byte) string {
				lines := strings.Split(string(b), "\n")
				slices.Sort(lines)
				return strings.Join(lines, "\n")
			}
			if sortLines(back) != sortLines(append(slices.Clone(ours), local...)) {
				t.Errorf("%s with a user added meanwhile went back to %q, not to %q and %q", path, back, ours, local)
			}
		}
	})
}

var name_ = rapid.StringMatching(`[a-d]`)
