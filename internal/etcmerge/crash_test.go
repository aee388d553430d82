package etcmerge

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// changingCalls are the system calls that change something on disk, or make it durable. What opens a new file is left out: being killed
// there is being killed at the call before.
var changingCalls = []string{"linkat", "mkdirat", "renameat", "renameat2", "unlinkat", "rmdir", "symlinkat", "fchown", "fchownat", "fchmod",
	"fsetxattr", "fremovexattr", "utimensat", "write", "fsync", "syncfs"}

// failingCalls are those that may fail.
var failingCalls = append([]string{"openat", "openat2", "flock", "statx", "getdents64", "fcntl"}, changingCalls...)

// What strace(1) does to a call.
var (
	kills    = []string{"signal=SIGKILL"}
	failures = []string{"error=ENOSPC", "error=EIO", "error=EROFS", "error=ENOMEM", "error=EMFILE"}
)

func (l *lab) writePlan(plan *Plan) {
	l.t.Helper()
	data, err := json.Marshal(plan)
	if err == nil {
		err = os.WriteFile(filepath.Join(l.root, "plan.json"), data, 0o600)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// run does an operation in a process of its own, undisturbed.
func (l *lab) run(op string) {
	l.t.Helper()
	if out, err := l.otherCommand(op).CombinedOutput(); err != nil {
		l.t.Fatalf("%s: %v: %s", op, err, out)
	}
}

// traced does an operation under strace(1), and returns what that says, and whether the operation succeeded.
func (l *lab) traced(op string, args ...string) (trace string, ok bool) {
	l.t.Helper()
	file := filepath.Join(l.root, "trace")
	cmd := l.otherCommand(op, append([]string{"strace", "-f", "-qq", "-o", file}, args...)...)
	out, err := cmd.CombinedOutput()
	data, readErr := os.ReadFile(file)
	if readErr != nil {
		l.t.Fatalf("strace: %v, %v: %s", readErr, err, out)
	}
	return string(data), err == nil
}

// calls counts the calls of each kind that an operation makes.
func (l *lab) calls(op string, kinds []string) map[string]int {
	l.t.Helper()
	trace, ok := l.traced(op, "-e", "trace="+strings.Join(kinds, ","))
	if !ok {
		l.t.Fatalf("%s fails undisturbed", op)
	}
	counts := map[string]int{}
	for line := range strings.Lines(trace) {
		if _, call, ok := strings.Cut(line, " "); ok {
			name, _, _ := strings.Cut(strings.TrimSpace(call), "(")
			counts[name]++
		}
	}
	return counts
}

// disturb does an operation whose n-th call of a kind is disturbed in a way of strace(1).
func (l *lab) disturb(op, kind, how string, n int) {
	l.t.Helper()
	trace, _ := l.traced(op, "-e", "trace="+kind, "-e", fmt.Sprintf("inject=%s:%s:when=%d", kind, how, n))
	if !strings.Contains(trace, "killed by SIGKILL") && !strings.Contains(trace, "(INJECTED)") {
		l.t.Fatalf("%s has no %s number %d", op, kind, n)
	}
}

// crashLab is one with everything, and the states that it can be in.
type crashLab struct {
	*lab
	start, v2, v3 map[string]thing
	plan2, plan3  *Plan
}

func newCrashLab(t *testing.T) *crashLab {
	t.Helper()
	l := newEverything(t)
	c := &crashLab{lab: l, start: l.etc(), plan2: l.plan("v1", "v2")}
	l.apply(c.plan2)
	l.commitJournal()
	c.v2 = l.etc()
	c.plan3 = l.plan("v2", "v3")
	l.apply(c.plan3)
	c.v3 = l.etc()
	l.reset()
	wantSame(t, "/etc before the first crash", c.start, l.etc())
	return c
}

// crash is the way to where an operation is disturbed, and what may follow it
type crash struct {
	op     string
	before func(*crashLab)
	ends   []func(*crashLab) // each leads back to the start
}

var crashes = []crash{
	{"apply", func(c *crashLab) { c.writePlan(c.plan2) }, []func(*crashLab){
		func(c *crashLab) { c.run("reset") },
		func(c *crashLab) { c.run("rollback"); c.wantStart("rollback"); c.run("reset") },
		func(c *crashLab) { c.run("apply"); c.wantV2(); c.run("reset") },
	}},
	{"apply", func(c *crashLab) { c.commitV2(); c.writePlan(c.plan3) }, []func(*crashLab){
		func(c *crashLab) { c.run("reset") },
		func(c *crashLab) { c.run("rollback"); c.wantV2(); c.run("reset") },
		func(c *crashLab) { c.run("apply"); c.wantV3(); c.run("reset") },
	}},
	{"rollback", func(c *crashLab) { c.commitV2(); c.apply(c.plan3) }, []func(*crashLab){
		func(c *crashLab) { c.run("reset") },
		func(c *crashLab) { c.run("rollback"); c.wantV2(); c.run("reset") },
		func(c *crashLab) { c.writePlan(c.plan3); c.run("apply"); c.wantV3(); c.run("reset") },
	}},
	{"commit", func(c *crashLab) { c.commitV2(); c.apply(c.plan3) }, []func(*crashLab){
		func(c *crashLab) { c.run("reset") },
		func(c *crashLab) { c.run("commit"); c.wantV3(); c.run("rollback"); c.wantV3(); c.run("reset") },
	}},
	{"reset", func(c *crashLab) { c.commitV2(); c.apply(c.plan3) }, []func(*crashLab){
		func(c *crashLab) { c.run("reset") },
		func(c *crashLab) { c.run("reset"); c.writePlan(c.plan2); c.run("apply"); c.wantV2(); c.run("reset") },
	}},
	{"reset", func(c *crashLab) { c.commitV2() }, []func(*crashLab){
		func(c *crashLab) { c.run("reset") },
		func(c *crashLab) { c.run("rollback"); c.wantStartOrV2(); c.run("reset") },
		func(c *crashLab) { c.writePlan(c.plan2); c.run("apply"); c.wantV2(); c.run("reset") },
	}},
}

func (c *crashLab) commitV2() { c.t.Helper(); c.apply(c.plan2); c.commitJournal() }
func (c *crashLab) wantStart(op string) {
	c.t.Helper()
	wantSame(c.t, "/etc after "+op, c.start, c.etc())
}
func (c *crashLab) wantV2() {
	c.t.Helper()
	wantSame(c.t, "/etc with v2", contentOnly(c.v2), contentOnly(c.etc()))
}

// wantStartOrV2 is for a reset that may have been disturbed before it began.
func (c *crashLab) wantStartOrV2() {
	c.t.Helper()
	if diff := cmp.Diff(c.start, c.etc()); diff != "" {
		c.wantV2()
	}
}

func (c *crashLab) wantV3() {
	c.t.Helper()
	wantSame(c.t, "/etc with v3", contentOnly(c.v3), contentOnly(c.etc()))
}

// disturbAll disturbs calls, each in one of the ways, and follows it by one of the ends: all calls with all ends if the environment asks for that,
// otherwise a sample that has the first of each kind.
func disturbAll(t *testing.T, c *crashLab, crashes []crash, kinds, hows []string) {
	all := os.Getenv("LIVEAPPLY_TEST_EXHAUSTIVE") != ""
	seen := map[string]bool{}
	total, done := 0, 0
	for _, crash := range crashes {
		crash.before(c)
		counts := c.calls(crash.op, kinds)
		c.run("reset")
		c.wantStart("an undisturbed " + crash.op)
		for _, kind := range kinds {
			for n := 1; n <= counts[kind]; n++ {
				total++
				if !all && seen[kind] && total%43 != 0 {
					continue
				}
				seen[kind] = true
				how := hows[total%len(hows)]
				ends := crash.ends
				if !all {
					ends = ends[done%len(ends):][:1]
				}
				done++
				for i, end := range ends {
					crash.before(c)
					c.disturb(crash.op, kind, how, n)
					end(c)
					what := fmt.Sprintf("%s with %s at %s number %d, end %d", crash.op, how, kind, n, i)
					c.wantStart(what)
					if _, err := os.Lstat(c.dirs.Store); err == nil {
						t.Error("the Store is left")
					}
					if t.Failed() {
						t.Fatal(what)
					}
				}
			}
		}
	}
	t.Logf("%d of %d calls", done, total)
}

func TestKillAtAnyCallLosesNothing(t *testing.T) {
	disturbAll(t, newCrashLab(t), crashes, changingCalls, kills)
}

func TestFailureOfAnyCallLosesNothing(t *testing.T) {
	disturbAll(t, newCrashLab(t), crashes, failingCalls, failures)
}

func TestKillAtAnyCallOfPutLosesNothing(t *testing.T) {
	disturbAll(t, newPutCrashLab(t), putCrashes(), changingCalls, kills)
}

func TestFailureOfAnyCallOfPutLosesNothing(t *testing.T) {
	disturbAll(t, newPutCrashLab(t), putCrashes(), failingCalls, failures)
}

// newPutCrashLab has trees that do to /etc all that can be done: v2 is with the first, v3 with the second.
func newPutCrashLab(t *testing.T) *crashLab {
	t.Helper()
	l := newPutTest(t, `echo a > f; echo a > g; echo a > same; mkdir -p d/s masked/s op/s; echo a > d/f; echo a > d/s/f; echo a > masked/f; ln -s f masked/s/l
		chmod 2750 masked/s; chown 5:6 masked/s; setfattr -n user.x -v 1 masked f; echo a > op/f; echo a > op/s/f; echo a > todir; ln -s x l; echo t > there`)
	one := l.tree("one", `echo t > f; echo t > same; echo t > there; echo t > n; mkdir -p d new/a/b todir op; echo t > d/f; mask d/s masked g; echo t > new/a/b/c
		ln -s t l; echo t > todir/f; opaque op; echo t > op/n; chmod 700 new; setfattr -n user.n -v 1 new`)
	l.tree("two", `echo u > f; echo t > same; mkdir -p d/s masked new/a; echo u > d/s/n; echo u > masked/f; echo u > new/a/c; chmod 711 new; setfattr -n user.n -v 2 new
		echo u > todir; echo u > g; ln -s u l; mkdir op; mask op/f`)
	l.tree("empty", "true")
	c := &crashLab{lab: l, start: l.etc()}
	l.put(one)
	c.v2 = l.etc()
	l.put(l.root + "/two")
	c.v3 = l.etc()
	l.reset()
	wantSame(t, "/etc before the first crash", c.start, l.etc())
	return c
}

// writeTrees says what the next Put in another process puts.
func (l *lab) writeTrees(names ...string) {
	l.t.Helper()
	var paths []string
	for _, name := range names {
		paths = append(paths, filepath.Join(l.root, name))
	}
	if err := os.WriteFile(filepath.Join(l.root, "trees"), []byte(strings.Join(paths, "\n")), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) runPut(names ...string) {
	l.t.Helper()
	l.writeTrees(names...)
	l.run("put")
}

func putCrashes() []crash {
	ends := []func(*crashLab){
		func(c *crashLab) { c.run("reset") },
		func(c *crashLab) { c.runPut("one"); c.wantV2(); c.run("reset") },
		func(c *crashLab) { c.runPut("two"); c.wantV3(); c.runPut() },
		func(c *crashLab) {
			c.runPut("empty")
			c.wantStart("a Put of nothing")
			c.runPut("two")
			c.wantV3()
			c.runPut()
		},
	}
	var crashes []crash
	for _, way := range [][2][]string{{nil, {"one"}}, {{"one"}, {"two"}}, {{"two"}, {"one"}}, {{"one"}, {"empty"}}, {{"two"}, nil}} {
		crashes = append(crashes, crash{"put", func(c *crashLab) { c.runPut(way[0]...); c.writeTrees(way[1]...) }, ends})
	}
	return crashes
}
