//go:build nspawn

package nspawn_test

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5/introspect"
	"github.com/google/go-cmp/cmp"

	"github.com/liveapply/liveapply/test/nspawn"
)

const (
	busName      = "org.liveapply1"
	busPath      = "/org/liveapply1"
	busInterface = "org.liveapply1.Manager"
	busUnit      = "liveapply-bus.service"
)

// busMachine returns a machine that has polkit and gdbus, and stages no deployments.
func busMachine(t *testing.T) (m *nspawn.Machine, commit string) {
	t.Helper()
	commit = lab.WithProduct(t, lab.Base(t, nspawn.Trixie, nspawn.Polkit))
	m = lab.Machine(t, commit, nspawn.Options{})
	m.Boot()
	makeTransient(m)
	return m, commit
}

// byNobody is a command line that runs another one as a user without privilege, in a unit of its own.
func byNobody(unit string, args ...string) []string {
	return append([]string{"--quiet", "--uid=nobody", "--unit=" + unit, "--collect", "--wait", "--pipe", "--service-type=exec"}, args...)
}

// busctlCall is the command line of a method call.
func busctlCall(method string, args ...string) []string {
	return append([]string{"busctl", "--json=short", "--timeout=120", "--allow-interactive-authorization=no", "call", busName, busPath, busInterface, method}, args...)
}

// gdbusCall is busctlCall for gdbus, which shows the names of errors and all of their messages.
func gdbusCall(method string, args ...string) []string {
	return append([]string{"gdbus", "call", "--system", "--timeout=120", "--dest=" + busName, "--object-path=" + busPath, "--method=" + busInterface + "." + method}, args...)
}

// call calls a method as root, which must succeed, and returns the job.
func call(t *testing.T, m *nspawn.Machine, method string, args ...string) (job string) {
	t.Helper()
	command := busctlCall(method, args...)
	var answer struct{ Data []string }
	unmarshal(t, m.Run(command[0], command[1:]...), &answer)
	if len(answer.Data) != 1 || !strings.HasPrefix(answer.Data[0], busPath+"/job/") {
		t.Fatalf("%s returned %q, want a job", method, answer.Data)
	}
	return answer.Data[0]
}

// busFacts are the properties.
type busFacts struct {
	Booted, Live, Target, Phase string
	Progress                    float64
	RebootRequired              []string
}

// readBus reads the properties, one by one with busctl, and all of them with gdbus: both have to say the same.
func readBus(t *testing.T, m *nspawn.Machine) busFacts {
	t.Helper()
	var f busFacts
	for name, into := range map[string]any{"Booted": &f.Booted, "Live": &f.Live, "Target": &f.Target, "Phase": &f.Phase,
		"Progress": &f.Progress, "RebootRequired": &f.RebootRequired} {
		var answer struct{ Data json.RawMessage }
		unmarshal(t, m.Run("busctl", "--json=short", "get-property", busName, busPath, busInterface, name), &answer)
		unmarshal(t, string(answer.Data), into)
	}
	all := m.Run("gdbus", "call", "--system", "--dest="+busName, "--object-path="+busPath, "--method=org.freedesktop.DBus.Properties.GetAll", busInterface)
	requireSays(t, "gdbus", all, []string{
		fmt.Sprintf("'Booted': <'%s'>", f.Booted), fmt.Sprintf("'Live': <'%s'>", f.Live), fmt.Sprintf("'Target': <'%s'>", f.Target),
		fmt.Sprintf("'Phase': <'%s'>", f.Phase), fmt.Sprintf("'Progress': <%g", f.Progress), "'RebootRequired': <"})
	return f
}

func requireBus(t *testing.T, m *nspawn.Machine, when string, want busFacts) {
	t.Helper()
	if diff := cmp.Diff(want, readBus(t, m)); diff != "" {
		t.Errorf("%s: properties (-want +got):\n%s", when, diff)
	}
}

// busSignal is a line of busctl monitor --json=short.
type busSignal struct {
	Interface, Member string
	Payload           struct{ Data []json.RawMessage }
}

// arg decodes an argument.
func arg[T any](t *testing.T, s busSignal, n int) (value T) {
	t.Helper()
	unmarshal(t, string(s.Payload.Data[n]), &value)
	return value
}

// listener is a busctl monitor and, for a user without privilege, a gdbus monitor.
type listener struct {
	m             *nspawn.Machine
	busctl, gdbus *nspawn.Process
}

func listen(t *testing.T, m *nspawn.Machine) *listener {
	t.Helper()
	l := &listener{
		m:      m,
		busctl: m.Start("busctl", "monitor", "--json=short", "--match=type='signal',path='"+busPath+"'"),
		gdbus:  m.Start("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "gdbus", "monitor", "--system", "--dest="+busName),
	}
	// With --json busctl does not say when it is ready, so it gets something to hear. gdbus finds the owner after it has subscribed.
	waitFor(t, "the monitors to listen", func() bool {
		m.Run("busctl", "emit", busPath, "org.liveapply1.Lab", "Ready")
		return strings.Contains(l.busctl.Output(), "Ready") && strings.Contains(l.gdbus.Output(), " is owned by ")
	})
	return l
}

// finished waits for the end of a job and returns what was heard until then, and how the job ended.
func (l *listener) finished(t *testing.T, job string) (signals []busSignal, result, message string) {
	t.Helper()
	mark := "Manager.Finished (objectpath '" + job + "', "
	waitFor(t, "the end of "+job, func() bool {
		return strings.Contains(l.gdbus.Output(), mark) && strings.Contains(l.busctl.Output(), `"Finished"`) && strings.Contains(l.busctl.Output(), `["`+job+`"`)
	})
	for line := range strings.Lines(l.busctl.Output()) {
		if !strings.HasPrefix(line, "{") {
			continue
		}
		var s busSignal
		unmarshal(t, line, &s)
		signals = append(signals, s)
		if s.Member == "Finished" && arg[string](t, s, 0) == job {
			result, message = arg[string](t, s, 1), arg[string](t, s, 2)
		}
	}
	l.stop()
	requireSays(t, "gdbus monitor", l.gdbus.Output(), []string{mark + "'" + result + "', "})
	return signals, result, message
}

func (l *listener) stop() {
	l.busctl.Stop()
	l.gdbus.Stop()
}

// phasesOf returns what PhaseChanged said; gdbus has to have heard the same.
func (l *listener) phasesOf(t *testing.T, signals []busSignal) []string {
	t.Helper()
	var phases []string
	for _, s := range signals {
		if s.Member == "PhaseChanged" {
			phases = append(phases, arg[string](t, s, 0))
		}
	}
	var heard []string
	for line := range strings.Lines(l.gdbus.Output()) {
		if _, phase, ok := strings.Cut(line, "Manager.PhaseChanged ('"); ok {
			heard = append(heard, strings.TrimSuffix(strings.TrimSpace(phase), "',)"))
		}
	}
	equal(t, "phases, as gdbus has heard them", fmt.Sprint(heard), fmt.Sprint(phases))
	return phases
}

// requireConsistent checks that each signal tells of a change, and that the last values are what the properties say.
func requireConsistent(t *testing.T, signals []busSignal, before, after busFacts) {
	t.Helper()
	asMap := func(f busFacts) map[string]any {
		return map[string]any{"Booted": f.Booted, "Live": f.Live, "Target": f.Target, "Phase": f.Phase, "Progress": f.Progress, "RebootRequired": f.RebootRequired}
	}
	known, progress, phase := asMap(before), before.Progress, before.Phase
	for _, s := range signals {
		switch s.Member {
		case "PropertiesChanged":
			for name, variant := range arg[map[string]struct{ Data any }](t, s, 1) {
				if fmt.Sprint(known[name]) == fmt.Sprint(variant.Data) {
					t.Errorf("%s was announced, but is %v as before", name, variant.Data)
				}
				known[name] = variant.Data
			}
		case "PhaseChanged":
			if phase == arg[string](t, s, 0) {
				t.Errorf("the phase was announced, but is %s as before", phase)
			}
			phase = arg[string](t, s, 0)
		case "Progress":
			if next := arg[float64](t, s, 0); next == progress || next < progress && progress != 1 {
				t.Errorf("progress went from %g to %g", progress, next)
			}
			progress = arg[float64](t, s, 0)
		}
	}
	equal(t, "properties as announced", fmt.Sprint(known), fmt.Sprint(asMap(after)))
	equal(t, "phase as announced", phase, after.Phase)
	equal(t, "progress as announced", progress, after.Progress)
}

// requireInOrder checks that phases were announced in their order. The quick ones may be missing.
func requireInOrder(t *testing.T, got []string, order ...string) {
	t.Helper()
	last := -1
	for _, phase := range got {
		i := slices.Index(order, phase)
		if i <= last {
			t.Errorf("the phases were announced as %q, the order is %q", got, order)
			return
		}
		last = i
	}
	if len(got) == 0 || got[len(got)-1] != "" {
		t.Errorf("the end of the last phase was not announced: %q", got)
	}
}

func mainPID(m *nspawn.Machine) string {
	return m.Run("systemctl", "show", "--value", "--property=MainPID", busUnit)
}

func TestBusServiceShowsAndAppliesCommits(t *testing.T) {
	t.Parallel()
	m, v1 := busMachine(t)
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/two", "2", 0o644) })
	v3 := derived(t, m, v2, func(tree *nspawn.Tree) { tree.Write("usr/share/three", "3", 0o644) })
	broken := derived(t, m, v3, func(tree *nspawn.Tree) { tree.Remove("usr/bin/true") })
	dropIn(m, busUnit, "ExecStart=\nExecStart=/usr/libexec/liveapply/liveapply-bus --idle=1h")
	before := factsOf(t, m)
	equal(t, "the service before somebody asks", m.Try("systemctl", "is-active", busUnit).Stdout, "inactive")

	atRest := busFacts{Booted: v1, Live: v1, Progress: 1, RebootRequired: []string{}}
	requireBus(t, m, "at rest", atRest)
	pid := mainPID(m)
	requireIntrospection(t, m)

	for _, step := range []struct {
		name, method  string
		args          []string
		result        string
		message       string
		live          string
		order         []string
		requestedBy   string
		transactionIs string
	}{
		{"apply", "Apply", []string{"sa{sv}", v2, "0"}, "applied", v2, v2, applyOrder, "D-Bus, uid 0", "applied"},
		{"apply over another one, by a ref, with options", "Apply", []string{"sa{sv}", "test/" + v3[:12], "2", "Allow", "s", "replace", "Transient", "b", "true"},
			"applied", v3, v3, applyOrder, "D-Bus, uid 0", "applied"},
		{"apply what is refused", "Apply", []string{"sa{sv}", broken, "0"}, "refused", "/usr/bin/true", v3, applyOrder, "D-Bus, uid 0", "refused"},
		{"go back to what was live before", "Rollback", []string{"a{sv}", "0"}, "applied", v2, v2, applyOrder, "D-Bus, uid 0", "applied"},
		{"go back to the booted tree", "Reset", []string{"a{sv}", "0"}, "reset", v1, v1, resetOrder, "D-Bus, uid 0", "reset"},
	} {
		t.Run(step.name, func(t *testing.T) {
			m := m.For(t)
			was := readBus(t, m)
			l := listen(t, m)
			job := call(t, m, step.method, step.args...)
			signals, result, message := l.finished(t, job)
			equal(t, "result", result, step.result)
			requireSays(t, "Finished", message, []string{step.message})
			now := busFacts{Booted: v1, Live: step.live, Progress: 1, RebootRequired: []string{}}
			requireBus(t, m, "at the end", now)
			requireConsistent(t, signals, was, now)
			requireInOrder(t, l.phasesOf(t, signals), step.order...)
			last := lastTransaction(t, m)
			equal(t, "result in the history", last.Result, step.transactionIs)
			if !strings.HasPrefix(last.RequestedBy, step.requestedBy) {
				t.Errorf("the history says that %q asked, want %s…", last.RequestedBy, step.requestedBy)
			}
			// The same process has seen all of it, through its own mount namespace.
			equal(t, "process of the service", mainPID(m), pid)
		})
	}
	requireSame(t, m, before)
	requireSays(t, "the journal", m.Journal("--unit="+busUnit), []string{"Started"})
	equal(t, "what the service complained about", m.Journal("--unit="+busUnit, "--priority=warning"), "")
}

var (
	applyOrder = []string{"prepare", "mount", "etc", "tmpfiles", "services", "record", ""}
	resetOrder = []string{"etc", "mount", "record", ""}
)

// requireIntrospection compares what busctl and gdbus are told with what is installed.
func requireIntrospection(t *testing.T, m *nspawn.Machine) {
	t.Helper()
	installed := interfaceOf(t, m.Read("/usr/share/dbus-1/interfaces/"+busInterface+".xml"))
	for who, got := range map[string]string{
		"busctl": m.Run("busctl", "introspect", "--xml-interface", busName, busPath),
		"gdbus":  m.Run("gdbus", "introspect", "--xml", "--system", "--dest="+busName, "--object-path="+busPath),
	} {
		if diff := cmp.Diff(installed, interfaceOf(t, got)); diff != "" {
			t.Errorf("%s shows another interface than is installed (-installed +running):\n%s", who, diff)
		}
	}
}

func interfaceOf(t *testing.T, text string) introspect.Interface {
	t.Helper()
	var node introspect.Node
	if err := xml.Unmarshal([]byte(text), &node); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	i := slices.IndexFunc(node.Interfaces, func(i introspect.Interface) bool { return i.Name == busInterface })
	if i < 0 {
		t.Fatalf("no %s in %s", busInterface, text)
	}
	return node.Interfaces[i]
}

// While a phase is held, the properties say so.
func TestBusServiceShowsWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	m, v1 := busMachine(t)
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/two", "2", 0o644) })
	for phase, want := range map[string]busFacts{
		"prepare": {Booted: v1, Live: v1, Target: v2, Phase: "prepare", Progress: 0},
		"mount":   {Booted: v1, Live: v2, Target: v2, Phase: "mount", Progress: 1.0 / 6},
		"etc":     {Booted: v1, Live: v2, Target: v2, Phase: "etc", Progress: 2.0 / 6},
	} {
		l := listen(t, m)
		hold(m, phase)
		job := call(t, m, "Apply", "sa{sv}", v2, "0")
		awaitHeld(m, phase, v2)
		want.RebootRequired = []string{}
		got := readBus(t, m)
		// A phase that takes long enough to count has got that far: progress does not go back.
		if got.Progress < want.Progress || got.Progress > want.Progress+1.0/6 {
			t.Errorf("held after %s: Progress is %g, want %g and up to a sixth more", phase, got.Progress, want.Progress)
		}
		got.Progress = want.Progress
		equal(t, "held after "+phase+": properties", fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want))
		if strings.Contains(l.gdbus.Output(), "Finished") {
			t.Errorf("held after %s: the job is finished", phase)
		}
		m.Write("/run/go", "")
		_, result, _ := l.finished(t, job)
		equal(t, "held after "+phase+": result", result, "applied")
		removeDropIns(m)
		reset(t, m)
	}
}

func TestBusErrorsHaveNames(t *testing.T) {
	t.Parallel()
	m, v1 := busMachine(t)
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/two", "2", 0o644) })
	before := factsOf(t, m)
	for _, c := range []struct {
		name, message string
		method        string
		args          []string
	}{
		{"org.liveapply1.Error.NoSuchCommit", "no-such-ref", "Apply", []string{"'no-such-ref'", "{}"}},
		{"org.liveapply1.Error.NoSuchCommit", "", "Apply", []string{"'" + strings.Repeat("0", 64) + "x'", "{}"}},
		{"org.liveapply1.Error.NothingToDo", "live already", "Apply", []string{"'" + v1 + "'", "{}"}},
		{"org.liveapply1.Error.NothingToDo", "staged or pending", "Apply", []string{"''", "{}"}},
		{"org.liveapply1.Error.InvalidOption", "Allow", "Apply", []string{"'" + v2 + "'", "{'Allow': <'everything'>}"}},
		{"org.liveapply1.Error.InvalidOption", "Transient", "Apply", []string{"'" + v2 + "'", "{'Transient': <'yes'>}"}},
		{"org.liveapply1.Error.InvalidOption", "Allow, Exclude, Packages, RestartServices, Transient", "Apply", []string{"'" + v2 + "'", "{'RequestedBy': <'somebody else'>}"}},
		{"org.liveapply1.Error.NothingToDo", v1, "Reset", []string{"{}"}},
		{"org.liveapply1.Error.InvalidOption", "Transient", "Reset", []string{"{'Transient': <true>}"}},
		{"org.liveapply1.Error.NothingToDo", v1, "Rollback", []string{"{}"}},
		{"org.freedesktop.DBus.Error.UnknownMethod", "Frobnicate", "Frobnicate", nil},
	} {
		command := gdbusCall(c.method, c.args...)
		result := m.Try(command[0], command[1:]...)
		if result.Code == 0 || !strings.Contains(result.Stderr, "GDBus.Error:"+c.name+": ") || !strings.Contains(result.Stderr, c.message) {
			t.Errorf("%s %s: exit status %d, %s\nwant %s with %q", c.method, c.args, result.Code, result.Stderr, c.name, c.message)
		}
	}
	result := m.Try("busctl", "set-property", busName, busPath, busInterface, "Live", "s", v2)
	if result.Code == 0 || !strings.Contains(result.Stderr, "Live") {
		t.Errorf("set-property Live: exit status %d, %s", result.Code, result.Stderr)
	}
	requireSame(t, m, before)
}

func TestPolkitDecidesWhoMayChange(t *testing.T) {
	t.Parallel()
	m, v1 := busMachine(t)
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/two", "2", 0o644) })
	v3 := derived(t, m, v2, func(tree *nspawn.Tree) { tree.Write("usr/share/three", "3", 0o644) })
	// Everybody may compare, too, which changes nothing.
	l := listen(t, m)
	var job struct{ Data []string }
	unmarshal(t, m.Run("systemd-run", byNobody("asker", busctlCall("Diff", "s", v2)...)...), &job)
	_, result, message := l.finished(t, job.Data[0])
	equal(t, "result of Diff: "+message, result, "done")
	var summary struct {
		From, Target string
		Impact       struct {
			Kind  string
			Files struct{ Added int }
		}
		Etc []any
	}
	unmarshal(t, message, &summary)
	equal(t, "summary", fmt.Sprintf("%+v", summary), fmt.Sprintf("{From:%s Target:%s Impact:{Kind:additive Files:{Added:1}} Etc:[]}", v1, v2))
	apply(t, m, v3)
	before := factsOf(t, m)

	const read = "busctl get-property org.liveapply1 /org/liveapply1 org.liveapply1.Manager Live"
	equal(t, "what a user reads", m.Run("systemd-run", byNobody("reader", strings.Fields(read)...)...), `s "`+v3+`"`)

	for method, args := range map[string][]string{"Apply": {"'" + v2 + "'", "{'Allow': <'force'>}"}, "Reset": {"{}"}, "Rollback": {"{}"}} {
		action := "org.liveapply1." + strings.ToLower(method)
		refused := m.Try("systemd-run", byNobody("asker", gdbusCall(method, args...)...)...)
		if refused.Code == 0 || !strings.Contains(refused.Stderr, "GDBus.Error:org.freedesktop.DBus.Error.InteractiveAuthorizationRequired: "+action+" needs a password") {
			t.Errorf("%s of a user: exit status %d, %s", method, refused.Code, refused.Stderr)
		}
		// There is nobody who could ask for a password.
		refused = m.Try("systemd-run", byNobody("asker", append(gdbusCall(method, args...), "--interactive")...)...)
		if refused.Code == 0 || !strings.Contains(refused.Stderr, "GDBus.Error:org.freedesktop.DBus.Error.AccessDenied: polkit does not allow "+action) {
			t.Errorf("%s of a user, interactively: exit status %d, %s", method, refused.Code, refused.Stderr)
		}
	}
	requireSame(t, m, before)

	m.Write("/etc/polkit-1/rules.d/50-liveapply.rules", fmt.Sprintf(`polkit.addRule(function(action, subject) {
		if (subject.user == "nobody" && (action.id == "org.liveapply1.rollback" || action.id == "org.liveapply1.apply" && action.lookup("commit") == "%s"))
			return polkit.Result.YES;
	});`, v2))
	m.Run("systemctl", "restart", "polkit.service")
	l = listen(t, m)
	var answer struct{ Data []string }
	unmarshal(t, m.Run("systemd-run", byNobody("asker", busctlCall("Apply", "sa{sv}", v2, "1", "Allow", "s", "force")...)...), &answer)
	_, result, message = l.finished(t, answer.Data[0])
	equal(t, "result: "+message, result, "applied")
	equal(t, "live", readBus(t, m).Live, v2)
	equal(t, "who asked", lastTransaction(t, m).RequestedBy, "D-Bus, uid 65534 (asker.service)")
	// liveapplyctl asks for a user in the same way.
	asUser := func(args ...string) nspawn.Result {
		return m.Try("systemd-run", byNobody("asker", append([]string{"liveapplyctl"}, args...)...)...)
	}
	equal(t, "exit status of liveapplyctl apply", asUser("apply", v2).Code, exitNothing)
	apply(t, m, v3)
	allowed := asUser("apply", "--force", "--transient", v2)
	equal(t, "exit status of liveapplyctl apply: "+allowed.Stderr, allowed.Code, 0)
	equal(t, "what it says", allowed.Stdout, "Commit "+v2+" is live.")
	equal(t, "live", readBus(t, m).Live, v2)
	equal(t, "who asked", lastTransaction(t, m).RequestedBy, "D-Bus, uid 65534 (asker.service)")
	for _, args := range [][]string{{"apply", v3}, {"reset"}} {
		refused := asUser(args...)
		equal(t, fmt.Sprint("exit status of ", args), refused.Code, exitFailed)
		requireSays(t, fmt.Sprint(args), refused.Stderr, []string{"polkit does not allow org.liveapply1." + args[0]})
	}
	command := busctlCall("Apply", "sa{sv}", v3, "0")
	if other := m.Try("systemd-run", byNobody("asker", command...)...); other.Code == 0 {
		t.Error("a user may apply another commit than the rule allows")
	}
	if other := m.Try("systemd-run", byNobody("asker", busctlCall("Reset", "a{sv}", "0")...)...); other.Code == 0 {
		t.Error("a user may reset, who may only apply and roll back")
	}
	equal(t, "live", readBus(t, m).Live, v2)
}

func TestWithoutPolkitOnlyRootMayChange(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := productMachine(t, suite, nspawn.Options{})
		makeTransient(m)
		v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/two", "2", 0o644) })
		refused := m.Try("systemd-run", byNobody("asker", busctlCall("Apply", "sa{sv}", v2, "0")...)...)
		if refused.Code == 0 || !strings.Contains(refused.Stderr, "Access denied") { // which is all that busctl says
			t.Errorf("exit status %d, %s", refused.Code, refused.Stderr)
		}
		refused = m.Try("systemd-run", byNobody("asker", "liveapplyctl", "apply", v2)...)
		equal(t, "exit status of liveapplyctl apply", refused.Code, exitFailed)
		requireSays(t, "liveapplyctl apply", refused.Stderr, []string{"liveapplyctl: only root may do this on a machine without polkit"})
		equal(t, "live", status(t, m).Live, v1)
		call(t, m, "Apply", "sa{sv}", v2, "0")
		awaitApplied(m)
		equal(t, "live", status(t, m).Live, v2)
		equal(t, "live on the bus", m.Run("busctl", "get-property", busName, busPath, busInterface, "Live"), `s "`+v2+`"`)
		equal(t, "what the service complained about", m.Journal("--unit="+busUnit, "--priority=warning"), "")
	})
}

func TestARefusalWithoutPolkitSaysWhatToDo(t *testing.T) {
	t.Parallel()
	withPolkit := lab.WithProduct(t, lab.Base(t, nspawn.Trixie, nspawn.Polkit))
	m := lab.Machine(t, lab.Derive(t, withPolkit, func(tree *nspawn.Tree) {
		tree.Remove("usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service")
		tree.Remove("usr/lib/systemd/system/polkit.service")
	}), nspawn.Options{})
	m.Boot()
	target := m.Pull(withPolkit)
	refused := m.Try("systemd-run", byNobody("asker", gdbusCall("Apply", "'"+target+"'", "{}")...)...)
	requireSays(t, "gdbus", refused.Stderr, []string{"GDBus.Error:org.freedesktop.DBus.Error.AccessDenied: only root may do this on a machine without polkit"})
}

// awaitApplied waits until a first application has ended.
func awaitApplied(m *nspawn.Machine) {
	m.Run("sh", "-c", `until [ -e /run/liveapply/stamp ] && [ ! -e /run/liveapply/transaction.json ]; do sleep 0.05; done`)
}

// With hardly any idle time, the service ends all the time. No call may get lost then, and systemd has to see each end as a success.
func TestNoCallIsLostWhenTheServiceEnds(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := productMachine(t, suite, nspawn.Options{})
		makeTransient(m)
		v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/two", "2", 0o644) })
		dropIn(m, busUnit, "ExecStart=\nExecStart=/usr/libexec/liveapply/liveapply-bus --idle=1ms")
		const calls = 60
		output := m.Run("sh", "-c", fmt.Sprintf(`for i in $(seq %d); do busctl get-property %s %s %s Live || echo lost; done`, calls, busName, busPath, busInterface))
		equal(t, "answers", strings.Count(output, `s "`+v1+`"`), calls)
		call(t, m, "Apply", "sa{sv}", v2, "0")
		awaitApplied(m)
		equal(t, "live", status(t, m).Live, v2)
		awaitProperty(m, busUnit, "ActiveState", "inactive")
		equal(t, "result of the unit", m.Run("systemctl", "show", "--value", "--property=Result", busUnit), "success")
		ends := strings.Count(m.Journal("--unit="+busUnit, "--output=cat"), "Deactivated successfully")
		if ends < 10 {
			t.Errorf("the service has ended %d times only", ends)
		}
		removeDropIns(m)
	})
}

func TestBusServiceEndsWhenNobodyAsks(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	live := func() string { return m.Run("busctl", "get-property", busName, busPath, busInterface, "Live") }
	equal(t, "live", live(), `s "`+v1+`"`)
	awaitProperty(m, busUnit, "ActiveState", "inactive")
	equal(t, "result of the unit", m.Run("systemctl", "show", "--value", "--property=Result", busUnit), "success")
	equal(t, "live, asked again", live(), `s "`+v1+`"`)
	m.Run("systemctl", "stop", busUnit)
	equal(t, "result of a unit that was stopped", m.Run("systemctl", "show", "--value", "--property=Result", busUnit), "success")
}

// Polkit waits for changes in directories that /usr does not show any more, and managers of users have read theirs: both follow a commit, and a reset.
func TestPolkitAndManagersOfUsersFollow(t *testing.T) {
	t.Parallel()
	m, v1 := busMachine(t)
	unit := func(text string) func(*nspawn.Tree) {
		return func(tree *nspawn.Tree) {
			tree.Write("usr/lib/systemd/user/lab-of-users.service", "[Unit]\nDescription="+text+"\n[Service]\nExecStart=sleep infinity\n", 0o644)
		}
	}
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) {
		unit("2")(tree)
		tree.Write("usr/share/polkit-1/actions/org.example.lab.policy", `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE policyconfig PUBLIC "-//freedesktop//DTD PolicyKit Policy Configuration 1.0//EN" "http://www.freedesktop.org/standards/PolicyKit/1/policyconfig.dtd">
<policyconfig><action id="org.example.lab.do"><description>do</description><message>do</message>
<defaults><allow_any>no</allow_any><allow_inactive>no</allow_inactive><allow_active>no</allow_active></defaults></action></policyconfig>
`, 0o644)
	})
	v3 := derived(t, m, v2, unit("3"))
	known := func() bool { return m.Try("pkaction", "--action-id=org.example.lab.do").Code == 0 }
	described := func() string {
		return m.Try("env", "XDG_RUNTIME_DIR=/run/user/0", "systemctl", "--user", "show", "--value", "--property=Description", "lab-of-users.service").Stdout
	}
	m.Run("systemctl", "start", "polkit.service", "user@0.service")
	equal(t, "the action is known before", known(), false)
	apply(t, m, v2)
	equal(t, "the action is known", known(), true)
	m.Run("env", "XDG_RUNTIME_DIR=/run/user/0", "systemctl", "--user", "start", "lab-of-users.service")
	equal(t, "the unit of users", described(), "2")
	apply(t, m, v3)
	waitFor(t, "the unit of users to be read again", func() bool { return described() == "3" })
	reset(t, m)
	equal(t, "the action is known after a reset", known(), false)
}
