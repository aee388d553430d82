//go:build nspawn

package nspawn_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/test/nspawn"
)

// Whatever becomes of the way back at shutdown, no deployment is finalized with what is not the administrator's own in /etc.
func TestNothingIsFinalizedWhileEtcIsNotTheAdministrators(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := releaseMachine(t, suite)
		m.Run("mkdir", "-p", "/var/log/journal") // to see what went wrong
		m.Run("journalctl", "--flush")
		v2 := derived(t, m, v1, labRelease("2"))
		v3 := derived(t, m, v1, labRelease("3"))
		m.Run("mkdir", "-p", "/etc/liveapply")
		m.Write("/etc/liveapply/liveapply.conf", "[Auto]\nApply=no\n[Apply]\nAllow=force\n")
		m.Write("/etc/lab/own", "mine\n")

		tests := []struct {
			name, dropIn string
			change       func(t *testing.T, m *nspawn.Machine)
		}{
			{"the way back fails", "ExecStop=\nExecStop=/bin/false", nil},
			{"the way back is killed", "ExecStop=\nExecStop=/bin/sh -c 'kill -KILL $$$$'", nil},
			{"the way back runs out of time", "ExecStop=\nExecStop=/bin/sleep infinity\nTimeoutStopSec=1", nil},
			{"the way back is not begun", "ExecStop=", nil},
			{"overlays are not taken back", "ExecStop=\nExecStop=/bin/false", func(t *testing.T, m *nspawn.Machine) {
				overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "theirs"}, set(m, "theirs", "/etc/lab/default", "theirs\n"))
			}},
		}
		if suite != nspawn.Trixie {
			tests = append(tests[:1], tests[4:]...)
		}
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				m := m.For(t)
				if test.change == nil {
					apply(t, m, v2)
				} else {
					test.change(t, m)
				}
				m.Stage(v3)
				dropIn(m, "liveapply-etc-revert.service", test.dropIn)
				m.Reboot()
				equal(t, "booted commit", m.BootedCommit(), v1)
				last := lastTransaction(t, m)
				equal(t, "result in the history", last.Result, "not-finalized")
				equal(t, "target in the history", last.Target, v3)
				requireSays(t, "the reason", last.Reason, []string{"not taken back", "stage it again"})
				requireSays(t, "liveapplyctl status", m.Run("liveapplyctl", "status"), []string{"not-finalized", "stage it again"})
				if test.change == nil {
					equal(t, "a default in /etc", m.Read("/etc/lab/default"), "1\n")
				} else {
					m.Run("liveapplyctl", "overlay", "remove", "theirs")
					equal(t, "a default in /etc", m.Read("/etc/lab/default"), "1\n")
				}
				equal(t, "/etc/lab/own", m.Read("/etc/lab/own"), "mine\n")
				equal(t, "what keeps libostree from finalizing", m.Exists("/run/liveapply/nothing-staged"), false)
			})
			if t.Failed() {
				return
			}
		}
		apply(t, m, v2)
		m.Stage(v3)
		equal(t, "what keeps libostree from finalizing", m.Exists("/run/liveapply/nothing-staged"), true)
		transactions := len(history(t, m))
		m.Reboot()
		equal(t, "booted commit", m.BootedCommit(), v3)
		equal(t, "a default in /etc", m.Read("/etc/lab/default"), "3\n")
		equal(t, "/etc/lab/own", m.Read("/etc/lab/own"), "mine\n")
		equal(t, "transactions in the history", len(history(t, m)), transactions)
	})
}

// What takes /etc back may be killed when that is done, and before it says so: the shutdown finds out.
func TestWayBackThatWasCutOffAtItsEndKeepsNothingFromBeingFinalized(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, labRelease("2"))
	m.Run("systemctl", "start", "liveapply-etc-revert.service")
	m.Run("mkdir", "-p", "/run/liveapply/nothing-staged")
	m.Stage(v2)
	m.Reboot()
	equal(t, "booted commit", m.BootedCommit(), v2)
}

// The way back is killed, or fails, at a call, while the machine goes down with something staged: then either that was finalized, and has the administrator's /etc, or
// the machine boots what it did, and says so. In CI it is two kills and two errors, with LIVEAPPLY_TEST_EXHAUSTIVE=1 all.
func TestFaultsOfTheWayBackAtShutdown(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	l := &injection{v1: lab.Derive(t, product(t, nspawn.Trixie), injectionBase)}
	l.m = lab.Machine(t, l.v1, nspawn.Options{})
	l.m.Boot()
	l.v2 = derived(t, l.m, l.v1, injectionTarget)
	v3 := derived(t, l.m, l.v1, labRelease("3"))
	l.m.Run("mkdir", "-p", "/etc/liveapply")
	l.m.Write("/etc/liveapply/liveapply.conf", "[Auto]\nApply=no\n[Apply]\nAllow=force\n")
	l.m.Write("/etc/lab/own", "mine\n")
	l.m.Write("/etc/lab/edited", "mine\n")

	const trace = "/var/log/lab-trace" // /run is gone afterwards
	shutDown := func(l *injection, options string) (booted, staged string, traced []string) {
		booted, staged = l.m.BootedCommit(), v3
		if booted == v3 {
			staged = l.v1
		}
		apply(t, l.m, l.v2)
		l.m.Stage(staged)
		l.wrap(map[string][]string{"liveapply-etc-revert.service": {"ExecStop=etc-revert"}})
		dropIn(l.m, "liveapply-etc-revert.service", "ReadWritePaths=/var/log")
		l.inject("etc-revert", "-o "+trace+" "+options)
		l.m.Reboot()
		traced = strings.Split(l.m.Read(trace), "\n")
		l.m.Run("rm", trace)
		return booted, staged, traced
	}
	var counts map[string]int
	etc := map[string]nspawn.Snapshot{} // by the commit that is booted
	for range 2 {
		_, staged, traced := shutDown(l, "-e trace="+strings.Join(failingCalls, ","))
		equal(t, "booted commit", l.m.BootedCommit(), staged)
		counts, etc[staged] = countCalls(t, "etc-revert", traced), withoutAccounts(l.m.Snapshot("/etc"))
		equal(t, "an edited default", l.m.Read("/etc/lab/edited"), "mine\n")
	}
	equal(t, "a default of v1", etc[l.v1]["lab/default"] != etc[v3]["lab/default"], true)

	all := inPart(faults(counts, true))
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	var n tally
	came := map[bool]int{}
	for _, f := range all {
		done := &n.errors
		if strings.HasPrefix(f.how, "signal") {
			done = &n.kills
		}
		if *done == sampled(2, len(all)) {
			continue
		}
		t.Run(fmt.Sprintf("%s %s %d", f.call, f.how, f.n), func(t *testing.T) {
			one := *l
			one.m = l.m.For(t)
			booted, staged, traced := shutDown(&one, fmt.Sprintf("-e trace=%s -e inject=%s:%s:when=%d", f.call, f.call, f.how, f.n))
			now := one.m.BootedCommit()
			if now == booted {
				last := lastTransaction(t, one.m)
				equal(t, "result in the history", last.Result, "not-finalized")
				equal(t, "target in the history", last.Target, staged)
			} else {
				equal(t, "booted commit", now, staged)
			}
			requireTree(t, "/etc", withoutAccounts(one.m.Snapshot("/etc")), etc[now])
			one.m.Run("ostree", "admin", "cleanup") // of what libostree itself leaves of a staged deployment
			requireNothingLeft(t, one.m)
			if isHit(traced) {
				*done++
			}
			came[now == staged]++
		})
		if t.Failed() {
			return
		}
	}
	t.Logf("| etc-revert (real shutdown) | %d | %d | %d |: finalized %d times, not finalized %d times", n.kills, n.errors, n.failed, came[true], came[false])
	if (n.kills == 0 || n.errors == 0) && !isPart() {
		t.Error("nothing was disturbed")
	}
}

// What libostree makes of /etc for a deployment that is not staged is made of it as it is: the oracle is the same command where nothing is live.
func TestDeploymentThatIsNotStagedHasTheAdministratorsEtc(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := releaseMachine(t, suite)
		v2 := derived(t, m, v1, labRelease("2"))
		v3 := derived(t, m, v1, labRelease("3"))
		makeTransient(m)
		m.Write("/etc/lab/edited", "mine\n")
		m.Write("/etc/lab/own", "mine\n")
		m.Run("useradd", "administrators")
		deploy := func() { m.Run("ostree", "admin", "deploy", "--os=debian", v3) }
		etcOfDeployment := func() nspawn.Snapshot {
			return m.Snapshot(strings.TrimSpace(m.Run("sh", "-c", "ls -d /sysroot/ostree/deploy/debian/deploy/"+v3+".*/etc | tail -n 1")))
		}
		deploy()
		want := etcOfDeployment()
		m.Run("ostree", "admin", "undeploy", "0")

		apply(t, m, v2)
		overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "theirs"}, set(m, "theirs", "/etc/lab/of-an-overlay", "theirs\n"))
		deploy()
		waitFor(t, "the deployment to be looked at", func() bool {
			return strings.Contains(m.Journal("MESSAGE_ID=e0b7c1f2a94d4c1c8d36f0a1be52c7d8"), v3)
		})
		requireTree(t, "/etc of the deployment", etcOfDeployment(), want)
		requireSays(t, "liveapplyctl status", m.Run("liveapplyctl", "status"), []string{"Deployment: " + v3[:12] + ", which was made while"})
		m.Run("ostree", "admin", "undeploy", "0")

		// Nobody has looked before the shutdown, or before the power cut.
		for _, end := range []struct {
			name string
			do   func()
		}{{"shutdown", m.Reboot}, {"power cut", func() { m.PowerCut(); m.Boot() }}} {
			dropIn(m, "liveapply-deployments.service", "ExecStart=\nExecStart=/bin/true")
			deploy()
			equal(t, "/etc/lab/default of the deployment", m.Run("sh", "-c", "cat /sysroot/ostree/deploy/debian/deploy/"+v3+".*/etc/lab/default"), "2")
			m.Run("sync")
			end.do()
			equal(t, "booted commit after a "+end.name, m.BootedCommit(), v3)
			equal(t, "/etc/lab/default after a "+end.name, m.Read("/etc/lab/default"), "3\n")
			equal(t, "/etc/lab/edited after a "+end.name, m.Read("/etc/lab/edited"), "mine\n")
			equal(t, "an overlay's file after a "+end.name, m.Exists("/etc/lab/of-an-overlay"), true) // it is shown there, too
			if end.name == "power cut" {
				break
			}
			// Back to the first.
			m.Run("ostree", "admin", "deploy", "--os=debian", v1)
			m.Reboot()
			equal(t, "booted commit", m.BootedCommit(), v1)
			apply(t, m, v2)
		}
	})
}

// A deployment whose /etc is merged, and which is not there yet for others, is looked at when libostree has made it, before /etc changes: by a way back as well as by
// what is applied next. Where libostree takes longer than anybody should wait, the way back goes on.
func TestDeploymentThatIsBeingMadeHasTheAdministratorsEtc(t *testing.T) {
	t.Parallel()
	m, v1 := releaseMachine(t, nspawn.Trixie)
	v2 := derived(t, m, v1, labRelease("2"))
	v3 := derived(t, m, v1, labRelease("3"))
	v4 := derived(t, m, v1, labRelease("4"))
	makeTransient(m)
	m.Write("/etc/lab/own", "mine\n")
	etcDir := func() string {
		return strings.TrimSpace(m.Run("sh", "-c", "ls -d /sysroot/ostree/deploy/debian/deploy/"+v3+".*/etc | tail -n 1"))
	}
	m.Run("ostree", "admin", "deploy", "--os=debian", v3)
	want := m.Snapshot(etcDir())
	m.Run("ostree", "admin", "undeploy", "0")
	dropIn(m, "liveapply-deployments.service", "ExecStart=\nExecStart=/bin/true") // else, it looks afterwards
	const making = "making-a-deployment.service"
	begin := func() {
		// The first is about the objects of the repo, the second about what has been checked out and merged.
		m.Run("rm", "-f", "/run/making.log")
		m.Run("systemd-run", "--collect", "--unit="+making, "strace", "-f", "-o", "/run/making.log", "-e", "trace=syncfs", "-e", "inject=syncfs:signal=SIGSTOP:when=2",
			"ostree", "admin", "deploy", "--os=debian", v3)
		m.Run("sh", "-c", "until grep -qs 'stopped by SIGSTOP' /run/making.log; do sleep 0.05; done")
		equal(t, "/etc/lab/default of the deployment", m.Read(etcDir()+"/lab/default"), "2\n")
	}
	letGoOn := func() {
		m.Run("sh", "-c", "while systemctl is-active --quiet "+making+"; do systemctl kill --signal=SIGCONT "+making+"; sleep 0.05; done")
	}
	for _, next := range []struct{ unit, waits string }{
		{"liveapply-reset.service", "liveapply-reset.service"},
		{applyUnit(v4), phaseUnit("mount", v4)},
	} {
		apply(t, m, v2)
		begin()
		m.Run("systemctl", "start", "--no-block", next.unit)
		m.Run("sh", "-c", `until systemctl show --value --property=StatusText "$0" | grep -q 'lock of the sysroot'; do sleep 0.05; done`, next.waits)
		equal(t, "live commit", status(t, m).Live, v2)
		letGoOn()
		m.Run("systemctl", "start", next.unit)
		requireTree(t, "/etc of the deployment, which "+next.unit+" has waited for", m.Snapshot(etcDir()), want)
		m.Run("ostree", "admin", "undeploy", "0")
	}

	apply(t, m, v2)
	begin()
	m.Run("systemctl", "start", "liveapply-reset.service")
	equal(t, "a default in /etc", m.Read("/etc/lab/default"), "1\n")
	if said := m.Journal("_SYSTEMD_UNIT=liveapply-reset.service"); !strings.Contains(said, "ostree admin config-diff") {
		t.Errorf("the reset did not say that it has not waited for libostree: %s", said)
	}
	letGoOn()
}

// What takes /etc back is stopped by hand while a phase that is about to change /etc has the lock: neither waits for the other.
func TestStopOfTheWayBackWhileEtcIsAboutToChange(t *testing.T) {
	t.Parallel()
	m, v1 := releaseMachine(t, nspawn.Trixie)
	v2 := derived(t, m, v1, labRelease("2"))
	v3 := derived(t, m, v1, labRelease("3"))
	makeTransient(m)
	apply(t, m, v2)
	const etcRevert = "liveapply-etc-revert.service"
	stopAt(m, "etc", "flock", 1)
	applying := m.Start("systemctl", "start", applyUnit(v3))
	awaitStop(m)
	m.Run("systemctl", "stop", "--no-block", etcRevert)
	awaitProperty(m, etcRevert, "ActiveState", "deactivating")
	m.Write("/run/go", "")
	if _, err := applying.Wait(); err == nil {
		t.Error("it was applied though what takes /etc back was being stopped")
	}
	awaitProperty(m, etcRevert, "ActiveState", "inactive")
	equal(t, "what stopped last", m.Run("systemctl", "show", "--value", "--property=Result", etcRevert), "success")
	requireLive(t, m, v2)
	equal(t, "a default in /etc", m.Read("/etc/lab/default"), "1\n")
	removeDropIns(m)
	reset(t, m)
	equal(t, "live commit", status(t, m).Live, v1)
}

// Nothing was ever live: that libostree cannot finalize what is staged is told all the same.
func TestWhatLibostreeCannotFinalizeIsTold(t *testing.T) {
	t.Parallel()
	m, v1 := releaseMachine(t, nspawn.Trixie)
	v2 := derived(t, m, v1, labRelease("2"))
	m.Run("systemctl", "stop", "liveapply-staged.path")
	m.Stage(v2)
	m.Run("rm", "-r", "/etc/lab")
	m.Write("/etc/lab", "a file in the place of a default directory\n")
	m.Reboot()
	equal(t, "booted commit", m.BootedCommit(), v1)
	last := lastTransaction(t, m)
	equal(t, "result in the history", last.Result, "not-finalized")
	requireSays(t, "the reason", last.Reason, []string{"libostree could not finalize", "stage it again"})
	requireSays(t, "liveapplyctl status", m.Run("liveapplyctl", "status"), []string{"not-finalized"})
}

// What was deployed cannot be settled at the shutdown: /etc stays for the next boot, which tries once more, and status says so as long as it does not succeed.
func TestDeploymentThatCannotBeSettledIsTriedAgain(t *testing.T) {
	t.Parallel()
	m, v1 := releaseMachine(t, nspawn.Trixie)
	v2 := derived(t, m, v1, labRelease("2"))
	v3 := derived(t, m, v1, labRelease("3"))
	makeTransient(m)
	apply(t, m, v2)
	dropIn(m, "liveapply-deployments.service", "ExecStart=\nExecStart=/bin/true")
	m.Run("ostree", "admin", "deploy", "--os=debian", v3)
	file := strings.TrimSpace(m.Run("sh", "-c", "ls /sysroot/ostree/deploy/debian/deploy/"+v3+".*/etc/lab/default"))
	m.Run("mount", "-o", "remount,rw", "/sysroot")
	chattr := func(how, path string) {
		t.Helper()
		if output, err := exec.Command("chattr", how, m.Path(path)).CombinedOutput(); err != nil { // a machine has none
			t.Fatalf("chattr %s %s: %v: %s", how, path, err, output)
		}
	}
	chattr("+i", file)
	m.Reboot()
	equal(t, "booted commit", m.BootedCommit(), v3)
	equal(t, "a default, which could not be changed", m.Read("/etc/lab/default"), "2\n")
	requireSays(t, "liveapplyctl status", m.Run("liveapplyctl", "status"), []string{v3[:12] + " was made while /etc was not the administrator's own"})
	chattr("-i", "/etc/lab/default")
	m.Reboot()
	equal(t, "a default, which could be changed", m.Read("/etc/lab/default"), "3\n")
	if said := m.Run("liveapplyctl", "status"); strings.Contains(said, "was made while") {
		t.Errorf("status still says that something is wrong:\n%s", said)
	}
}
