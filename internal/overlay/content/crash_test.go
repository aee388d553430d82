package content

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveapply/liveapply/internal/overlay"
)

// changingCalls are the system calls that change something on disk, or make it durable.
var changingCalls = []string{"linkat", "mkdirat", "mknodat", "renameat", "renameat2", "unlinkat", "rmdir", "symlinkat", "fchown", "fchownat", "fchmod", "fchmodat",
	"fsetxattr", "lsetxattr", "utimensat", "write", "pwrite64", "ftruncate", "fsync", "syncfs"}

// failingCalls are those that may fail.
var failingCalls = append([]string{"openat", "openat2", "newfstatat", "getdents64", "readlinkat", "statfs"}, changingCalls...)

// crashes are the changes that are disturbed, of the store that newCrashLab makes.
func crashes(l *lab) map[string][]overlay.Operation {
	input := filepath.Join(l.dir, "input")
	return map[string][]overlay.Operation{
		"create":          {{Verb: overlay.Create, Name: "new"}},
		"create writable": {{Verb: overlay.Remove, Name: "w"}, {Verb: overlay.Create, Name: "w", Writable: true}},
		"set": {set("a", "/usr/share/doc/a", input), set("a", "/usr/share/fresh/b", input), {Verb: overlay.Add, Name: "a", Path: "/usr/bin/link"},
			{Verb: overlay.Mask, Name: "a", Path: "/etc/app/conf"}, {Verb: overlay.Unset, Name: "a", Path: "/usr/share/mine"}},
		"set for a unit": {set("unit", "/usr/share/doc/a", input)},
		"enable":         {{Verb: overlay.Enable, Name: "a"}},
		"disable":        {{Verb: overlay.Disable, Name: "updates"}},
		"remove":         {{Verb: overlay.Remove, Name: "a"}, {Verb: overlay.Remove, Name: "updates"}},
		"import":         {importOf("updates", filepath.Join(l.dir, "image2"))},
		"restore":        {{Verb: overlay.Restore, Name: "restored", From: filepath.Join(l.dir, "backup")}},
		"freeze":         {{Verb: overlay.Freeze, Name: "w"}},
		tidyChange:       {{Verb: overlay.Remove, Name: "a"}}, // what comes before it
	}
}

func newCrashLab(t *testing.T) *lab {
	t.Helper()
	l := newTestLab(t)
	l.do(overlay.Operation{Verb: overlay.Create, Name: "a"}, set("a", "/usr/share/mine", l.input("mine")), set("a", "/usr/share/kept", l.input("kept")), overlay.Operation{Verb: overlay.Mask, Name: "a", Path: "/usr/share/doc/sub"},
		overlay.Operation{Verb: overlay.Disable, Name: "a"})
	l.do(set("a", "/usr/share/doc/sub/below", l.input("below")))
	l.do(overlay.Operation{Verb: overlay.Create, Name: "unit", Scope: "unit:a.service"}, set("unit", "/usr/share/x", l.input("x")), overlay.Operation{Verb: overlay.Create, Name: "w", Writable: true})
	usr := mountWritable(t, l, "w")
	l.sh(usr, written)
	l.sh(l.dir, "umount shown; echo input > input; mkdir -p image/lib image/usr/share/deep image/usr/share/doc")
	l.sh(filepath.Join(l.dir, "image"), "echo > lib/libx.so; ln -s x usr/share/link; echo 1 > usr/share/deep/x; ln usr/share/deep/x usr/share/y; setfattr -n user.a -v b usr/share/y")
	l.do(importOf("updates", filepath.Join(l.dir, "image")))
	l.sh(l.dir, "cp -a image image2; echo 2 > image2/usr/share/new; rm image2/usr/share/link")
	l.backup("a", "backup")
	l.tidy()
	l.sh(l.dir, "cp -a store template")
	return l
}

// fromTemplate makes the store what it was in the beginning.
func (l *lab) fromTemplate() { l.t.Helper(); l.sh(l.dir, "rm -rf store; cp -a template store") }

var times = regexp.MustCompile(`(?m) \d{18,}$`)

// timeless is the state without the times of files.
func (l *lab) timeless() string { l.t.Helper(); return times.ReplaceAllString(l.state(), "") }

// strangers are what the store has and the index does not know.
func (l *lab) strangers() []string {
	l.t.Helper()
	index, err := l.store.Index()
	if err != nil {
		l.t.Fatal(err)
	}
	known := []string{overlay.IndexName}
	for _, o := range index.Overlays {
		if o.Generation > 0 {
			known = append(known, o.Name, fmt.Sprint(o.Name, "/", o.Generation))
		}
	}
	var strangers []string
	err = filepath.WalkDir(l.store.Dir, func(path string, entry fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(l.store.Dir, path)
		if err != nil || rel == "." {
			return err
		}
		if !slices.Contains(known, rel) {
			strangers = append(strangers, rel)
		}
		if strings.Count(rel, "/") == 1 && entry.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return strangers
}

// traced does a change under strace(1), and returns what that says, and whether the change succeeded.
func (l *lab) traced(name string, args ...string) (trace string, ok bool) {
	l.t.Helper()
	file := filepath.Join(l.dir, "trace")
	out, err := l.otherCommand(name, append([]string{"strace", "-f", "-qq", "-o", file}, args...)...).CombinedOutput()
	data, readErr := os.ReadFile(file)
	if readErr != nil {
		l.t.Fatalf("strace: %v, %v: %s", readErr, err, out)
	}
	return string(data), err == nil
}

func (l *lab) calls(name string, kinds []string) map[string]int {
	l.t.Helper()
	trace, ok := l.traced(name, "-e", "trace="+strings.Join(kinds, ","))
	if !ok {
		l.t.Fatalf("%s fails undisturbed", name)
	}
	counts := map[string]int{}
	for line := range strings.Lines(trace) {
		if _, call, ok := strings.Cut(line, " "); ok {
			kind, _, _ := strings.Cut(strings.TrimSpace(call), "(")
			counts[kind]++
		}
	}
	return counts
}

// disturbAll disturbs calls, each in one of the ways: all if the environment asks for that, otherwise a sample.
func disturbAll(t *testing.T, divisor int, kinds, hows []string) {
	l := newCrashLab(t)
	all := os.Getenv("LIVEAPPLY_TEST_EXHAUSTIVE") != ""
	total, done := 0, 0
	for _, name := range slices.Sorted(maps.Keys(crashes(l))) {
		begin := func() {
			l.fromTemplate()
			if name == tidyChange {
				l.do(crashes(l)[name]...)
			}
		}
		begin()
		before := l.timeless()
		counts := l.calls(name, kinds)
		after := l.timeless()
		if before == after && name != tidyChange {
			t.Fatalf("%s changes nothing", name)
		}
		for _, kind := range kinds {
			for n := 1; n <= counts[kind]; n++ {
				total++
				if !all && total%divisor != 0 {
					continue
				}
				done++
				how := hows[total%len(hows)]
				what := fmt.Sprintf("%s with %s at %s number %d", name, how, kind, n)
				begin()
				trace, ok := l.traced(name, "-e", "trace="+kind, "-e", fmt.Sprintf("inject=%s:%s:when=%d", kind, how, n))
				if !strings.Contains(trace, "killed by SIGKILL") && !strings.Contains(trace, "(INJECTED)") {
					t.Fatalf("%s: there is no such call", what)
				}
				got := l.timeless()
				if got != before && got != after {
					t.Errorf("%s: the store is neither the old nor the new one (-old +it):\n%s", what, cmp.Diff(before, got))
				}
				if ok && got != after {
					t.Errorf("%s: it succeeded without effect (-wanted +it):\n%s", what, cmp.Diff(after, got))
				}
				l.tidy()
				if tidied := l.timeless(); tidied != got {
					t.Errorf("%s: Tidy changed something (-was +is):\n%s", what, cmp.Diff(got, tidied))
				}
				if strangers := l.strangers(); strangers != nil {
					t.Errorf("%s: Tidy leaves %q", what, strangers)
				}
				if got == before && got != after {
					if err := l.change(name); err != nil || l.timeless() != after {
						t.Errorf("%s: doing it again: %v\n%s", what, err, cmp.Diff(after, l.timeless()))
					}
				}
				if t.Failed() {
					t.FailNow()
				}
			}
		}
	}
	t.Logf("%d of %d calls", done, total)
}

func TestAKillAtAnyCallLeavesTheOldOrTheNew(t *testing.T) {
	disturbAll(t, 5, changingCalls, []string{"signal=SIGKILL"})
}

func TestAFailureOfAnyCallLeavesTheOldOrTheNew(t *testing.T) {
	disturbAll(t, 17, failingCalls, []string{"error=ENOSPC", "error=EIO", "error=EROFS", "error=ENOMEM", "error=EMFILE"})
}
