//go:build nspawn

package nspawn_test

import (
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/test/nspawn"
)

// overlaidMachine runs release 1, and knows of 2 and 3.
func overlaidMachine(t *testing.T) (m *nspawn.Machine, v2, v3 string) {
	t.Helper()
	v1 := lab.Derive(t, product(t, nspawn.Trixie), labRelease("1"))
	m = lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	makeTransient(m)
	v2 = derived(t, m, v1, labRelease("2"))
	return m, v2, derived(t, m, v2, labRelease("3"))
}

// requireKept makes sure that the journal tells that a file stays as an administrator has it.
func requireKept(t *testing.T, m *nspawn.Machine, path string) {
	t.Helper()
	if said := m.Journal("--output=cat", "MESSAGE_ID=0ac42de1540f49d7b07bbc41134d306f", "LIVEAPPLY_PATH="+path); !strings.Contains(said, path) {
		t.Errorf("the journal says %q of %s", said, path)
	}
}

func TestEditOfAnOverlaysFileInEtcSurvives(t *testing.T) {
	t.Parallel()
	m, v2, _ := overlaidMachine(t)
	overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "conf"},
		set(m, "conf", "/etc/lab/default", "overlay\n"), set(m, "conf", "/etc/new.conf", "overlay\n"), set(m, "conf", "/etc/lab/edited", "overlay\n"),
		set(m, "conf", "/etc/taken", "overlay\n"))
	m.Write("/etc/lab/default", "mine\n")
	m.Write("/etc/new.conf", "mine\n")
	m.Run("chmod", "600", "/etc/lab/edited")
	m.Run("rm", "/etc/taken")
	mine := m.Snapshot("/etc")
	requireMine := func() {
		t.Helper()
		for _, path := range []string{"lab/default", "new.conf", "lab/edited"} {
			equal(t, "/etc/"+path, m.Snapshot("/etc/" + path)["."], mine[path])
		}
		equal(t, "there is /etc/taken", m.Exists("/etc/taken"), false)
		requireTidy(t, m)
	}
	overlays(t, m, overlay.Operation{Verb: overlay.Disable, Name: "conf"})
	requireMine()
	for _, path := range []string{"/etc/lab/default", "/etc/new.conf", "/etc/lab/edited"} {
		requireKept(t, m, path)
	}
	apply(t, m, v2)
	requireMine()
	reset(t, m)
	requireMine()
	overlays(t, m, overlay.Operation{Verb: overlay.Remove, Name: "conf"})
	requireMine()
	requireTree(t, "/etc", m.Snapshot("/etc"), mine)
}

// The default of the live commit lies beneath what an overlay has, whatever is applied meanwhile.
func TestDefaultsChangeBeneathOverlays(t *testing.T) {
	t.Parallel()
	m, v2, v3 := overlaidMachine(t)
	before := m.Snapshot("/etc")
	create := func() {
		t.Helper()
		overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "conf"}, set(m, "conf", "/etc/lab/default", "overlay\n"),
			set(m, "conf", "/etc/lab/only-in-2", "overlay\n"), overlay.Operation{Verb: overlay.Mask, Name: "conf", Path: "/etc/lab/edited"})
	}
	shown := func() {
		t.Helper()
		equal(t, "a replaced default", m.Read("/etc/lab/default"), "overlay\n")
		equal(t, "a file that release 2 adds", m.Read("/etc/lab/only-in-2"), "overlay\n")
		equal(t, "there is a masked default", m.Exists("/etc/lab/edited"), false)
		requireTidy(t, m)
	}
	release := func(number string) {
		t.Helper()
		equal(t, "the default", m.Read("/etc/lab/default"), number+"\n")
		equal(t, "the default that was masked", m.Read("/etc/lab/edited"), number+"\n")
		equal(t, "there is the file that release 2 adds", m.Exists("/etc/lab/only-in-2"), number != "1")
		if number != "1" {
			equal(t, "the file that release 2 adds", m.Read("/etc/lab/only-in-2"), "2\n")
		}
	}
	turn := func(verb overlay.Verb) {
		t.Helper()
		overlays(t, m, overlay.Operation{Verb: verb, Name: "conf"})
	}

	create()
	shown()
	apply(t, m, v2)
	shown()
	turn(overlay.Disable)
	release("2")
	turn(overlay.Enable)
	apply(t, m, v3)
	shown()
	turn(overlay.Disable)
	release("3")
	turn(overlay.Enable)
	reset(t, m)
	shown()
	turn(overlay.Remove)
	release("1")
	requireTree(t, "/etc", m.Snapshot("/etc"), before)

	// Made over a live commit.
	apply(t, m, v2)
	create()
	reset(t, m)
	shown()
	turn(overlay.Remove)
	requireTree(t, "/etc", m.Snapshot("/etc"), before)
}

func TestRollbackKeepsOverlays(t *testing.T) {
	t.Parallel()
	m, v2, v3 := overlaidMachine(t)
	etc := m.Snapshot("/etc")
	overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "conf"}, set(m, "conf", "/etc/lab/default", "overlay\n"),
		set(m, "conf", "/etc/lab/only-in-3", "overlay\n"), set(m, "conf", "/usr/share/lab", "overlay\n"))
	for _, start := range []struct{ live, target, number string }{{"", v2, "1"}, {v2, v3, "2"}} {
		if start.live != "" {
			apply(t, m, start.live)
		}
		before := factsOf(t, m)
		for _, phase := range []string{"mount", "etc", "services"} {
			dropIn(m, "liveapply-"+phase+"@.service", "ExecStartPost=/bin/false")
			equal(t, "exit status", tryApply(m, start.target).Code, 1)
			removeDropIns(m)
			m.Run("sh", "-c", "systemctl reset-failed 'liveapply*'")
			requireSame(t, m, before)
			requireTidy(t, m)
		}
		overlays(t, m, overlay.Operation{Verb: overlay.Disable, Name: "conf"})
		equal(t, "the default beneath", m.Read("/etc/lab/default"), start.number+"\n")
		equal(t, "the file beneath", m.Read("/usr/share/lab"), start.number+"\n")
		equal(t, "there is a file of release 3", m.Exists("/etc/lab/only-in-3"), false)
		overlays(t, m, overlay.Operation{Verb: overlay.Enable, Name: "conf"})
	}
	reset(t, m)
	overlays(t, m, overlay.Operation{Verb: overlay.Remove, Name: "conf"})
	requireTree(t, "/etc", m.Snapshot("/etc"), etc)
	requireTidy(t, m)
}
