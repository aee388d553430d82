//go:build nspawn

package nspawn_test

import (
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/test/nspawn"
)

// trialUnit is a service that does nothing but run: what it sees is looked at from its mount namespace.
const trialUnit = "trial.service"

func withTrial(tree *nspawn.Tree) {
	injectionBase(tree)
	tree.Write("usr/lib/systemd/system/"+trialUnit, "[Service]\nType=exec\nExecStartPre=sh -c '! grep bad /usr/lib/lab/changed'\nExecStart=sleep infinity\n", 0o644)
}

// seenBy returns what a file holds for the main process of a unit; "" if there is none.
func seenBy(m *nspawn.Machine, unit, path string) string {
	pid := m.Run("systemctl", "show", "--value", "--property=MainPID", unit)
	return m.Try("nsenter", "--mount", "--target="+pid, "cat", path).Stdout
}

func TestOverlayOfAUnitIsSeenByThatUnitAlone(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		booted := lab.Derive(t, product(t, suite), withTrial)
		m := lab.Machine(t, booted, nspawn.Options{})
		m.Boot()
		makeTransient(m)
		m.Run("systemctl", "start", trialUnit)
		before := factsOf(t, m)
		const changed, removed = "/usr/lib/lab/changed", "/usr/lib/lab/removed"
		sees := func(content, other string) {
			t.Helper()
			equal(t, "a replaced file, for the unit", seenBy(m, trialUnit, changed), content)
			equal(t, "a masked file, for the unit", seenBy(m, trialUnit, removed), other)
			requireTidy(t, m)
		}
		others := func(content, other string) {
			t.Helper()
			equal(t, "the file, for others", m.Run("cat", changed), content)
			equal(t, "the masked file, for others", m.Try("cat", removed).Stdout, other)
		}

		overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "trial", Scope: "unit:" + trialUnit},
			set(m, "trial", changed, "trial\n"), overlay.Operation{Verb: overlay.Mask, Name: "trial", Path: removed})
		sees("trial", "")
		others("1", "1")
		requireTree(t, "/usr", m.Snapshot("/usr"), before.usr)

		overlays(t, m, set(m, "trial", changed, "second\n"))
		sees("second", "")
		others("1", "1")

		// The service does not come up with it: then it goes on with what it had.
		if tryOverlays(t, m, overlay.Request{Operations: []overlay.Operation{set(m, "trial", changed, "bad\n")}}).Code == 0 {
			t.Error("content is taken that the service does not come up with")
		}
		awaitEnd(m)
		sees("second", "")

		v2 := derived(t, m, booted, injectionTarget)
		apply(t, m, v2)
		others("2", "")
		m.Run("systemctl", "restart", trialUnit)
		sees("second", "")
		equal(t, "a new file of the commit, for the unit", seenBy(m, trialUnit, "/usr/lib/lab/added/deep/file"), "2")
		reset(t, m)
		m.Run("systemctl", "restart", trialUnit)
		sees("second", "")

		overlays(t, m, overlay.Operation{Verb: overlay.Disable, Name: "trial"})
		sees("1", "1")
		overlays(t, m, overlay.Operation{Verb: overlay.Enable, Name: "trial"})
		sees("second", "")
		m.Reboot()
		m.Run("systemctl", "start", trialUnit)
		sees("second", "")
		others("1", "1")
		overlays(t, m, overlay.Operation{Verb: overlay.Remove, Name: "trial"})
		sees("1", "1")
	})
}

func TestOverlayOfAUserIsSeenByWhatThatUserRunsAlone(t *testing.T) {
	t.Parallel()
	m, _ := productMachine(t, nspawn.Trixie, nspawn.Options{})
	for _, uid := range []string{"1000", "1001"} {
		m.Run("useradd", "--uid="+uid, "--create-home", "user"+uid)
	}
	m.Run("mkdir", "--parents", "/etc/systemd/user/default.target.wants")
	m.Write("/etc/systemd/user/probe.service", "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'cat /usr/lib/os-release >%t/new; mv %t/new %t/probe'\n")
	m.Run("ln", "-s", "../probe.service", "/etc/systemd/user/default.target.wants/")
	host := m.Run("cat", "/usr/lib/os-release")

	overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "mine", Scope: "user:1000"}, set(m, "mine", "/usr/lib/os-release", "ID=mine\n"))
	requireSeen := func(content string) {
		t.Helper()
		for uid, want := range map[string]string{"1000": content, "1001": host} {
			probe := "/run/user/" + uid + "/probe"
			m.Run("systemctl", "restart", "user@"+uid+".service")
			waitFor(t, probe, func() bool { return m.Exists(probe) })
			equal(t, "what a unit of user "+uid+" sees", m.Run("cat", probe), want)
			m.Run("systemctl", "stop", "user@"+uid+".service")
			m.Run("rm", "-f", probe)
		}
		equal(t, "what the system sees", m.Run("cat", "/usr/lib/os-release"), host)
	}
	requireSeen("ID=mine")
	overlays(t, m, overlay.Operation{Verb: overlay.Remove, Name: "mine"})
	requireSeen(host)
	requireTidy(t, m)
}

func TestGlobalOverlayIsSeenInAnotherStateroot(t *testing.T) {
	t.Parallel()
	m, booted := productMachine(t, nspawn.Trixie, nspawn.Options{})
	overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "here"}, set(m, "here", "/usr/share/here", "here\n"))
	overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "everywhere", Scope: overlay.Global},
		set(m, "everywhere", "/usr/share/everywhere", "everywhere\n"), set(m, "everywhere", "/etc/everywhere", "everywhere\n"))

	m.Run("ostree", "admin", "os-init", "other")
	m.Run("ostree", "admin", "deploy", "--os=other", "--karg=rw", booted)
	m.Reboot()
	equal(t, "the stateroot", strings.Contains(m.Run("cat", "/proc/cmdline"), "/other/"), true)
	equal(t, "a file of the overlay of all", m.Run("cat", "/usr/share/everywhere"), "everywhere")
	equal(t, "a file of the overlay of all in /etc", m.Run("cat", "/etc/everywhere"), "everywhere")
	equal(t, "there is one of the other stateroot", m.Exists("/usr/share/here"), false)

	overlays(t, m, overlay.Operation{Verb: overlay.Remove, Name: "everywhere"})
	for _, gone := range []string{"/usr/share/everywhere", "/etc/everywhere"} {
		equal(t, "there is "+gone, m.Exists(gone), false)
	}
	requireTidy(t, m)
	requireNothingShown(t, m)
}

// requireNothingShown makes sure that /usr is the booted one.
func requireNothingShown(t *testing.T, m *nspawn.Machine) {
	t.Helper()
	for _, mount := range m.MountsAt("/usr") {
		if strings.HasPrefix(mount.Source, "liveapply:") {
			t.Errorf("%s is mounted on /usr", mount.Source)
		}
	}
}

func TestRuntimeOverlayIsGoneAfterAReboot(t *testing.T) {
	t.Parallel()
	m, _ := productMachine(t, nspawn.Trixie, nspawn.Options{})
	before := factsOf(t, m)
	overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "now", Runtime: true},
		set(m, "now", "/usr/share/now", "now\n"), set(m, "now", "/etc/now", "now\n"), set(m, "now", "/run/now", "now\n"))
	for _, path := range []string{"/usr/share/now", "/etc/now", "/run/now"} {
		equal(t, path, m.Run("cat", path), "now")
	}
	m.Reboot()
	requireSameAfterBoot(t, m, before)
	equal(t, "there is /run/now", m.Exists("/run/now"), false)

	overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "now", Runtime: true}, set(m, "now", "/etc/now", "now\n"))
	m.PowerCut()
	m.Boot()
	requireSameAfterBoot(t, m, before)
}

// What an overlay brings is there before the services of the boot are: a unit of its own runs, and another one's file is overlay.
func TestOverlaysAreShownFromEarlyBootOn(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		booted := lab.Derive(t, product(t, suite), func(tree *nspawn.Tree) {
			labRelease("1")(tree)
			for unit, target := range map[string]string{"early": "sysinit", "late": "multi-user"} {
				tree.Write("usr/lib/systemd/system/"+unit+".service", earlyUnit("commit", target), 0o644)
				tree.Symlink("../"+unit+".service", "usr/lib/systemd/system/"+target+".target.wants/"+unit+".service")
			}
		})
		m := lab.Machine(t, booted, nspawn.Options{})
		m.Boot()
		operations := []overlay.Operation{{Verb: overlay.Create, Name: "boot"},
			set(m, "boot", "/usr/share/seen", "overlay\n"), set(m, "boot", "/etc/boot.conf", "overlay\n"), set(m, "boot", "/etc/lab/default", "overlay\n"),
			set(m, "boot", "/run/boot", "overlay\n"),
		}
		for unit, target := range map[string]string{"early": "sysinit", "late": "multi-user", "new-early": "sysinit", "new-late": "multi-user"} {
			operations = append(operations, set(m, "boot", "/usr/lib/systemd/system/"+unit+".service", earlyUnit("overlay", target)),
				set(m, "boot", "/usr/lib/systemd/system/"+target+".target.d/"+unit+".conf", "[Unit]\nWants="+unit+".service\n"))
		}
		overlays(t, m, operations...)
		shown := func() {
			t.Helper()
			for _, unit := range []string{"early", "late", "new-early", "new-late"} {
				equal(t, "what "+unit+".service saw", m.Try("cat", "/run/seen-by-"+unit).Stdout, "overlay\noverlay\noverlay\noverlay")
			}
			equal(t, "system state", m.Try("systemctl", "is-system-running").Stdout, "running")
		}
		m.Reboot()
		shown()

		// Its files in /etc are not what libostree merges into the next deployment.
		v2 := derived(t, m, booted, labRelease("2"))
		overlays(t, m, overlay.Operation{Verb: overlay.Disable, Name: "boot"})
		m.Write("/etc/lab/own", "mine\n")
		want := etcOfDeployment(t, m, v2)
		overlays(t, m, overlay.Operation{Verb: overlay.Enable, Name: "boot"})
		m.Stage(v2)
		m.Reboot()
		equal(t, "booted commit", m.BootedCommit(), v2)
		shown()
		equal(t, "a file in /etc", m.Run("cat", "/etc/lab/default"), "overlay")
		overlays(t, m, overlay.Operation{Verb: overlay.Disable, Name: "boot"})
		requireTree(t, "/etc", withoutAccounts(m.Snapshot("/etc")), withoutAccounts(want))
	})
}

// earlyUnit tells on behalf of whom it runs, and what it sees.
func earlyUnit(whose, target string) string {
	return "[Unit]\nDefaultDependencies=no\nAfter=liveapply-overlays.service\nBefore=" + target + ".target\n[Service]\nType=oneshot\nRemainAfterExit=yes\n" +
		"ExecStart=/bin/sh -c 'echo \"" + whose + "\" >/run/seen-by-%N; cat /usr/share/seen /etc/boot.conf /run/boot >>/run/seen-by-%N'\n"
}
