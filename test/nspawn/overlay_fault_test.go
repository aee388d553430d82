//go:build nspawn

package nspawn_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/test/nspawn"
)

// Each change of overlays is disturbed here at the calls by which the helper changes something: killed there, or failing. When the units that
// this has started have ended, the machine is as before the change or as after it, in all respects.
//
// In CI it is some calls of each change, drawn by a seed; with LIVEAPPLY_TEST_EXHAUSTIVE=1 every call of each.

// overlayState is what a change of overlays changes.
type overlayState struct {
	tree   nspawn.Snapshot // what is seen
	stores []string        // what the stores hold: what the indexes say, and the content
	mounts []string        // where something is mounted, and of which kind
}

func overlayStateOf(t *testing.T, m *nspawn.Machine) (now overlayState) {
	t.Helper()
	now.tree = usrAndEtc(m, "usr/lib/lab", "usr/share/lab", "etc", "run/lab")
	for _, store := range overlayStores {
		for _, o := range indexOf(t, m, store).Overlays {
			about := fmt.Sprintf("%s: %s %s %d enabled=%t", store, o.Name, o.Scope, o.Priority, o.Enabled)
			now.stores = append(now.stores, about)
			if o.Generation == 0 {
				continue
			}
			content := m.Snapshot(fmt.Sprintf("%s/%s/%d/tree", store, o.Name, o.Generation))
			for path, entry := range content {
				now.stores = append(now.stores, fmt.Sprintf("%s: %s %v", about, path, entry))
			}
		}
	}
	for _, mount := range m.Mounts() {
		if !strings.HasPrefix(mount.Mountpoint, "/run/credentials/") {
			now.mounts = append(now.mounts, fmt.Sprintf("%s %s", mount.Mountpoint, mount.FSType))
		}
	}
	slices.Sort(now.mounts)
	return now
}

// diff tells how a state differs from another one.
func (o overlayState) diff(other overlayState) string {
	return nspawn.Diff(o.tree, other.tree) + lineDiff(o.stores, other.stores) + lineDiff(o.mounts, other.mounts)
}

// overlayChange is something that is disturbed. What leads to it is not.
type overlayChange struct {
	name     string
	arrange  []overlay.Operation // leads to where it begins from a machine without overlays
	request  []overlay.Operation // either a request,
	rewrites string              // or a change of the index by sed(1), for liveapply-overlays.service to follow
}

// verb is the helper's that works on it.
func (c overlayChange) verb() string {
	if c.rewrites != "" {
		return "overlays"
	}
	return "overlay"
}

// act carries the change out.
func (c overlayChange) act(t *testing.T, m *nspawn.Machine) nspawn.Result {
	t.Helper()
	if c.rewrites == "" {
		return tryOverlays(t, m, overlay.Request{Operations: c.request})
	}
	m.Run("sed", "-i", c.rewrites, overlayStores[0]+"/overlays.json")
	return m.Try("systemctl", "start", "liveapply-overlays.service")
}

const overlayContent = "/run/lab-content"

func setFrom(name, path, content string) overlay.Operation {
	return overlay.Operation{Verb: overlay.Set, Name: name, Path: path, From: overlayContent + "/" + content, Mode: 0o640}
}

func maskAt(name, path string) overlay.Operation {
	return overlay.Operation{Verb: overlay.Mask, Name: name, Path: path}
}

// faultContent is an overlay on each of /usr, /etc and /run.
var faultContent = []overlay.Operation{
	{Verb: overlay.Create, Name: "fault", Priority: 3},
	setFrom("fault", "/usr/lib/lab/changed", "one"),
	setFrom("fault", "/usr/lib/lab/new/deep/file", "one"),
	maskAt("fault", "/usr/share/lab"),
	setFrom("fault", "/etc/lab/directory/file", "one"),
	setFrom("fault", "/etc/lab/new/file", "one"),
	maskAt("fault", "/etc/lab/edited"),
	setFrom("fault", "/run/lab/file", "one"),
}

// beside is an overlay that is there already, for what the change must leave alone.
var beside = []overlay.Operation{
	{Verb: overlay.Create, Name: "beside"},
	setFrom("beside", "/usr/lib/lab/changed", "two"),
	setFrom("beside", "/etc/lab/default", "two"),
}

func verbOn(verb overlay.Verb) []overlay.Operation {
	return []overlay.Operation{{Verb: verb, Name: "fault"}}
}

// importing takes an image that is a directory.
func importing(content string) []overlay.Operation {
	return []overlay.Operation{{Verb: overlay.Import, Name: "fault", From: overlayContent + "/image-" + content}}
}

// overlayChanges are run side by side by groups, each on a machine of its own.
var overlayChanges = [][]overlayChange{
	{
		{name: "create the first one", request: faultContent},
		{name: "create", arrange: beside, request: faultContent},
	},
	{
		{name: "set", arrange: slices.Concat(beside, faultContent), request: []overlay.Operation{
			setFrom("fault", "/usr/lib/lab/changed", "two"), setFrom("fault", "/usr/lib/lab/second", "two"),
			setFrom("fault", "/etc/lab/directory/file", "two"), setFrom("fault", "/run/lab/file", "two"),
		}},
		{name: "mask", arrange: slices.Concat(beside, faultContent), request: []overlay.Operation{
			maskAt("fault", "/usr/lib/lab/changed"), maskAt("fault", "/etc/lab/new/file"), maskAt("fault", "/etc/lab/directory"),
		}},
	},
	{
		{name: "disable", arrange: slices.Concat(beside, faultContent), request: verbOn(overlay.Disable)},
		{name: "enable", arrange: slices.Concat(beside, faultContent, verbOn(overlay.Disable)), request: verbOn(overlay.Enable)},
		{name: "remove", arrange: slices.Concat(beside, faultContent), request: verbOn(overlay.Remove)},
		{name: "remove the last one", arrange: faultContent, request: verbOn(overlay.Remove)},
	},
	{
		{name: "import", arrange: beside, request: importing("one")},
		{name: "import another", arrange: slices.Concat(beside, importing("one")), request: importing("two")},
	},
	{
		{name: "follow to nothing", arrange: slices.Concat(beside, faultContent), rewrites: "s/\"enabled\": true/\"enabled\": false/"},
		{name: "follow from nothing", arrange: slices.Concat(beside, faultContent, verbOn(overlay.Disable), []overlay.Operation{{Verb: overlay.Disable, Name: "beside"}}),
			rewrites: "s/\"enabled\": false/\"enabled\": true/"},
	},
}

// overlayFaults is a machine with a live commit, whose helper can be disturbed.
type overlayFaults struct {
	*injection
	nothing overlayState // without overlays
}

func newOverlayFaults(t *testing.T) *overlayFaults {
	t.Helper()
	f := &overlayFaults{injection: makeInjection(t)}
	f.wrap(map[string][]string{
		"liveapply-overlay@.service": {"ExecStart=overlay %I"},
		"liveapply-overlays.service": {"ExecStart=overlays"},
	})
	apply(t, f.m, f.v2)
	f.nothing = beginOverlays(t, f.m)
	return f
}

// beginOverlays makes a machine ready for changes of overlays. It returns its state without any.
func beginOverlays(t *testing.T, m *nspawn.Machine) overlayState {
	t.Helper()
	m.Run("mkdir", "--parents", overlayContent)
	for _, content := range []string{"one", "two"} {
		m.Write(overlayContent+"/"+content, content+"\n")
		m.Run("install", "-D", "--mode=644", overlayContent+"/"+content, overlayContent+"/image-"+content+"/lib/lab/changed")
		m.Run("install", "-D", "--mode=644", overlayContent+"/"+content, overlayContent+"/image-"+content+"/usr/lib/lab/of-"+content+"/file")
		m.Run("install", "-D", "--mode=644", overlayContent+"/"+content, overlayContent+"/image-"+content+"/etc/lab/default")
	}
	clearOverlays(t, m)
	overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "fault"}) // the first change of all leaves notes in /run
	clearOverlays(t, m)
	return overlayStateOf(t, m)
}

// clearOverlays removes all overlays, and the store, so that the next one is the first.
func clearOverlays(t *testing.T, m *nspawn.Machine) {
	t.Helper()
	var operations []overlay.Operation
	for _, o := range indexOf(t, m, overlayStores[0]).Overlays {
		operations = append(operations, overlay.Operation{Verb: overlay.Remove, Name: o.Name})
	}
	if len(operations) > 0 {
		overlays(t, m, operations...)
	}
	requireTidy(t, m)
	m.Run("rm", "-rf", overlayStores[0])
}

// arranged goes to where a change begins, and returns what that is.
func (c overlayChange) arranged(t *testing.T, m *nspawn.Machine) overlayState {
	t.Helper()
	if len(c.arrange) > 0 {
		overlays(t, m, c.arrange...)
	}
	return overlayStateOf(t, m)
}

// undisturbed returns where a change leads to.
func (c overlayChange) undisturbed(t *testing.T, m *nspawn.Machine) (after overlayState) {
	t.Helper()
	before := c.arranged(t, m)
	if result := c.act(t, m); result.Code != 0 {
		t.Fatalf("%s: %s", c.name, result.Stderr)
	}
	after = overlayStateOf(t, m)
	if before.diff(after) == "" {
		t.Fatalf("%s changes nothing", c.name)
	}
	clearOverlays(t, m)
	return after
}

// run has a change disturbed as strace is told, and judges how that ends. It returns what strace wrote.
func (f *overlayFaults) run(t *testing.T, c overlayChange, after overlayState, options string) []string {
	t.Helper()
	before := c.arranged(t, f.m)
	f.inject(c.verb(), "-y "+options)
	result := c.act(t, f.m)
	// Also those that its failure has started.
	f.m.Run("timeout", "60", "sh", "-c", `until [ -z "$(systemctl list-jobs --no-legend 'liveapply*')" ]; do sleep 0.05; done`)
	trace := f.trace()
	// A request that was not read is read by nobody: the next one has a name of its own.
	f.m.Run("sh", "-c", "rm -f "+injectDir+"/"+c.verb()+" /run/liveapply/overlay/*; systemctl reset-failed 'liveapply*'")
	if c.rewrites != "" {
		f.m.Run("systemctl", "start", "liveapply-overlays.service")
	}
	requireTidy(t, f.m)
	now := overlayStateOf(t, f.m)
	fromBefore := before.diff(now)
	if fromBefore == "" && result.Code != 0 && c.rewrites == "" {
		overlays(t, f.m, c.request...)
		now = overlayStateOf(t, f.m)
	}
	if diff := after.diff(now); diff != "" {
		t.Errorf("exit status %d, and the machine is not as before:\n%.3000s\nnor as after:\n%.3000s", result.Code, fromBefore, diff)
	}
	clearOverlays(t, f.m)
	if diff := f.nothing.diff(overlayStateOf(t, f.m)); diff != "" {
		t.Fatalf("without overlays the machine is not as it was:\n%.3000s", diff)
	}
	return trace
}

// reference traces undisturbed runs.
func (f *overlayFaults) reference(t *testing.T, c overlayChange, after overlayState) reference {
	t.Helper()
	var traces [][]tracedCall
	for range 3 {
		calls := parseCalls(f.run(t, c, after, steadily+" -e trace="+threadCalls+","+strings.Join(changingCalls, ",")))
		if len(calls) == 0 {
			t.Fatalf("%s was not traced", c.verb())
		}
		traces = append(traces, calls)
	}
	return newReference(traces)
}

// strike has one call killed or failing. It tells whether one was hit.
func (f *overlayFaults) strike(t *testing.T, c overlayChange, after overlayState, r reference, at tracedCall, how string, attempt int) bool {
	t.Helper()
	options, _ := r.injection(at, how, attempt)
	return hit(f.run(t, c, after, options)) != nil
}

// disturb has a change killed and failing at its calls.
func (f *overlayFaults) disturb(t *testing.T, c overlayChange, random *rand.Rand) {
	t.Helper()
	after := c.undisturbed(t, f.m)
	r := f.reference(t, c, after)
	calls := inPart(own(disturbance{}, r, false))
	random.Shuffle(len(calls), func(i, j int) { calls[i], calls[j] = calls[j], calls[i] })
	var kills, errors, failed int
	for i, at := range calls[:min(len(calls), sampled(6, len(calls)))] {
		for _, how := range []string{"signal=SIGKILL", "error=" + errnos[i%len(errnos)]} {
			struck := false
			if !t.Run(fmt.Sprintf("%s/%s %d %s", c.name, at.name, at.nth, how), func(t *testing.T) {
				one, machine := *f, *f.injection
				machine.m, one.injection = f.m.For(t), &machine
				for attempt := 0; attempt < attempts && !struck; attempt++ {
					struck = one.strike(t, c, after, r, at, how, attempt)
				}
				t.Log(at)
			}) {
				failed++
				*f = *newOverlayFaults(t)
				after = c.undisturbed(t, f.m)
			}
			switch {
			case !struck:
				t.Logf("%s: no %s at %v", c.name, how, at)
			case strings.HasPrefix(how, "signal"):
				kills++
			default:
				errors++
			}
		}
	}
	// The line for docs/reliability.md.
	t.Logf("| %s | %d | %d | %d | %d |", c.name, len(calls), kills, errors, failed)
	if (kills == 0 || errors == 0) && !isPart() {
		t.Errorf("%s was not disturbed", c.name)
	}
}

func TestOverlayFaultsEndInTheOldOrTheNewStack(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	for _, group := range overlayChanges {
		own := rand.New(rand.NewPCG(random.Uint64(), 0))
		t.Run(group[0].name, func(t *testing.T) {
			t.Parallel()
			f := newOverlayFaults(t)
			for _, c := range group {
				f.disturb(t, c, own)
			}
			requireTree(t, "/usr", f.m.Snapshot("/usr"), treeOf(t, f.v2))
		})
	}
}

// The instants are anywhere in a change, whatever the machine is doing then.
func TestPowerCutDuringAChangeOfOverlays(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	m := makeInjection(t).m
	nothing := beginOverlays(t, m)
	came := map[string]int{}
	for _, c := range slices.Concat(overlayChanges[:4]...) {
		after := c.undisturbed(t, m)
		c.arranged(t, m)
		whole := measured(func() { c.act(t, m) })
		clearOverlays(t, m)
		for i, instant := range instants(random, sampled(1, 8), whole) {
			t.Run(fmt.Sprintf("%s/%d after %v", c.name, i, instant), func(t *testing.T) {
				m := m.For(t)
				before := c.arranged(t, m)
				m.Run("systemctl", "start", "--no-block", leaveRequest(t, m, overlay.Request{Operations: c.request}))
				time.Sleep(instant)
				m.PowerCut()
				m.Boot()
				equal(t, "system state", m.Try("systemctl", "is-system-running").Stdout, "running")
				requireTidy(t, m)
				now := overlayStateOf(t, m)
				switch fromBefore, fromAfter := before.diff(now), after.diff(now); {
				case fromBefore == "":
					came["old"]++
				case fromAfter == "":
					came["new"]++
				default:
					t.Errorf("the machine is not as before:\n%.3000s\nnor as after:\n%.3000s", fromBefore, fromAfter)
				}
				if diff := nothing.diff(beginOverlays(t, m)); diff != "" {
					t.Errorf("without overlays the machine is not as it was:\n%.3000s", diff)
				}
			})
		}
	}
	t.Logf("the machine came up with the old overlays %d times, with the new ones %d times", came["old"], came["new"])
}
