//go:build nspawn

package nspawn_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
	"github.com/liveapply/liveapply/test/nspawn"
)

// phases are those of a transaction, in order.
var phases = []string{"prepare", "mount", "etc", "tmpfiles", "services", "record"}

func phaseUnit(phase, commit string) string { return "liveapply-" + phase + "@" + commit + ".service" }

// dropIn changes a unit until the next boot, or until removeDropIns. The name may be that of a template.
func dropIn(m *nspawn.Machine, unit, service string) {
	m.Run("mkdir", "-p", "/run/systemd/system/"+unit+".d")
	m.Write("/run/systemd/system/"+unit+".d/lab.conf", "[Service]\n"+service+"\n")
	m.Run("systemctl", "daemon-reload")
}

func removeDropIns(m *nspawn.Machine) {
	m.Run("sh", "-c", "rm -rf /run/systemd/system/liveapply*.d")
	m.Run("systemctl", "daemon-reload")
}

// awaitProperty waits until systemd shows a value of a unit.
func awaitProperty(m *nspawn.Machine, unit, property, value string) {
	m.Run("sh", "-c", fmt.Sprintf(`until [ "$(systemctl show --value --property=%s '%s')" = '%s' ]; do sleep 0.1; done`, property, unit, value))
}

// holdAfter starts to apply a commit, and returns when a phase has done its work and the next one has not begun.
func holdAfter(t *testing.T, m *nspawn.Machine, phase, commit string) {
	t.Helper()
	hold(m, phase)
	m.Run("systemctl", "start", "--no-block", applyUnit(commit))
	awaitHeld(m, phase, commit)
}

// untilGo is a command that ends when there is the file /run/go.
const untilGo = "/bin/sh -c 'until [ -e /run/go ]; do sleep 0.02; done'"

// hold has each transaction stay in a phase that has done its work, until there is the file /run/go.
func hold(m *nspawn.Machine, phase string) {
	m.Run("rm", "-f", "/run/go")
	dropIn(m, "liveapply-"+phase+"@.service", "ExecStartPost="+untilGo)
}

// holdBefore has each transaction wait before a phase, when the one before it has ended, until there is the file /run/go.
func holdBefore(m *nspawn.Machine, phase string) {
	m.Run("rm", "-f", "/run/go")
	m.Write("/run/systemd/system/lab-gate.service", "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nTimeoutStartSec=infinity\nExecStart="+untilGo+"\n")
	m.Run("mkdir", "-p", "/run/systemd/system/liveapply-"+phase+"@.service.d")
	m.Write("/run/systemd/system/liveapply-"+phase+"@.service.d/lab.conf", "[Unit]\nWants=lab-gate.service\nAfter=lab-gate.service\n")
	m.Run("systemctl", "daemon-reload")
}

// hasDone tells whether a phase of the transaction under way has done its work.
func hasDone(t *testing.T, m *nspawn.Machine, phase string) bool {
	t.Helper()
	content := m.Try("cat", "/run/liveapply/transaction.json")
	if content.Code != 0 {
		return false
	}
	var transaction struct {
		Phases []struct {
			Name    string
			Seconds float64
		}
	}
	unmarshal(t, content.Stdout, &transaction)
	last := len(transaction.Phases) - 1
	return last >= 0 && transaction.Phases[last].Name == phase && transaction.Phases[last].Seconds > 0
}

// awaitHeld waits until a transaction stays in a phase.
func awaitHeld(m *nspawn.Machine, phase, commit string) {
	awaitProperty(m, phaseUnit(phase, commit), "SubState", "start-post")
}

// holdReset has the next reset stop when it has taken /etc back and is about to switch /usr.
func holdReset(m *nspawn.Machine) {
	m.Run("rm", "-f", "/run/held.log")
	dropIn(m, "liveapply-reset.service", "Restart=no\nSystemCallFilter=\nExecStart=\nExecStart=/usr/bin/strace -f -o /run/held.log -e trace=umount2 -e inject=umount2:signal=SIGSTOP:when=1 "+
		helper+" reset")
}

// awaitHeldReset waits until it has stopped there.
func awaitHeldReset(m *nspawn.Machine) {
	m.Run("sh", "-c", "until grep -qs 'stopped by SIGSTOP' /run/held.log; do sleep 0.05; done")
}

// letResetGoOn has it go on, and later ones not stop.
func letResetGoOn(m *nspawn.Machine) {
	removeDropIns(m)
	m.Run("sh", "-c", "while [ $(systemctl show --value --property=ActiveState liveapply-reset.service) = activating ]; do systemctl kill --signal=SIGCONT liveapply-reset.service; sleep 0.05; done")
}

// failure is a way to make a phase fail, by a drop-in for its unit.
type failure struct {
	name   string
	dropIn func(phase string) string
}

var failures = []failure{
	{"before its work", func(string) string { return "ExecStartPre=/bin/false" }},
	{"after its work", func(string) string { return "ExecStartPost=/bin/false" }},
	// Killed in the midst of its work: at the first of a system call of which it makes several.
	{"by SIGKILL", func(phase string) string {
		call := map[string]string{"prepare": "linkat", "mount": "move_mount", "etc": "linkat", "tmpfiles": "linkat", "services": "connect",
			"record": "open_tree"}[phase]
		return "SystemCallFilter=\nExecStart=\nExecStart=/usr/bin/strace -f -o /dev/null -e inject=" + call + ":signal=SIGKILL " + helper + " " + phase + " %I"
	}},
}

const helper = "/usr/libexec/liveapply/liveapply-helper"

func TestPhaseThatFailsIsRolledBack(t *testing.T) {
	t.Parallel()
	m, v1 := releaseMachine(t, nspawn.Trixie)
	v2 := derived(t, m, v1, labRelease("2"))
	v3 := derived(t, m, v2, labRelease("3"))

	for _, start := range []struct {
		name         string
		live, target string
	}{
		{"from the booted tree", v1, v2},
		{"from another live tree", v2, v3},
	} {
		t.Run(start.name, func(t *testing.T) {
			m := m.For(t)
			if start.live != v1 {
				apply(t, m, start.live)
			}
			before := factsOf(t, m)
			for _, phase := range phases {
				for _, failure := range failures {
					if phase == "record" && failure.name == "after its work" {
						continue // then all is done
					}
					t.Run(phase+" fails "+failure.name, func(t *testing.T) {
						m := m.For(t)
						transactions := len(history(t, m))
						dropIn(m, "liveapply-"+phase+"@.service", failure.dropIn(phase))
						if result := tryApply(m, start.target); result.Code != 1 {
							t.Errorf("exit status %d, want 1", result.Code)
						}
						removeDropIns(m)
						requireSame(t, m, before)
						if phase == "prepare" && failure.name == "before its work" {
							return // no transaction has begun
						}
						equal(t, "transactions in the history", len(history(t, m)), transactions+1)
						requireRolledBack(t, m, start.live, start.target)
					})
				}
			}
			apply(t, m, start.target)
			requireLive(t, m, start.target)
			requireUsrIs(t, m, start.target)
		})
	}
}

// requireRolledBack looks at what is said about the last transaction.
func requireRolledBack(t *testing.T, m *nspawn.Machine, live, target string) {
	t.Helper()
	s := status(t, m)
	equal(t, "live commit", s.Live, live)
	equal(t, "target", s.Target, "")
	equal(t, "phase", s.Phase, "")
	last := lastTransaction(t, m)
	equal(t, "target in the history", last.Target, target)
	equal(t, "result", last.Result, "rolled-back")
	if !strings.Contains(last.Reason, "phase") {
		t.Errorf("the history gives as reason %q", last.Reason)
	}
	message := m.Journal("--output=cat", "MESSAGE_ID=29780ceba76945ba8def4d2d136f7774", "LIVEAPPLY_TRANSACTION="+last.ID)
	if !strings.Contains(message, target) || !strings.Contains(message, last.Reason) {
		t.Errorf("the journal says %q, want the commit and %q", message, last.Reason)
	}
	requireSays(t, "liveapplyctl status", m.Run("liveapplyctl", "status"), []string{"Last failure:", last.Reason})
}

// When record has set its mark, the target is live: what is left to do is then done by the rollback.
func TestRecordThatIsKilledAfterItsMarkIsBroughtToItsEnd(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, labRelease("2"))
	before := factsOf(t, m)
	// The first and the last file that is removed after the mark.
	for _, path := range []string{"/run/liveapply/plan.json", "/run/liveapply/transaction.json"} {
		t.Run(path, func(t *testing.T) {
			m := m.For(t)
			transactions := len(history(t, m))
			dropIn(m, "liveapply-record@.service", "SystemCallFilter=\nExecStart=\nExecStart=/usr/bin/strace -f -o /dev/null -P "+path+
				" -e inject=unlinkat:signal=SIGKILL "+helper+" record %I")
			equal(t, "exit status", tryApply(m, v2).Code, 0)
			equal(t, "result of record", m.Run("systemctl", "show", "--value", "--property=Result", phaseUnit("record", v2)), "signal")
			removeDropIns(m)
			requireLive(t, m, v2)
			equal(t, "commit under way", status(t, m).Target, "")
			equal(t, "result", lastTransaction(t, m).Result, "applied")
			equal(t, "transactions in the history", len(history(t, m)), transactions+1)
			reset(t, m)
			m.Run("systemctl", "reset-failed", "liveapply*")
			requireSame(t, m, before)
		})
	}
}

func TestStopInTheMiddleIsRolledBack(t *testing.T) {
	t.Parallel()
	m, v1 := releaseMachine(t, nspawn.Trixie)
	v2 := derived(t, m, v1, labRelease("2"))
	before := factsOf(t, m)
	for _, phase := range phases[:len(phases)-1] {
		t.Run("after "+phase, func(t *testing.T) {
			m := m.For(t)
			holdAfter(t, m, phase, v2)
			m.Run("systemctl", "stop", applyUnit(v2))
			awaitEnd(m)
			removeDropIns(m)
			forgetOutcomes(m)
			requireSame(t, m, before)
			requireRolledBack(t, m, v1, v2)
		})
	}
	// Then no unit fails: what is left is only a transaction that nobody works on any more.
	for i, phase := range phases[:len(phases)-1] {
		t.Run("between "+phase+" and "+phases[i+1], func(t *testing.T) {
			m := m.For(t)
			holdBefore(m, phases[i+1])
			m.Run("systemctl", "start", "--no-block", applyUnit(v2))
			waitFor(t, "the end of "+phase, func() bool { return hasDone(t, m, phase) })
			awaitProperty(m, phaseUnit(phase, v2), "SubState", "exited")
			m.Run("systemctl", "stop", applyUnit(v2))
			waitFor(t, "the rollback", func() bool { return !m.Exists("/run/liveapply/transaction.json") })
			m.Write("/run/go", "")
			m.Run("systemctl", "stop", "lab-gate.service")
			awaitEnd(m)
			removeDropIns(m)
			forgetOutcomes(m)
			requireSame(t, m, before)
			requireRolledBack(t, m, v1, v2)
		})
	}
	t.Run("while it waits for its turn", func(t *testing.T) {
		m := m.For(t)
		v3 := derived(t, m, v2, labRelease("3"))
		holdAfter(t, m, "etc", v2)
		m.Run("systemctl", "start", "--no-block", applyUnit(v3))
		awaitProperty(m, phaseUnit("prepare", v3), "StatusText", "waiting for the transaction of "+v2+" to end")
		m.Run("systemctl", "stop", applyUnit(v3))
		m.Write("/run/go", "")
		awaitEnd(m)
		removeDropIns(m)
		requireLive(t, m, v2)
		reset(t, m)
		forgetOutcomes(m)
		requireSame(t, m, before)
	})
}

// forgetOutcomes removes how transactions ended whose unit was stopped, so that it could tell nobody.
func forgetOutcomes(m *nspawn.Machine) { m.Run("sh", "-c", "rm -f /run/liveapply/outcome/*") }

// awaitEnd waits until no transaction is under way.
func awaitEnd(m *nspawn.Machine) {
	m.Run("sh", "-c", `until [ ! -e /run/liveapply/transaction.json ] && [ -z "$(systemctl list-jobs --no-legend 'liveapply*')" ]; do sleep 0.1; done`)
}

func TestApplicationThatWaitsIsNotHarmedByTheOneBefore(t *testing.T) {
	t.Parallel()
	m, v1 := releaseMachine(t, nspawn.Trixie)
	v2 := derived(t, m, v1, labRelease("2"))
	v3 := derived(t, m, v2, labRelease("3"))
	before := factsOf(t, m)
	requireApplied := func(t *testing.T, m *nspawn.Machine, waiting *nspawn.Process) {
		t.Helper()
		if output, err := waiting.Wait(); err != nil {
			t.Errorf("%v: %s\n%s", err, output, m.Journal("--unit=liveapply*", "--output=short-monotonic"))
		}
		requireLive(t, m, v3)
		requireUsrIs(t, m, v3)
		equal(t, "etc-revert", m.Try("systemctl", "is-active", "liveapply-etc-revert.service").Stdout, "active")
		reset(t, m)
		requireSame(t, m, before)
	}

	t.Run("which fails", func(t *testing.T) {
		m := m.For(t)
		holdAfter(t, m, "etc", v2)
		waiting := m.Start("systemctl", "start", applyUnit(v3))
		awaitProperty(m, phaseUnit("prepare", v3), "StatusText", "waiting for the transaction of "+v2+" to end")
		removeDropIns(m)
		m.Run("systemctl", "kill", "--kill-whom=control", "--signal=SIGKILL", phaseUnit("etc", v2))
		requireApplied(t, m, waiting)
	})
	t.Run("which is a reset", func(t *testing.T) {
		m := m.For(t)
		apply(t, m, v2)
		holdReset(m)
		m.Run("systemctl", "start", "--no-block", "liveapply-reset.service")
		awaitHeldReset(m)
		waiting := m.Start("systemctl", "start", applyUnit(v3))
		m.Run("timeout", "60", "sh", "-c", "until systemctl list-jobs --no-legend | grep -q liveapply-prepare@"+v3+"; do sleep 0.1; done")
		letResetGoOn(m)
		requireApplied(t, m, waiting)
	})
}

func TestStagedDeploymentOfSomebodyElseStaysTheirs(t *testing.T) {
	t.Parallel()
	m, v1 := releaseMachine(t, nspawn.Trixie)
	v2 := derived(t, m, v1, labRelease("2"))
	v3 := derived(t, m, v2, labRelease("3"))
	v4 := derived(t, m, v3, labRelease("4"))
	m.Run("ostree", "admin", "pin", "0")
	m.Stage(v2)
	before := factsOf(t, m)
	staged := func(m *nspawn.Machine) string {
		return m.Run("sh", "-c", "ostree admin status | sed -n 's/^ *debian \\([0-9a-f]*\\).* (staged)$/\\1/p'")
	}
	stagedWhen := func(m *nspawn.Machine) string {
		return m.Run("stat", "--format=%i %y", "/run/ostree/staged-deployment")
	}

	t.Run("when it is applied", func(t *testing.T) {
		m := m.For(t)
		when := stagedWhen(m)
		apply(t, m, v2)
		equal(t, "staged deployment while live", staged(m), v2)
		reset(t, m)
		requireSame(t, m, before)
		equal(t, "when it was staged", stagedWhen(m), when)
	})
	t.Run("when another commit is applied", func(t *testing.T) {
		m := m.For(t)
		apply(t, m, v3)
		equal(t, "staged deployment while live", staged(m), v3)
		equal(t, "pinned deployments while live", strings.Count(m.Run("ostree", "admin", "status"), "Pinned: yes"), 1)
		reset(t, m)
		requireSame(t, m, before)
	})
	t.Run("when two others are applied", func(t *testing.T) {
		m := m.For(t)
		apply(t, m, v3)
		apply(t, m, v4)
		equal(t, "staged deployment while live", staged(m), v4)
		reset(t, m)
		requireSame(t, m, before)
	})
	t.Run("when another commit fails to be applied", func(t *testing.T) {
		m := m.For(t)
		dropIn(m, "liveapply-tmpfiles@.service", "ExecStartPre=/bin/false")
		equal(t, "exit status", tryApply(m, v3).Code, 1)
		removeDropIns(m)
		requireSame(t, m, before)
	})
	t.Run("when it was staged after another commit was applied", func(t *testing.T) {
		m := m.For(t)
		apply(t, m, v3)
		m.Stage(v4)
		reset(t, m)
		equal(t, "staged deployment", staged(m), v4)
	})
	t.Run("when it is locked, and has kernel arguments of its own", func(t *testing.T) {
		m := m.For(t)
		m.Run("ostree", "admin", "deploy", "--stage", "--lock-finalization", "--os=debian", "--karg=lab=theirs", v2)
		before, file := factsOf(t, m), m.Read("/run/ostree/staged-deployment")
		apply(t, m, v3)
		reset(t, m)
		requireSame(t, m, before)
		equal(t, "what libostree notes of it", m.Read("/run/ostree/staged-deployment"), file)
	})
	t.Run("unless its commit is gone when it is to come back", func(t *testing.T) {
		m := m.For(t)
		m.Stage(v4)
		apply(t, m, v3)
		ostreetest.Run(t, "ostree", "--repo="+m.Repo(), "refs", "--delete", "test/"+v4[:12])
		ostreetest.Run(t, "ostree", "--repo="+m.Repo(), "prune", "--refs-only")
		m.Run("liveapplyctl", "reset")
		equal(t, "deployments", strings.Count(m.Run("ostree", "admin", "status"), "debian "), 1)
		// Of a process that ends at once, journald may not know the unit.
		requireSays(t, "the journal", m.Journal("--output=cat"), []string{"commit " + v4 + ", which was staged before, is no longer in the repo: pull it"})
	})
}

func TestRefIsAppliedByItsName(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := lab.Derive(t, v1, labRelease("2"))
	ref := m.Pull(v2)
	before := factsOf(t, m)

	m.Run("systemctl", "start", m.Run("systemd-escape", "--template=liveapply@.service", ref))
	requireLive(t, m, v2)
	reset(t, m)
	requireSame(t, m, before)

	m.Run("liveapplyctl", "apply", ref)
	requireLive(t, m, v2)
	equal(t, "exit status when it is live already", m.Try("liveapplyctl", "apply", ref).Code, 77)
	m.Run("liveapplyctl", "reset")
	requireSame(t, m, before)
	equal(t, "exit status when there is nothing to reset", m.Try("liveapplyctl", "reset").Code, 77)
}

func TestWhatSomebodyStagesOfTheSameCommitIsTheirs(t *testing.T) {
	t.Parallel()
	m, v1 := releaseMachine(t, nspawn.Trixie)
	m.Run("mkdir", "-p", "/etc/liveapply")
	m.Write("/etc/liveapply/liveapply.conf", "[Auto]\nApply=no\n")
	v2 := derived(t, m, v1, labRelease("2"))
	apply(t, m, v2)
	m.Run("ostree", "admin", "deploy", "--stage", "--os=debian", "--karg-append=lab=theirs", v2)
	theirs := m.Read("/run/ostree/staged-deployment")
	reset(t, m)
	equal(t, "what is staged after the reset", m.Read("/run/ostree/staged-deployment"), theirs)
}

// The limit is reached while it waits, and counts for what comes after that.
func TestWaitingDoesNotUseUpTheTimeToWork(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, labRelease("2"))
	v3 := derived(t, m, v2, labRelease("3"))
	m.Run("rm", "-f", "/run/go")
	dropIn(m, "liveapply-etc@.service", "ExecStartPost="+untilGo+"\nTimeoutStartSec=infinity")
	dropIn(m, "liveapply-prepare@.service", "TimeoutStartSec=25")
	m.Run("systemctl", "start", "--no-block", applyUnit(v2))
	awaitHeld(m, "etc", v2)
	waiting := m.Start("systemctl", "start", applyUnit(v3))
	awaitProperty(m, phaseUnit("prepare", v3), "StatusText", "waiting for the transaction of "+v2+" to end")
	// Longer than the limit, by the clock that systemd goes by.
	m.Run("sh", "-c", "limit=$(($(cut -d. -f1 /proc/uptime) + 27)); until [ $(cut -d. -f1 /proc/uptime) -gt $limit ]; do sleep 0.2; done")
	equal(t, "what waits", m.Try("systemctl", "is-active", phaseUnit("prepare", v3)).Stdout, "activating")
	m.Write("/run/go", "")
	if output, err := waiting.Wait(); err != nil {
		t.Errorf("%v: %s", err, output)
	}
	requireLive(t, m, v3)
}
