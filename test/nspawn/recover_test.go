//go:build nspawn

package nspawn_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// interrupt starts to apply a commit, which fails when /etc is merged, and whose rollback does not run.
func interrupt(t *testing.T, m *nspawn.Machine, commit string) {
	t.Helper()
	dropIn(m, "liveapply-etc@.service", "ExecStartPost=/bin/false")
	dropIn(m, "liveapply-rollback@.service", "ExecStart=\nExecStart=/bin/false")
	equal(t, "exit status", tryApply(m, commit).Code, 1)
	removeDropIns(m)
	m.Run("systemctl", "reset-failed", "liveapply*")
	equal(t, "commit that is left under way", status(t, m).Target, commit)
}

func TestInterruptedTransactionIsTakenBackByWhatComesNext(t *testing.T) {
	t.Parallel()
	m, v1 := releaseMachine(t, nspawn.Trixie)
	makeTransient(m)
	v2 := derived(t, m, v1, labRelease("2"))
	v3 := derived(t, m, v2, labRelease("3"))
	before := factsOf(t, m)
	requireRolledBackFirst := func(t *testing.T, m *nspawn.Machine) {
		t.Helper()
		all := history(t, m)
		equal(t, "the transaction before the last", all[len(all)-2].Result, "rolled-back")
	}

	for _, next := range []struct{ name, commit string }{{"the same commit", v2}, {"another commit", v3}} {
		t.Run(next.name, func(t *testing.T) {
			m := m.For(t)
			interrupt(t, m, v2)
			apply(t, m, next.commit)
			requireRolledBackFirst(t, m)
			requireLive(t, m, next.commit)
			requireUsrIs(t, m, next.commit)
			reset(t, m)
			requireSame(t, m, before)
		})
	}
	t.Run("a reset", func(t *testing.T) {
		m := m.For(t)
		interrupt(t, m, v2)
		reset(t, m)
		requireRolledBackFirst(t, m)
		requireSame(t, m, before)
	})
	t.Run("liveapply-recover.service", func(t *testing.T) {
		m := m.For(t)
		interrupt(t, m, v2)
		m.Run("systemctl", "start", "liveapply-recover.service")
		awaitEnd(m)
		equal(t, "the last transaction", lastTransaction(t, m).Result, "rolled-back")
		forgetOutcomes(m)
		requireSame(t, m, before)
	})
	t.Run("an interrupted reset by a reset", func(t *testing.T) {
		m := m.For(t)
		apply(t, m, v2)
		holdReset(m)
		m.Run("systemctl", "start", "--no-block", "liveapply-reset.service")
		awaitHeldReset(m)
		m.Run("systemctl", "kill", "--signal=SIGKILL", "liveapply-reset.service")
		awaitProperty(m, "liveapply-reset.service", "ActiveState", "failed")
		removeDropIns(m)
		reset(t, m)
		requireSame(t, m, before)
	})
	t.Run("an interrupted reset by an application", func(t *testing.T) {
		m := m.For(t)
		apply(t, m, v2)
		holdReset(m)
		m.Run("systemctl", "start", "--no-block", "liveapply-reset.service")
		awaitHeldReset(m)
		m.Run("systemctl", "kill", "--signal=SIGKILL", "liveapply-reset.service")
		awaitProperty(m, "liveapply-reset.service", "ActiveState", "failed")
		removeDropIns(m)
		apply(t, m, v3)
		requireLive(t, m, v3)
		reset(t, m)
		requireSame(t, m, before)
	})
}

func TestLostStampIsMadeAgain(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, labRelease("2"))
	v3 := derived(t, m, v2, labRelease("3"))
	v4 := derived(t, m, v3, labRelease("4"))
	before := factsOf(t, m)
	file := "/run/ostree/deployment-state/" + v1 + ".0/liveapply.json"
	lose := map[string]string{
		"removed": "rm " + file,
		"emptied": ": >" + file,
		"noise":   "head -c 100 /dev/urandom >" + file,
		// In one step: while what systemd starts for a change runs, it does not see the next one.
		"renamed": "echo noise >" + file + ".old; mv --exchange " + file + ".old " + file + "; rm " + file + ".old",
	}
	// The stamp of a transaction that has ended, but for what nobody can know any more.
	known := func(m *nspawn.Machine) stamp {
		s := stamp{}
		decode(t, m.Read(file), &s)
		s.Applied, s.Transaction = "", ""
		return s
	}
	for name, command := range lose {
		t.Run(name, func(t *testing.T) {
			m := m.For(t)
			apply(t, m, v2)
			apply(t, m, v3)
			want := known(m)
			m.Run("sh", "-c", command)
			equal(t, "live commit in the status", status(t, m).Live, v3)
			m.Run("timeout", "60", "sh", "-c", "until grep -q "+v3+" "+file+"; do sleep 0.02; done")
			m.Run("timeout", "60", "sh", "-c", "while [ $(systemctl is-active liveapply-recover.service) = activating ]; do sleep 0.1; done")
			if got := known(m); !equalStamps(got, want) {
				t.Errorf("the stamp is %+v, and was %+v", got, want)
			}
			apply(t, m, v4)
			requireLive(t, m, v4)
			reset(t, m)
			requireSame(t, m, before)
		})
	}
}

func equalStamps(a, b stamp) bool {
	return strings.Join(append(a.Layers, a.RebootRequired...), " ") == strings.Join(append(b.Layers, b.RebootRequired...), " ") &&
		a.Booted == b.Booted && a.Live == b.Live && a.Previous == b.Previous && a.Target == b.Target && a.Phase == b.Phase && a.Transient == b.Transient
}

// The stamp changes in every phase: what watches it must not run then, nor where nothing is live, nor at a boot after which there is
// nothing to recover.
func TestNothingRecoversWhereNothingIsLost(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, labRelease("2"))
	v3 := derived(t, m, v2, labRelease("3"))
	makeTransient(m)
	apply(t, m, v2)
	apply(t, m, v3)
	dropIn(m, "liveapply-tmpfiles@.service", "ExecStartPost=/bin/false")
	equal(t, "exit status", tryApply(m, v2).Code, 1)
	removeDropIns(m)
	equal(t, "watch while something is live", m.Try("systemctl", "is-active", "liveapply-recover.path").Stdout, "active")
	reset(t, m)
	equal(t, "watch afterwards", m.Try("systemctl", "is-active", "liveapply-recover.path").Stdout, "inactive")
	requireNeverRun := func() {
		t.Helper()
		equal(t, "start of recover", m.Run("systemctl", "show", "--value", "--property=ExecMainStartTimestampMonotonic", "liveapply-recover.service"), "0")
		equal(t, "messages of recover", m.Journal("--unit=liveapply-recover.service", "--output=cat"), "")
	}
	requireNeverRun()
	m.Reboot()
	requireNeverRun()
}

func TestResetWorksWhereARollbackDoesNot(t *testing.T) {
	t.Parallel()
	m, v1 := releaseMachine(t, nspawn.Trixie)
	v2 := derived(t, m, v1, labRelease("2"))
	before := factsOf(t, m)
	dropIn(m, "liveapply-services@.service", "ExecStartPost=/bin/false")
	dropIn(m, "liveapply-rollback@.service", "ExecStart=\nExecStart=/bin/false")
	equal(t, "exit status", tryApply(m, v2).Code, 1)
	reset(t, m)
	equal(t, "the last transaction", lastTransaction(t, m).Result, "reset")
	removeDropIns(m)
	m.Run("systemctl", "reset-failed", "liveapply*")
	forgetOutcomes(m)
	requireSame(t, m, before)
}

// A staged deployment gets its /etc from the administrator's own, also if the machine is shut down in the midst of an application of
// another commit.
func TestShutdownInTheMidstOfAnApplication(t *testing.T) {
	t.Parallel()
	m, _ := releaseMachine(t, nspawn.Trixie)
	m.Run("mkdir", "-p", "/var/log/journal")
	m.Run("journalctl", "--flush")
	makeTransient(m)
	m.Write("/etc/lab/edited", "mine\n")
	release := 1
	for _, phase := range []string{"etc", "services"} {
		t.Run("after "+phase, func(t *testing.T) {
			m := m.For(t)
			number := func(n int) string { return strconv.Itoa(release + n) }
			booted := m.BootedCommit()
			applied := derived(t, m, booted, labRelease(number(1)))
			staged := derived(t, m, booted, labRelease(number(2)))
			m.Stage(staged)
			holdAfter(t, m, phase, applied)
			equal(t, "/etc/lab/default in the midst", m.Read("/etc/lab/default"), number(1)+"\n")
			m.Write("/etc/lab/own", phase)
			m.Reboot()
			equal(t, "booted commit", m.BootedCommit(), staged)
			equal(t, "/etc/lab/default", m.Read("/etc/lab/default"), number(2)+"\n")
			equal(t, "/etc/lab/edited", m.Read("/etc/lab/edited"), "mine\n")
			equal(t, "/etc/lab/own", m.Read("/etc/lab/own"), phase)
			equal(t, "a file of the applied release", m.Exists("/etc/lab/only-in-"+number(1)), false)
			requireNothingLeft(t, m)
			requireRevertedBeforeMerge(t, m)
			release += 2
		})
	}
}
