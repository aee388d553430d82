package etcmerge

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// Each case is one start, deployed by libostree and merged by this package. All of them are in one sysroot, each in a directory of
// its own, except for those in which libostree fails.
var mergeCases = []struct {
	name        string
	v1, v2      string   // shell scripts in the default's directory
	local       string   // in /etc's
	isDifferent string   // why libostree has another result
	sameBut     []string // at these paths, where ours stays as it was locally
}{
	{name: "content", v1: "echo a > same; echo a > theirs; echo a > ours; echo a > both",
		v2: "echo b > theirs; echo b > both", local: "echo l > ours; echo l > both"},
	{name: "mode", v1: "touch same theirs ours both", v2: "chmod 600 theirs both", local: "chmod 640 ours both"},
	{name: "owner", v1: "touch theirs ours both", v2: "chown 5:6 theirs both", local: "chown 7:8 ours both"},
	{name: "setuid", v1: "touch a b", v2: "chown 5 a; chmod 4755 a b", local: ""},
	{name: "removed", v1: "touch theirs ours both changed", v2: "rm theirs both changed", local: "rm ours both; echo l > changed"},
	{name: "added", v1: "true", v2: "echo b > theirs; echo b > both", local: "echo l > ours; echo l > both"},
	{name: "deleted and changed", v1: "echo a > f; ln -s a l", v2: "echo b > f; ln -sfn b l", local: "rm f l"},
	{name: "symlink", v1: "ln -s a theirs; ln -s a ours; ln -s a both; ln -s a gone",
		v2: "ln -sfn b theirs; ln -sfn b both; rm gone", local: "ln -sfn l ours; ln -sfn l both"},
	{name: "symlink to nowhere", v1: "ln -s /nonexistent a", v2: "ln -sfn /nonexistent/b a; ln -s ../../../../.. up", local: ""},
	{name: "file and symlink", v1: "echo a > f; ln -s a l; echo a > fo; ln -s a lo",
		v2: "ln -sf t f; rm l; echo b > l; ln -sf t fo; rm lo; echo b > lo", local: "echo l > fo; ln -sfn z lo"},
	{name: "retyped locally", v1: "echo a > f; ln -s a l; echo a > d", v2: "echo b > f; ln -sfn b l; echo b > d",
		local: "ln -sf x f; rm l; echo x > l; rm d; mkdir d; echo x > d/x"},
	{name: "retyped locally, gone in the target", v1: "echo a > f; mkdir d; echo a > d/a", v2: "rm -r f d",
		local: "rm f; mkdir f; echo x > f/x; rm -r d; ln -s /tmp d"},
	{name: "file to directory", v1: "echo a > f; ln -s x l", v2: "rm f l; mkdir -p f/s l; echo b > f/s/b; echo b > l/b; chmod 710 f", local: ""},
	{name: "directory to file", v1: "mkdir -p a/s b c; echo a > a/s/a; echo a > b/a", v2: "rm -r a b c; echo b > a; ln -s a b; ln -s a c", local: ""},
	{name: "directory to file, deleted locally", v1: "mkdir -p a/s; echo a > a/s/a", v2: "rm -r a; echo b > a", local: "rm -r a"},
	{name: "directory to file, retyped locally", v1: "mkdir a; echo a > a/a", v2: "rm -r a; echo b > a", local: "rm -r a; ln -s x a"},
	{name: "directory to file, its mode changed locally", v1: "mkdir -p a/s; echo a > a/a; echo a > a/s/b", v2: "rm -r a; echo b > a",
		local: "chmod 700 a; echo l > a/a; echo l > a/l"},
	{name: "new directory", v1: "true", v2: "mkdir -p d/e; chmod 750 d; chown 5:6 d/e; echo b > d/e/f; mkdir d/empty", local: ""},
	{name: "new directory, made locally", v1: "true", v2: "mkdir a b; chmod 711 a b; echo b > b/x; echo b > b/y; echo b > a/x", local: "mkdir a b; echo l > b/x"},
	{name: "new directory in one that is gone", v1: "mkdir d; echo a > d/a", v2: "mkdir d/n; echo b > d/n/b", local: "rm -r d"},
	{name: "file locally, gone directory", v1: "mkdir d; echo a > d/a; echo a > d/b", v2: "rm -r d", local: "echo l > d/a"},
	{name: "added in a directory that goes", v1: "mkdir -p d/s e/s; echo a > d/s/a; echo a > e/s/a", v2: "rm -r d e", local: "echo l > d/s/l; mkdir e/l"},
	{name: "deleted in a directory that goes", v1: "mkdir -p d/s; echo a > d/s/a; echo a > d/b", v2: "rm -r d", local: "rm d/b"},
	{name: "mode of a directory that goes", v1: "mkdir -p d/s/t e/s; echo a > d/a; echo a > d/s/t/a; echo a > e/a; echo a > e/s/a", v2: "rm -r d e", local: "chmod 700 d/s e; rm e/a"},
	{name: "mode of a directory", v1: "mkdir a b c d e f; for d in a b c d e f; do echo a > $d/f; done",
		v2: "chmod 750 a b c d e f", local: "echo l > b/f; rm c/f; echo l > d/l; chmod 700 e"},
	{name: "owner of a directory", v1: "mkdir a b; echo a > b/f", v2: "chown 5:6 a b; chmod 2775 a", local: "chmod 600 b/f"},
	{name: "replaced directory", v1: "mkdir d; echo a > d/a; echo a > d/c", v2: "rm -r d; mkdir d; echo b > d/b; echo b > d/c", local: "echo l > d/l"},
	{name: "xattrs", v1: "touch a b c; setfattr -n user.x -v 1 a; mkdir d; setfattr -n user.d -v 1 d",
		v2:    "setfattr -n user.x -v 2 a; setfattr -n user.y -v 1 b; setfattr -n user.d -v 2 d; echo b > c; mkdir n; setfattr -n user.n -v 1 n",
		local: "setfattr -n user.l -v 1 b c"},
	{name: "capability", v1: "touch a", v2: "setfattr -n security.capability -v 0sAQAAAgAEAAAAAAAAAAAAAAAAAAA= a; chown 4 a", local: ""},
	{name: "names", v1: "echo a > 'a b'; echo a > \"$(printf 'n\\nl')\"; mkdir 'q\"'; echo a > 'q\"/$x'",
		v2: "echo b > 'a b'; echo b > \"$(printf 'n\\nl')\"; echo b > 'q\"/$x'; echo b > " + strings.Repeat("ü", 127) + "x; echo b > '<&>'", local: ""},
	{name: "order", v1: "mkdir d; echo a > d/a; echo a > d-; echo a > d.x; echo a > d0", v2: "for f in d/a d- d.x d0; do echo b > $f; done; echo b > d/b", local: "echo l > d.x"},
	{name: "empty and large", v1: "touch e; head -c 3000000 /dev/zero > l; head -c 3000000 /dev/zero > lo", v2: "echo b > e; head -c 2000000 /dev/zero > l; head -c 2000000 /dev/zero > lo",
		local: "printf x >> lo"},
	{name: "deep", v1: "true", v2: "d=.; for i in $(seq 60); do d=$d/d; done; mkdir -p $d; echo b > $d/f", local: ""},
	{name: "hard links", v1: "echo a > a; echo a > b; echo a > c", v2: "echo b > a; echo b > b; rm c", local: "ln -f a b; ln -f a c"},
	{name: "mode of an unchanged directory", v1: "mkdir -p d e/s; touch d/f", v2: "chmod 750 e", local: "chmod 700 d; chown 3 e/s",
		isDifferent: "only what changes between the defaults is looked at", sameBut: []string{"d", "e/s"}},
	{name: "special files", v1: "echo a > f; touch keep", v2: "echo b > f; echo b > n; rm keep", local: "mkfifo p; rm f; mkfifo f; mknod n c 1 3; rm keep; mkfifo keep",
		isDifferent: "libostree does not copy them", sameBut: []string{"p", "f", "n", "keep"}},
	{name: "directory for a file on both sides", v1: "echo a > f", v2: "rm f; mkdir f; echo b > f/x; echo b > f/y", local: "rm f; mkdir f; echo l > f/x; echo l > f/l",
		isDifferent: "libostree loses the local directory", sameBut: []string{"f/x", "f/l"}},
}

func TestMergedEtcIsThatOfOSTreeAdminDeploy(t *testing.T) {
	var v1, v2, local strings.Builder
	for _, c := range mergeCases {
		dir := strings.ReplaceAll(c.name, " ", "_")
		for b, script := range map[*strings.Builder]string{&v1: "mkdir '" + dir + "'; cd '" + dir + "'\n" + c.v1, &v2: "cd '" + dir + "'\n" + c.v2, &local: "cd '" + dir + "'\n" + c.local} {
			b.WriteString("(\n" + script + "\n:)\n")
		}
	}
	v2.WriteString("chmod 751 .\n")
	l := newTestLab(t, v1.String(), v2.String())
	l.local(local.String())
	start := l.etc()
	l.deploy("v2")

	plan := l.plan("v1", "v2")
	wantSame(t, "MakePlan must not change anything", start, l.etc())
	result := l.apply(roundTrip(t, plan))
	wantPaths(t, "kept", result.Kept)

	var differ []string
	for _, c := range mergeCases {
		for _, path := range c.sameBut {
			differ = append(differ, filepath.Join(strings.ReplaceAll(c.name, " ", "_"), path))
		}
	}
	want, got := scan(t, l.etcOf("v2")), l.etc()
	wantSame(t, "merged /etc", without(contentOnly(want), differ...), without(contentOnly(got), differ...))
	for _, path := range differ {
		if got[path].What != start[path].What {
			t.Errorf("%s is %q, want the local %q", path, got[path].What, start[path].What)
		}
	}

	l.reset()
	wantSame(t, "/etc after reset", start, l.etc())
}

// roundTrip is the way a plan takes from the prepare phase to the etc phase.
func roundTrip(t tester, plan *Plan) *Plan {
	t.Helper()
	data, err := json.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	again := &Plan{}
	if err := json.Unmarshal(data, again); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(again, plan) {
		t.Errorf("a plan is another one after a round trip through JSON: %s", data)
	}
	return again
}

func TestWhereLibostreeCannotMergeTheresAConflict(t *testing.T) {
	dirToFile := "rm -r d; echo b > d"
	cases := []struct{ name, v1, v2, local, path string }{
		{"changed file to directory", "echo a > d", "rm d; mkdir d", "echo l > d", "d"},
		{"changed symlink to directory", "ln -s a d", "rm d; mkdir d; echo b > d/f", "ln -sfn l d", "d"},
		{"added file, new directory", "true", "mkdir d; echo b > d/f", "echo l > d", "d"},
		{"added fifo, new directory", "true", "mkdir d; echo b > d/f", "mkfifo d", "d"},
		{"directory replaced by a link to /", "mkdir d; echo a > d/a", "echo b > d/a", "rm -r d; ln -s / d", "d"},
		{"directory replaced by a file", "mkdir -p x/d; echo a > x/d/a", "rm x/d/a", "rm -r x/d; echo l > x/d", "x/d"},
		{"changed in a directory that becomes a file", "mkdir d; echo a > d/a", dirToFile, "echo l > d/a", "d"},
		{"added in a directory that becomes a file", "mkdir d; echo a > d/a", dirToFile, "echo l > d/l", "d"},
		{"deleted in a directory that becomes a file", "mkdir d; echo a > d/a", dirToFile, "rm d/a", "d"},
		{"mode below a directory that becomes a file", "mkdir -p d/e; echo a > d/e/a", dirToFile, "chmod 700 d/e", "d"},
		{"deleted in one whose mode was changed", "mkdir d; echo a > d/a; echo a > d/b", dirToFile, "chmod 700 d; rm d/a", "d"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l := newTestLab(t, c.v1, c.v2)
			l.local(c.local)
			start := l.etc()
			_, err := l.tryPlan("v1", "v2")
			var conflict *ConflictError
			if !errors.As(err, &conflict) || len(conflict.Conflicts) != 1 || conflict.Conflicts[0].Path != c.path {
				t.Errorf("MakePlan: %v, want a conflict at %s", err, c.path)
			}
			wantSame(t, "/etc after a conflict", start, l.etc())
			if out, err := trySh(l.root, "ostree admin --sysroot=sys deploy --os=lab v2"); err == nil {
				t.Errorf("libostree can merge that: %s", out)
			}
		})
	}
}

func TestDirectoryThatBecomesASymlinkIsNotFollowed(t *testing.T) {
	l := newTestLab(t, "mkdir d e; echo a > d/f; echo a > e/f", "rm -r d; ln -s e d")
	l.local("echo l > d/f")
	if _, err := l.tryPlan("v1", "v2"); err == nil || !strings.Contains(err.Error(), "/etc/d:") {
		t.Errorf("MakePlan: %v, want a conflict at /etc/d: libostree would write through the link", err)
	}
}

func TestPlanSaysWhatChangesAndWhatStays(t *testing.T) {
	l := newTestLab(t, "mkdir d gone; echo a > d/change; echo a > d/gone; echo a > mine; echo a > deleted; echo a > retyped; echo a > gone/f; echo a > unlooked; mkdir m",
		"echo b > d/change; rm d/gone; echo b > d/new; echo b > mine; echo b > deleted; echo b > retyped; rm -r gone; echo b > both; chmod 711 m")
	l.local("echo l > mine; rm deleted; ln -sf x retyped; echo l > both; echo l > unlooked; echo l > gone/l")
	plan := l.plan("v1", "v2")
	var changes []string
	for _, c := range plan.Changes {
		changes = append(changes, c.Kind()+" "+c.Path)
	}
	wantPaths(t, "changes", changes, "replace d/change", "remove d/gone", "add d/new", "remove gone/f", "attributes m")
	var local []string
	for _, c := range plan.Local {
		local = append(local, string(c.Kind)+" "+c.Path)
	}
	wantPaths(t, "local", local, "added both", "deleted deleted", "content gone", "changed mine", "retyped retyped")
}

func TestTreeWithoutEtcIsRefused(t *testing.T) {
	l := newTestLab(t, "echo a > a", "cd ..; rm -r etc; mkdir -p share")
	if err := os.MkdirAll(filepath.Join(l.root, "tree/usr/etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	tree := l.etcTree("v1")
	if _, err := MakePlan(t.Context(), l.repo, tree, tree, l.dirs); err != nil {
		t.Errorf("the same tree twice: %v", err)
	}
	tree.Contents, tree.Meta = [32]byte{}, [32]byte{}
	if _, err := MakePlan(t.Context(), l.repo, l.etcTree("v1"), tree, l.dirs); err == nil {
		t.Error("a target without /usr/etc must be refused: all of /etc would go")
	}
}
