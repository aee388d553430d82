//go:build nspawn

package nspawn_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// TestEveryFaultEndsWell goes from the booted tree to another and back. The tests here start where something else is live, was left
// by an interruption, or was staged, and go on with another commit as well; and they account for each call of an undisturbed run.
//
// In CI it is a call in the midst of each verb, and its last one, by SIGKILL, and failing; with LIVEAPPLY_TEST_EXHAUSTIVE=1 every call of each verb. The
// errors take turns.

// course is a machine with two commits to apply, and what it looks like with each of them live.
type course struct {
	*injection
	v3     string
	config string
	at     map[string]condition // by the live commit
}

// disturbance is a command whose helper is disturbed, and what must hold then.
type disturbance struct {
	name    string
	verbs   []string
	arrange func(t *testing.T, c *course)
	act     func(c *course) nspawn.Result
	target  func(c *course) string // what the command applies; the booted commit if it is a reset
	settled bool                   // also if it fails, it ends: by a rollback that nobody disturbs
	again   func(t *testing.T, c *course)
	// What TestEveryFaultEndsWell cannot tell from what an earlier thread does.
	onlyThreads bool
}

func first(c *course) string  { return c.v1 }
func second(c *course) string { return c.v2 }
func third(c *course) string  { return c.v3 }

func applying(commit func(*course) string) func(*course) nspawn.Result {
	return func(c *course) nspawn.Result { return tryApply(c.m, commit(c)) }
}

func starting(unit string) func(*course) nspawn.Result {
	return func(c *course) nspawn.Result {
		result := c.m.Try("systemctl", "start", unit)
		// Recover only starts the rollback.
		c.m.Run("sh", "-c", `until [ -z "$(systemctl list-jobs --no-legend 'liveapply*')" ]; do sleep 0.1; done`)
		return result
	}
}

func applied(commit func(*course) string) func(*testing.T, *course) {
	return func(t *testing.T, c *course) { apply(t, c.m, commit(c)) }
}

// failing has the services phase fail, so that what it was for is rolled back.
func failing(t *testing.T, c *course) { c.m.Write(injectDir+"/services.exit", "1") }

// interrupted leaves a transaction that has switched /usr, and whose rollback did not come.
func interrupted(t *testing.T, c *course) {
	failing(t, c)
	c.m.Write(injectDir+"/rollback.exit", "1")
	equal(t, "exit status", tryApply(c.m, c.v2).Code, 1)
	c.m.Run("sh", "-c", "rm "+injectDir+"/*.exit; systemctl reset-failed 'liveapply*'")
	equal(t, "commit that is left under way", status(t, c.m).Target, c.v2)
}

// lostStamp leaves a live tree without a stamp, and nobody who has seen that.
func lostStamp(t *testing.T, c *course) {
	apply(t, c.m, c.v2)
	c.m.Run("systemctl", "stop", "liveapply-recover.path")
	c.m.Run("rm", "/run/ostree/deployment-state/"+c.v1+".0/liveapply.json")
}

var (
	phaseVerbs    = append(slices.Clone(phases), "finish")
	rollbackVerbs = []string{"rollback"}
)

const recoverUnit, resetUnit = "liveapply-recover.service", "liveapply-reset.service"

func both(one, other func(*testing.T, *course)) func(*testing.T, *course) {
	return func(t *testing.T, c *course) { one(t, c); other(t, c) }
}

func unprepared(*testing.T, *course) {}

// courses are run side by side, each on a machine of its own.
var courses = []struct {
	name, config string
	disturbances []disturbance
}{
	{"booted", "Transient=yes", []disturbance{
		{name: "from the booted tree, on other threads", verbs: []string{"prepare", "tmpfiles"}, arrange: unprepared, act: applying(second), target: second, settled: true, onlyThreads: true},
	}},
	{"live", "Transient=yes", []disturbance{
		{name: "from a live tree", verbs: phaseVerbs, arrange: applied(second), act: applying(third), target: third, settled: true},
		{name: "back to a live tree", verbs: rollbackVerbs, arrange: both(applied(second), failing), act: applying(third), target: third},
	}},
	{"interrupted", "Transient=yes", []disturbance{
		{name: "the same commit after an interruption", verbs: []string{"prepare"}, arrange: interrupted, act: applying(second), target: second},
		{name: "another commit after an interruption", verbs: []string{"prepare"}, arrange: interrupted, act: applying(third), target: third},
		{name: "reset after an interruption", verbs: []string{"reset"}, arrange: interrupted, act: starting(resetUnit), target: first},
		{name: "after an interruption", verbs: []string{"recover"}, arrange: interrupted, act: starting(recoverUnit), target: first, again: recoverAgain},
		{name: "after the loss of the stamp", verbs: []string{"recover"}, arrange: lostStamp, act: starting(recoverUnit), target: second, again: recoverAgain},
	}},
	{"staged", "", []disturbance{
		{name: "with a staged deployment", verbs: []string{"prepare", "record"}, arrange: unprepared, act: applying(second), target: second, settled: true},
		{name: "with a staged deployment", verbs: rollbackVerbs, arrange: failing, act: applying(second), target: second},
		{name: "with a staged deployment", verbs: []string{"reset"}, arrange: applied(second), act: starting(resetUnit), target: first},
	}},
}

// recoverAgain is what the path unit, or the next boot, would do.
func recoverAgain(t *testing.T, c *course) {
	t.Helper()
	equal(t, "exit status", starting(recoverUnit)(c).Code, 0)
	c.requireLiveIs(t, status(t, c.m).Live)
}

// requireLiveIs compares the machine with what it was when this commit was live undisturbed.
func (c *course) requireLiveIs(t *testing.T, commit string) {
	t.Helper()
	want, ok := c.at[commit]
	if !ok {
		t.Fatalf("live is %q", commit)
	}
	c.m.Run("sh", "-c", "systemctl reset-failed 'liveapply*'; rm -f /run/liveapply/outcome/*")
	got := c.lookAt(t, commit)
	if diff := lineDiff(want.state, got.state) + nspawn.Diff(want.etc, got.etc); diff != "" {
		t.Fatalf("the machine is not as it should be with commit %s live:\n%.4000s", commit, diff)
	}
}

// lookAt looks at the machine with a commit live. The numbers of what the journal has saved follow from what was live before.
func (c *course) lookAt(t *testing.T, commit string) condition {
	t.Helper()
	now := c.look(t)
	if commit != c.v1 {
		now.state = slices.DeleteFunc(now.state, func(line string) bool { return strings.Contains(line, "/liveapply/etc/saved/") })
	}
	return now
}

func thirdRelease(tree *nspawn.Tree) {
	labRelease("3")(tree)
	tree.Write("usr/lib/sysusers.d/lab.conf", "u lab-2 - \"release 2\"\n", 0o644) // those of commits that were live before would stay
	tree.Write("usr/lib/lab/removed", "3\n", 0o644)
	tree.Remove("usr/lib/lab/added")
	tree.Chmod("usr/etc/lab/directory", 0o700)
	tree.Remove("usr/etc/lab/added")
	tree.Write("usr/etc/lab/link", "3\n", 0o644)
	tree.Write("usr/lib/systemd/system/lab.service", "[Service]\nExecStart=true\n", 0o644) // systemd is reloaded
}

// newCourse boots a machine, and looks at it with each commit live.
func newCourse(t *testing.T, config string) *course {
	t.Helper()
	c := &course{injection: newInjection(t), config: config}
	c.v3 = derived(t, c.m, c.v2, thirdRelease)
	c.m.Write("/etc/liveapply/liveapply.conf", "[Apply]\nAllow=force\n"+config+"\n") // back to an older one, too
	c.before = c.look(t)
	c.at = map[string]condition{c.v1: c.before}
	for _, commit := range []string{c.v2, c.v3} {
		apply(t, c.m, commit)
		requireUsrIs(t, c.m, commit)
		c.at[commit] = c.lookAt(t, commit)
	}
	reset(t, c.m)
	c.requireLiveIs(t, c.v1)
	return c
}

// run runs a disturbance once, with strace as it is told; it returns what that wrote.
func (c *course) run(t *testing.T, d disturbance, verb, options string, n int) []string {
	t.Helper()
	d.arrange(t, c)
	c.inject(verb, "-y "+options)
	result := d.act(c)
	trace := c.trace()
	c.m.Run("sh", "-c", "rm -f "+injectDir+"/"+verb+" "+injectDir+"/*.exit")
	c.judge(t, d, result)
	switch n % 3 { // what a person would do next
	case 0:
		if target := d.target(c); target != c.v1 && d.again == nil {
			apply(t, c.m, target)
			c.requireLiveIs(t, target)
		}
	case 1:
		other := map[string]string{c.v1: c.v3, c.v2: c.v3, c.v3: c.v2}[d.target(c)]
		apply(t, c.m, other)
		c.requireLiveIs(t, other)
	}
	reset(t, c.m)
	c.requireLiveIs(t, c.v1)
	return trace
}

// judge looks at how a disturbed command ended.
func (c *course) judge(t *testing.T, d disturbance, result nspawn.Result) {
	t.Helper()
	switch {
	case d.again != nil:
		d.again(t, c)
	case result.Code == 0:
		c.requireLiveIs(t, d.target(c))
	case d.settled:
		c.requireLiveIs(t, status(t, c.m).Live)
	}
}

// attempts to hit a call; Go may have moved to another thread in one.
const attempts = 4

// strike has one call of a verb killed or failing. It returns which one it was in the reference; nil if none.
func (c *course) strike(t *testing.T, d disturbance, verb string, r reference, at tracedCall, how string, attempt, n int) *tracedCall {
	t.Helper()
	options, path := r.injection(at, how, attempt)
	got, about := hit(c.run(t, d, verb, options, n)), r.about(at.name, path)
	if got == nil || got.nth > len(about) {
		return nil
	}
	return &about[got.nth-1]
}

// struck counts what was done to calls of a verb.
type struck struct {
	hit, failed int
	missed      []tracedCall
}

// strikeAll tries all faults of one kind at calls of a verb, one after the other until enough are hit.
func (c *course) strikeAll(t *testing.T, d disturbance, verb string, r reference, at []tracedCall, enough int, how func(n int) string) (all struck) {
	t.Helper()
	done := map[string]bool{}
	for i, one := range at {
		if all.hit == enough {
			break
		}
		for attempt := 0; attempt < attempts && !done[one.String()]; attempt++ {
			ok := t.Run(fmt.Sprintf("%s %s %d %s", verb, one.name, one.nth, how(i)), func(t *testing.T) {
				mine, machine := *c, *c.injection
				machine.m = c.m.For(t)
				mine.injection = &machine
				if got := mine.strike(t, d, verb, r, one, how(i), attempt, i+attempt); got != nil {
					done[got.String()] = true
				}
			})
			if !ok {
				all.failed++
				done[one.String()] = true
				*c = *newCourse(t, c.config)
			}
		}
		if done[one.String()] {
			all.hit++
		} else {
			all.missed = append(all.missed, one)
		}
	}
	return all
}

// reference traces undisturbed runs.
func (c *course) reference(t *testing.T, d disturbance, verb string) reference {
	t.Helper()
	var traces [][]tracedCall
	for range 3 {
		calls := parseCalls(c.run(t, d, verb, steadily+" -e trace="+threadCalls+","+strings.Join(changingCalls, ","), 2))
		if len(calls) == 0 {
			t.Fatalf("%s was not traced", verb)
		}
		traces = append(traces, calls)
	}
	return newReference(traces)
}

func TestFaultsWhereSomethingIsLiveOrStagedOrLeft(t *testing.T) {
	t.Parallel()
	for _, one := range courses {
		t.Run(one.name, func(t *testing.T) {
			t.Parallel()
			c := newCourse(t, one.config)
			for _, d := range one.disturbances {
				for _, verb := range d.verbs {
					c.disturb(t, d, verb)
				}
			}
			requireTree(t, "/usr", c.m.Snapshot("/usr"), treeOf(t, c.v1))
		})
	}
}

// disturb has one verb of a disturbance killed and failing at each call, and says how many there were and which it did not hit.
func (c *course) disturb(t *testing.T, d disturbance, verb string) {
	t.Helper()
	r := c.reference(t, d, verb)
	calls := own(d, r, false)
	asks := len(calls) == 0
	if asks {
		calls = own(d, r, true)
	}
	at := inPart(calls)
	enough := len(at)
	if !isExhaustive() {
		at, enough = sample(calls), 2
	}
	killed := c.strikeAll(t, d, verb, r, at, enough, func(int) string { return "signal=SIGKILL" })
	failing := c.strikeAll(t, d, verb, r, at, enough, func(n int) string { return "error=" + errnos[n%len(errnos)] })
	t.Logf("| %s: %s | %d | %d | %d |", d.name, verb, killed.hit, failing.hit, killed.failed+failing.failed)
	for _, one := range killed.missed {
		t.Logf("%s is not killed at %v", verb, one)
	}
	for _, one := range failing.missed {
		t.Logf("%s does not fail at %v", verb, one)
	}
	if !asks && !isPart() && (killed.hit == 0 || failing.hit == 0) { // what asks on a bus does so on any thread
		t.Errorf("%s was not disturbed", verb)
	}
}

// sample takes the call in the middle and the last one, and others for when those are not hit.
func sample(calls []tracedCall) (at []tracedCall) {
	const others = 8
	last := len(calls) - 1
	places := []int{len(calls) / 2, last}
	for i := range others {
		places = append(places, last*i/others)
	}
	for i, place := range places {
		if !slices.Contains(places[:i], place) {
			at = append(at, calls[place])
		}
	}
	return at
}

// own lists the calls of the helper itself that are disturbed: those that change files, or, of a verb that only asks others, what it writes to sockets.
func own(d disturbance, r reference, sockets bool) []tracedCall {
	return slices.DeleteFunc(slices.Clone(r.calls), func(one tracedCall) bool {
		_, path, within := r.aim(one)
		return one.child || one.isSocket() && !sockets || d.onlyThreads && within && path == "" || !within && !isExhaustive()
	})
}
