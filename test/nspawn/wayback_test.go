//go:build nspawn

package nspawn_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// withoutLiveapply takes all of it out of a tree.
func withoutLiveapply(t *testing.T, tree *nspawn.Tree) {
	t.Helper()
	for _, path := range strings.Fields(`usr/libexec/liveapply usr/bin/liveapplyctl usr/lib/systemd/system-generators/liveapply-generator
		usr/lib/systemd/system/ostree-finalize-staged.service.d usr/lib/tmpfiles.d/liveapply.conf`) {
		tree.Remove(path)
	}
	units, err := filepath.Glob(tree.Path("usr/lib/systemd/system/liveapply*"))
	if err != nil || len(units) == 0 {
		t.Fatalf("there are %d units (%v)", len(units), err)
	}
	for _, unit := range units {
		tree.Remove("usr/lib/systemd/system/" + filepath.Base(unit))
	}
}

// A tree without liveapply has no way on and none back: it is refused, and with --force the machine keeps its own.
func TestTargetWithoutLiveapply(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := releaseMachine(t, suite)
		makeTransient(m)
		bare := derived(t, m, v1, func(tree *nspawn.Tree) { labRelease("2")(tree); withoutLiveapply(t, tree) })
		v3 := derived(t, m, v1, labRelease("3"))
		before := factsOf(t, m)
		const ctl = "/run/liveapply/own/liveapplyctl"

		result := m.Try("liveapplyctl", "apply", bare)
		equal(t, "exit status", result.Code, exitRefused)
		requireSays(t, "liveapplyctl apply", result.Stderr, []string{"has no liveapply", "--force", "reboot into it"})
		requireSame(t, m, before)

		for _, path := range []string{"usr/bin/liveapplyctl", "usr/lib/systemd/system/ostree-finalize-staged.service.d/50-liveapply.conf"} {
			lacking := derived(t, m, v1, func(tree *nspawn.Tree) { labRelease("2")(tree); tree.Remove(path) })
			requireSays(t, "liveapplyctl apply", m.Try("liveapplyctl", "apply", lacking).Stderr, []string{"lacks /" + path, "--force"})
		}
		requireSame(t, m, before)

		m.Run("liveapplyctl", "apply", "--force", bare)
		requireUsrIs(t, m, bare)
		equal(t, "a default in /etc", m.Read("/etc/lab/default"), "2\n")
		m.Run(ctl, "status")
		m.Run("systemctl", "start", "liveapply-reset.service")
		requireSame(t, m, before)

		// A phase fails after the switch.
		dropIn(m, "liveapply-tmpfiles@.service", "ExecStartPost=/bin/false")
		equal(t, "exit status", m.Try("liveapplyctl", "apply", "--force", bare).Code, exitRolledBack)
		removeDropIns(m)
		m.Run("systemctl", "reset-failed", "liveapply*")
		requireSame(t, m, before)

		// From there to a tree that has its own again, and back.
		m.Run("liveapplyctl", "apply", "--force", bare)
		m.Run("rm", "/run/ostree/deployment-state/"+v1+".0/liveapply.json") // its loss is noticed
		waitFor(t, "the stamp", func() bool { return m.Exists("/run/ostree/deployment-state/" + v1 + ".0/liveapply.json") })
		awaitEnd(m)
		m.Run(ctl, "apply", v3)
		requireUsrIs(t, m, v3)
		equal(t, "the machine's own", m.Exists("/run/liveapply/own"), false)
		equal(t, "units in /run", m.Try("sh", "-c", "ls /run/systemd/system | grep liveapply").Stdout, "")
		reset(t, m)
		requireSame(t, m, before)

		// From one to another whose helper cannot go on: what is kept is what runs, and not what is in /usr then.
		broken := func(release string) string {
			return derived(t, m, v1, func(tree *nspawn.Tree) {
				labRelease(release)(tree)
				tree.Write("usr/libexec/liveapply/liveapply-helper", "#!/bin/sh\nexit 1\n", 0o755)
			})
		}
		m.Run("liveapplyctl", "apply", "--force", broken("4"))
		another := broken("5")
		m.Run(ctl, "apply", "--force", another)
		requireUsrIs(t, m, another)
		m.Run("systemctl", "start", "liveapply-reset.service")
		requireSame(t, m, before)

		// At the shutdown, and after a power cut.
		m.Run("liveapplyctl", "apply", "--force", bare)
		m.Reboot()
		requireSameAfterBoot(t, m, before)
		m.Run("liveapplyctl", "apply", "--force", bare)
		m.PowerCut()
		m.Boot()
		requireSameAfterBoot(t, m, before)
		requireNothingLeft(t, m)
	})
}

// earlier is the release before the one that first named the formats that its helpers hand over.
const earlier = "0548dc45965f01af5b7c4e1656785f4a94fba5e2"

// One build begins a transaction and another one goes on with it: what they hand over is in docs/state.md.
func TestTwoBuildsInOneTransaction(t *testing.T) {
	t.Parallel()
	base := lab.Base(t, nspawn.Trixie, nspawn.Minimal)
	old := lab.Derive(t, lab.WithEarlierProduct(t, base, earlier), labRelease("1"))
	current := lab.Derive(t, lab.WithProduct(t, base), labRelease("1"))
	force := func(m *nspawn.Machine) {
		m.Run("mkdir", "-p", "/etc/liveapply")
		m.Write("/etc/liveapply/liveapply.conf", "[Apply]\nTransient=yes\nAllow=force\n[Auto]\nApply=no\n")
	}
	for _, test := range []struct {
		name, booted, target, ctl string
	}{
		{"from the one before to this one", old, lab.Derive(t, current, labRelease("2")), "liveapplyctl"},
		{"from this one to the one before", current, lab.Derive(t, old, labRelease("2")), "/run/liveapply/own/liveapplyctl"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := lab.Machine(t, test.booted, nspawn.Options{})
			m.Boot()
			force(m)
			m.Pull(test.target)
			before := factsOf(t, m)
			requireWholeAndBack := func() {
				t.Helper()
				requireLive(t, m, test.target)
				requireUsrIs(t, m, test.target)
				equal(t, "a default in /etc", m.Read("/etc/lab/default"), "2\n")
			}

			apply(t, m, test.target)
			requireWholeAndBack()
			m.Run(test.ctl, "reset")
			requireSame(t, m, before)

			for _, phase := range []string{"etc", "services"} {
				dropIn(m, "liveapply-"+phase+"@.service", "ExecStartPost=/bin/false")
				if tryApply(m, test.target).Code == 0 {
					t.Error("a phase failed, and the unit succeeded")
				}
				removeDropIns(m)
				m.Run("systemctl", "reset-failed", "liveapply*")
				requireSame(t, m, before)
			}

			apply(t, m, test.target)
			m.Reboot()
			requireSameAfterBoot(t, m, before)
			requireNothingLeft(t, m)
			apply(t, m, test.target)
			m.PowerCut()
			m.Boot()
			requireSameAfterBoot(t, m, before)
			hold(m, "etc")
			m.Run("systemctl", "start", "--no-block", applyUnit(test.target))
			awaitHeld(m, "etc", test.target)
			m.PowerCut()
			m.Boot()
			requireSameAfterBoot(t, m, before)
			requireNothingLeft(t, m)
		})
	}
	t.Run("the one before is refused without force", func(t *testing.T) {
		m := lab.Machine(t, current, nspawn.Options{})
		m.Boot()
		target := lab.Derive(t, old, labRelease("3"))
		m.Pull(target)
		result := m.Try("liveapplyctl", "apply", target)
		equal(t, "exit status", result.Code, exitRefused)
		requireSays(t, "liveapplyctl apply", result.Stderr, []string{"lacks the unit liveapply-", "--force"})
	})
}
