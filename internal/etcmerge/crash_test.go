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

// the way to where an operation is disturbed, and what may follow it
var crashes = []struct {
	op     string
	before func(*crashLab)
	ends   []func(*crashLab) // each leads back to the start
}{
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
func disturbAll(t *testing.T, kinds, hows []string) {
	c := newCrashLab(t)
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
	disturbAll(t, changingCalls, []string{"signal=SIGKILL"})
}

func TestFailureOfAnyCallLosesNothing(t *testing.T) {
	disturbAll(t, failingCalls, []string{"error=ENOSPC", "error=EIO", "error=EROFS", "error=ENOMEM", "error=EMFILE"})
}
