//go:build nspawn

package nspawn_test

import (
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/test/nspawn"
)

// refusals are requests that are not carried out. Each begins with something that could be.
var refusals = []struct {
	name    string
	request overlay.Request
	says    string
}{
	{"an overlay that is not there", overlay.Request{Operations: verbOn(overlay.Enable)}, "there is no overlay of this name"},
	{"one that is there", overlay.Request{Operations: []overlay.Operation{{Verb: overlay.Create, Name: "beside"}}}, "already"},
	{"a bad name", overlay.Request{Operations: []overlay.Operation{{Verb: overlay.Create, Name: "../etc"}}}, "cannot be the name"},
	{"an unknown verb", overlay.Request{Operations: []overlay.Operation{{Verb: "love", Name: "beside", Path: "/usr/lib/lab/x"}}}, "nothing that can be done"},
	{"an unknown scope", overlay.Request{Operations: []overlay.Operation{{Verb: overlay.Create, Name: "fault", Scope: "galaxy"}}}, "is no scope"},
	{"a path above the tree", overlay.Request{Operations: []overlay.Operation{setFrom("beside", "/usr/../var/x", "one")}}, "no path for an overlay"},
	{"a path elsewhere", overlay.Request{Operations: []overlay.Operation{setFrom("beside", "/var/lib/x", "one")}}, "no path for an overlay"},
	{"a path that leads elsewhere", overlay.Request{Operations: []overlay.Operation{setFrom("beside", "/home/x", "one")}}, "no path for an overlay"},
	{"a directory", overlay.Request{Operations: []overlay.Operation{setFrom("beside", "/usr/lib/lab", "one")}}, "is a directory"},
	{"a path below a file", overlay.Request{Operations: []overlay.Operation{setFrom("beside", "/usr/lib/lab/same/x", "one")}}, "nothing can be put below it"},
	{"content that is not there", overlay.Request{Operations: []overlay.Operation{setFrom("beside", "/usr/lib/lab/x", "missing")}}, "no such file"},
	{"a file to add that is not there", overlay.Request{Operations: []overlay.Operation{{Verb: overlay.Add, Name: "beside", Path: "/usr/lib/lab/x"}}}, "there is no such file"},
	{"a mask of nothing", overlay.Request{Operations: []overlay.Operation{maskAt("beside", "/usr/lib/lab/x")}}, "there is no such file"},
	{"a path that it has not", overlay.Request{Operations: []overlay.Operation{{Verb: overlay.Unset, Name: "beside", Path: "/usr/lib/lab/x"}}}, "has no such path"},
	{"a setuid program", overlay.Request{Operations: []overlay.Operation{{Verb: overlay.Add, Name: "beside", Path: "/usr/bin/su"}}}, "AllowSetuid=yes"},
	{"systemd", overlay.Request{Operations: []overlay.Operation{setFrom("beside", "/usr/lib/systemd/systemd", "one")}}, "cannot do without"},
	{"the directory of systemd", overlay.Request{Operations: []overlay.Operation{maskAt("beside", "/usr/lib/systemd")}}, "cannot do without"},
	{"the program itself", overlay.Request{Operations: []overlay.Operation{maskAt("beside", helper)}}, "cannot do without"},
	{"two stores", overlay.Request{Operations: []overlay.Operation{{Verb: overlay.Create, Name: "fault", Runtime: true}}}, "not kept in the same place"},
	{"two that can be written", overlay.Request{Operations: []overlay.Operation{
		{Verb: overlay.Create, Name: "fault", Writable: true}, {Verb: overlay.Create, Name: "other", Writable: true}}}, "both writable"},
	{"a library that no program runs with", overlay.Request{Force: true, Operations: []overlay.Operation{setFrom("beside", "/lib/x86_64-linux-gnu/libc.so.6", "one")}}, "/usr/bin/true"},
	{"a program that is tried", overlay.Request{Operations: []overlay.Operation{maskAt("beside", "/usr/bin/true")}}, "/usr/bin/true"},
	{"an account file", overlay.Request{Operations: []overlay.Operation{setFrom("beside", "/etc/passwd", "one")}}, "passwd"},
}

// Whatever comes before it in the same request, a bad operation has all of it refused.
func TestRefusedChangesOfOverlaysChangeNothing(t *testing.T) {
	t.Parallel()
	m := lab.Machine(t, lab.Derive(t, product(t, nspawn.Trixie), overlayRelease("1")), nspawn.Options{})
	m.Boot()
	beginOverlays(t, m)
	overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "beside"}, setFrom("beside", "/usr/lib/lab/changing", "two"), setFrom("beside", "/etc/lab/same", "two"))
	before, state := factsOf(t, m), overlayStateOf(t, m)
	for _, refused := range refusals {
		t.Run(refused.name, func(t *testing.T) {
			m := m.For(t)
			request := refused.request
			request.Operations = append([]overlay.Operation{setFrom("beside", "/usr/lib/lab/before", "one"), setFrom("beside", "/etc/lab/before", "one")}, request.Operations...)
			unit := leaveRequest(t, m, request)
			if result := m.Try("systemctl", "start", unit); result.Code == 0 {
				t.Error("it is carried out")
			}
			awaitEnd(m)
			if said := m.Run("systemctl", "show", "--value", "--property=StatusText", unit); !strings.Contains(said, refused.says) {
				t.Errorf("the unit says %q, want %q", said, refused.says)
			}
			m.Run("sh", "-c", "systemctl reset-failed 'liveapply*'")
			requireTidy(t, m)
			if diff := state.diff(overlayStateOf(t, m)); diff != "" {
				t.Errorf("something is changed:\n%.3000s", diff)
			}
			requireSameState(t, before, stateOf(t, m))
		})
	}
	requireSame(t, m, before)
}

// Without an index it is not known what there was: the machine works without overlays, and says why.
func TestDamagedIndexOfOverlays(t *testing.T) {
	t.Parallel()
	m, v2, v3 := overlaidMachine(t)
	before := factsOf(t, m)
	const index = "/var/lib/liveapply/overlays/overlays.json"
	overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "conf"}, set(m, "conf", "/etc/lab/default", "overlay\n"), set(m, "conf", "/usr/share/lab", "overlay\n"))
	whole := m.Read(index)
	m.Write(index, whole[:len(whole)/2])
	requireWorks := func() {
		t.Helper()
		apply(t, m, v2)
		requireLive(t, m, v2)
		requireUsrIs(t, m, v2)
		equal(t, "a default", m.Read("/etc/lab/default"), "2\n")
		m.Run("liveapplyctl", "status")
		dropIn(m, "liveapply-services@.service", "ExecStartPost=/bin/false")
		equal(t, "exit status", tryApply(m, v3).Code, 1)
		removeDropIns(m)
		requireLive(t, m, v2)
		reset(t, m)
		requireTree(t, "/usr", m.Snapshot("/usr"), before.usr)
		requireTree(t, "/etc", m.Snapshot("/etc"), before.etc)
		if result := tryOverlays(t, m, overlay.Request{Operations: []overlay.Operation{{Verb: overlay.Create, Name: "other"}}}); result.Code == 0 {
			t.Error("an overlay can be made")
		}
		awaitEnd(m)
		equal(t, "the index", m.Read(index), whole[:len(whole)/2])
	}
	requireWorks()

	m.Reboot()
	requireTree(t, "/usr", m.Snapshot("/usr"), before.usr)
	requireTree(t, "/etc", m.Snapshot("/etc"), before.etc)
	equal(t, "failed units", strings.Fields(m.Run("systemctl", "--failed", "--plain", "--no-legend") + " none")[0], "liveapply-overlays.service")
	if said := m.Journal("--unit=liveapply-overlays.service", "--output=cat"); !strings.Contains(said, index) || !strings.Contains(said, "restore the overlays") {
		t.Errorf("the journal says %q", said)
	}
	requireWorks()

	m.Write(index, whole)
	m.Run("systemctl", "start", "liveapply-overlays.service")
	equal(t, "a file of the overlay", m.Read("/usr/share/lab"), "overlay\n")
	equal(t, "a file of the overlay in /etc", m.Read("/etc/lab/default"), "overlay\n")
	overlays(t, m, overlay.Operation{Verb: overlay.Remove, Name: "conf"})
	requireTidy(t, m)
}
