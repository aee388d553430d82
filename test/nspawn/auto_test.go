//go:build nspawn

package nspawn_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/liveapply/liveapply/test/nspawn"
)

// automaticMachine returns a machine that applies what is staged, after it was booted with a configuration.
func automaticMachine(t *testing.T, suite nspawn.Suite, configuration string, kernelArgs ...string) (m *nspawn.Machine, commit string) {
	t.Helper()
	commit = product(t, suite)
	if configuration != "" {
		commit = lab.Derive(t, commit, func(tree *nspawn.Tree) { tree.Write("usr/etc/liveapply/liveapply.conf", configuration, 0o644) })
	}
	m = lab.Machine(t, commit, nspawn.Options{Automatic: true, KernelArgs: kernelArgs})
	m.Boot()
	return m, commit
}

// adds makes a commit that only has a file more.
func adds(t *testing.T, m *nspawn.Machine, parent, name string) string {
	t.Helper()
	return derived(t, m, parent, func(tree *nspawn.Tree) { tree.Write("usr/share/"+name, name+"\n", 0o644) })
}

// replaces makes a commit that changes a file.
func replaces(t *testing.T, m *nspawn.Machine, parent, content string) string {
	t.Helper()
	return derived(t, m, parent, func(tree *nspawn.Tree) { tree.Write("usr/share/common-licenses/GPL-2", content+"\n", 0o644) })
}

// awaitLive waits until a commit is live and its transaction has ended.
func awaitLive(t *testing.T, m *nspawn.Machine, commit string) {
	t.Helper()
	waitFor(t, "commit "+commit+" to be live", func() bool {
		now := status(t, m)
		return now.Live == commit && now.Phase == ""
	})
	awaitStagedEnd(m)
}

// awaitStagedEnd waits until liveapply-staged.service does not run.
func awaitStagedEnd(m *nspawn.Machine) {
	for m.Try("systemctl", "is-active", "liveapply-staged.service").Stdout == "activating" {
		time.Sleep(20 * time.Millisecond)
	}
}

// awaitStays waits until a commit that is staged is said to stay so, for a reason.
func awaitStays(t *testing.T, m *nspawn.Machine, commit, reason string) {
	t.Helper()
	line := "commit " + commit + " stays staged: "
	var said string
	waitFor(t, line+reason, func() bool {
		for text := range strings.Lines(m.Journal("--unit=liveapply-staged.service", "--output=cat")) {
			if strings.HasPrefix(text, line) {
				said = text
			}
		}
		return said != ""
	})
	awaitStagedEnd(m)
	requireSays(t, "the journal", said, []string{reason})
	// In a pipe, no line is broken.
	requireSays(t, "liveapplyctl status", m.Run("liveapplyctl", "status"), []string{"Stays staged: ", reason})
}

// again has what is staged looked at once more, as if it had been staged just now.
func again(t *testing.T, m *nspawn.Machine, commit string) {
	t.Helper()
	m.Run("systemctl", "start", "liveapply-staged.service")
	before := stagedRun(m)
	m.Stage(commit)
	awaitStagedRun(t, m, before)
}

// stagedRun names the last run of what applies without a person.
func stagedRun(m *nspawn.Machine) string {
	return m.Run("systemctl", "show", "--value", "--property=InvocationID", "liveapply-staged.service")
}

// awaitStagedRun waits until it has run once more, also if it is not to do anything.
func awaitStagedRun(t *testing.T, m *nspawn.Machine, before string) {
	t.Helper()
	waitFor(t, "liveapply-staged.service to run", func() bool { return stagedRun(m) != before })
	awaitStagedEnd(m)
}

// results are the lines of the history, in short.
func results(t *testing.T, m *nspawn.Machine) string {
	t.Helper()
	var lines []string
	for _, entry := range history(t, m) {
		lines = append(lines, fmt.Sprintf("%s %.8s by %s", entry.Result, entry.Target, entry.RequestedBy))
	}
	return strings.Join(lines, "\n")
}

func byItself(result, commit string) string {
	return fmt.Sprintf("%s %.8s by liveapply-staged.service", result, commit)
}

func requireNoneFailed(t *testing.T, m *nspawn.Machine) {
	t.Helper()
	equal(t, "failed units", m.Run("systemctl", "--failed", "--plain", "--no-legend"), "")
}

func TestWhatIsStagedIsAppliedByItself(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := automaticMachine(t, suite, "")
		v2 := adds(t, m, v1, "two")
		v3 := adds(t, m, v2, "three")
		m.Stage(v2)
		awaitLive(t, m, v2)
		requireUsrIs(t, m, v2)
		m.Stage(v3)
		awaitLive(t, m, v3)
		requireUsrIs(t, m, v3)
		equal(t, "history", results(t, m), byItself("applied", v2)+"\n"+byItself("applied", v3))
		equal(t, "policy", history(t, m)[0].Allow, "additive")
		requireNoneFailed(t, m)

		m.Reboot()
		equal(t, "booted commit", m.BootedCommit(), v3)
		requireUsrIs(t, m, v3)
		requireNothingLeft(t, m)
		lines := strings.Split(m.Run("liveapplyctl", "history"), "\n")
		equal(t, "booted ones in the history", strings.Count(strings.Join(lines, "\n"), "applied, booted"), 1)
		requireSays(t, "the last line of the history", lines[len(lines)-1], []string{v3, "applied, booted"})
	})
}

func TestWhatIsRefusedStaysStagedUntilAPersonAsks(t *testing.T) {
	t.Parallel()
	m, v1 := automaticMachine(t, nspawn.Trixie, "")
	before := m.Run("ostree", "admin", "status")
	v2 := replaces(t, m, v1, "two")
	m.Stage(v2)
	awaitStays(t, m, v2, "it was refused before: the policy Allow=additive forbids this commit")
	equal(t, "live", status(t, m).Live, v1)
	requireUsrIs(t, m, v1)
	requireNoneFailed(t, m)
	requireSays(t, "ostree admin status", m.Run("ostree", "admin", "status"), []string{v2, "(staged)"})
	again(t, m, v2)
	equal(t, "history", results(t, m), byItself("refused", v2))

	m.Run("liveapplyctl", "apply", v2)
	requireUsrIs(t, m, v2)
	// A person's way back is not undone, either, whatever is done to what is staged.
	m.Run("liveapplyctl", "reset")
	again(t, m, v2)
	awaitStays(t, m, v2, "it was live before, and was left by a reset")
	equal(t, "history", results(t, m), fmt.Sprintf("%s\napplied %.8s by liveapplyctl, uid 0\nreset %.8s by liveapplyctl, uid 0", byItself("refused", v2), v2, v1))

	// The next one is another matter.
	m.Run("ostree", "admin", "undeploy", "0")
	equal(t, "deployments", m.Run("ostree", "admin", "status"), before)
	v3 := adds(t, m, v1, "three")
	m.Stage(v3)
	awaitLive(t, m, v3)
}

// A merged extension is in the way until it is taken out, of which nobody tells.
func TestWhatIsRefusedForAReasonThatPassesIsTriedAgain(t *testing.T) {
	t.Parallel()
	m, v1 := automaticMachine(t, nspawn.Trixie, "")
	makeExtension(m)
	m.Run("systemd-sysext", "merge")
	v2 := adds(t, m, v1, "two")
	m.Stage(v2)
	awaitStays(t, m, v2, "it was refused for a reason that may pass, and is tried again: /usr: systemd-sysext has merged extensions")
	requireNoneFailed(t, m)
	equal(t, "liveapply-again.timer", m.Try("systemctl", "is-active", "liveapply-again.timer").Stdout, "active")
	equal(t, "history", results(t, m), byItself("refused", v2))
	equal(t, "passing", history(t, m)[0].Passing, true)

	m.Run("systemctl", "stop", "liveapply-again.timer")
	m.Run("mkdir", "-p", "/run/systemd/system/liveapply-again.timer.d")
	m.Write("/run/systemd/system/liveapply-again.timer.d/soon.conf", "[Timer]\nOnActiveSec=\nOnActiveSec=1s\nAccuracySec=1us\n")
	m.Run("systemctl", "daemon-reload")
	m.Run("systemctl", "start", "liveapply-staged.service")
	waitFor(t, "the timer to have tried it again, and again", func() bool { return len(history(t, m)) > 3 })
	m.Run("systemd-sysext", "unmerge")
	awaitLive(t, m, v2)
	requireUsrIs(t, m, v2)
	requireNoneFailed(t, m)
	// The timer does not go on.
	awaitProperty(m, "liveapply-staged.service", "ActiveState", "inactive")
	equal(t, "when it is tried again", m.Run("systemctl", "show", "--value", "--property=NextElapseUSecMonotonic", "liveapply-again.timer"), "infinity")
}

func TestWhatWasRolledBackIsNotAppliedAgain(t *testing.T) {
	t.Parallel()
	m, v1 := automaticMachine(t, nspawn.Trixie, "")
	// systemd-sysusers does not understand this, and fails in the phase tmpfiles.
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) {
		tree.Write("usr/lib/sysusers.d/spoilt.conf", "u spoilt-user not-a-number\n", 0o644)
	})
	m.Stage(v2)
	awaitStays(t, m, v2, "it was rolled back before: ")
	requireUsrIs(t, m, v1)
	requireSays(t, "systemctl --failed", m.Run("systemctl", "--failed", "--plain", "--no-legend"), []string{"liveapply-staged.service"})
	again(t, m, v2)
	equal(t, "history", results(t, m), byItself("rolled-back", v2))
}

// A person's application stages a deployment, and its rollback or reset brings back what somebody else had staged.
func TestWhatLiveapplyStagesIsNotAppliedByItself(t *testing.T) {
	t.Parallel()
	m, v1 := automaticMachine(t, nspawn.Trixie, "")
	v2 := adds(t, m, v1, "two")
	v3 := replaces(t, m, v2, "three")
	before := stagedRun(m)
	m.Run("liveapplyctl", "apply", v3)
	awaitStagedRun(t, m, before)
	equal(t, "history", results(t, m), fmt.Sprintf("applied %.8s by liveapplyctl, uid 0", v3))
	m.Run("liveapplyctl", "reset")

	m.Stage(v2)
	awaitLive(t, m, v2)
	m.Run("liveapplyctl", "apply", v3) // takes the place of what is staged
	m.Run("liveapplyctl", "reset")     // and gives it back
	awaitStays(t, m, v2, "it was live before, and was left by an application of commit "+v3)
	equal(t, "live", status(t, m).Live, v1)
	requireNoneFailed(t, m)
}

func TestWhatIsStagedWhileAnotherIsAppliedComesNext(t *testing.T) {
	t.Parallel()
	m, v1 := automaticMachine(t, nspawn.Trixie, "[Auto]\nApply=replace\n")
	v2 := replaces(t, m, v1, "two")
	v3 := adds(t, m, v1, "three")
	hold(m, "prepare")
	m.Stage(v2)
	awaitHeld(m, "prepare", v2)
	m.Stage(v3)
	m.Write("/run/go", "")
	awaitLive(t, m, v3)
	equal(t, "history", results(t, m), byItself("applied", v2)+"\n"+byItself("applied", v3))
}

// While a person's reset is under way, the history still says that the commit was applied.
func TestResetUnderWayIsNotUndone(t *testing.T) {
	t.Parallel()
	m, v1 := automaticMachine(t, nspawn.Trixie, "")
	v2 := adds(t, m, v1, "two")
	m.Stage(v2)
	awaitLive(t, m, v2)
	holdReset(m)
	person := m.Start("liveapplyctl", "reset")
	awaitHeldReset(m)
	m.Run("systemctl", "start", "--no-block", "liveapply-staged.service") // as the timer of a window does
	awaitProperty(m, "liveapply-staged.service", "SubState", "start")
	letResetGoOn(m)
	if output, err := person.Wait(); err != nil {
		t.Errorf("the reset: %v\n%s", err, output)
	}
	awaitStays(t, m, v2, "it was live before, and was left by a reset")
	equal(t, "history", results(t, m), byItself("applied", v2)+fmt.Sprintf("\nreset %.8s by liveapplyctl, uid 0", v1))
	requireUsrIs(t, m, v1)
}

// Whoever is first does not decide for the other: what is asked for with a commit that is being applied already is not lost, nor taken for what was
// asked for there.
func TestPersonAppliesWhatIsBeingAppliedByItself(t *testing.T) {
	t.Parallel()
	m, v1 := automaticMachine(t, nspawn.Trixie, "")
	v2 := replaces(t, m, v1, "two")
	v3 := replaces(t, m, v2, "three")
	dropIn(m, "liveapply-prepare@.service", "ExecStartPre="+untilGo)
	awaitBegin := func(commit string) { awaitProperty(m, phaseUnit("prepare", commit), "SubState", "start-pre") }
	finish := func(person *nspawn.Process) {
		m.Write("/run/go", "")
		if output, err := person.Wait(); err != nil {
			t.Errorf("the person's application: %v\n%s", err, output)
		}
		awaitStagedEnd(m)
	}
	m.Stage(v2)
	awaitBegin(v2)
	person := m.Start("liveapplyctl", "apply", "--transient", v2)
	waitFor(t, "the person to wait", func() bool { return strings.Contains(person.Output(), "for somebody else") })
	finish(person)
	equal(t, "history", results(t, m), byItself("refused", v2)+fmt.Sprintf("\napplied %.8s by liveapplyctl, uid 0", v2))
	requireSays(t, "liveapplyctl status", m.Run("liveapplyctl", "status", "--json"), []string{`"transient":true`})

	m.Run("rm", "/run/go")
	person = m.Start("liveapplyctl", "apply", "--transient", "--force", v3)
	awaitBegin(v3)
	m.Stage(v3)
	awaitProperty(m, "liveapply-staged.service", "StatusText", "waiting for whoever applies commit "+v3+" already")
	finish(person)
	equal(t, "history", strings.Join(strings.Split(results(t, m), "\n")[2:], "\n"), fmt.Sprintf("applied %.8s by liveapplyctl, uid 0", v3))
	equal(t, "policy", lastTransaction(t, m).Allow, "force")
	requireNoneFailed(t, m)
}

func TestPolicyOfWhatIsAppliedByItself(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		configuration string
		kernelArgs    []string
		stays         string // why it stays staged; empty if it does not
	}{
		"replace": {"[Auto]\nApply=replace\n", nil, ""},
		"people may not, either": {"[Apply]\nAllow=additive\n[Auto]\nApply=replace\n", nil,
			"it was refused before: the policy Allow=additive forbids this commit"},
		"on the kernel command line":           {"[Auto]\nApply=no\n", []string{"liveapply.auto=replace"}, ""},
		"the kernel command line may restrict": {"[Auto]\nApply=replace\n", []string{"liveapply.auto=additive"}, "it was refused before: "},
	} {
		t.Run(name, func(t *testing.T) {
			m, v1 := automaticMachine(t, nspawn.Trixie, test.configuration, test.kernelArgs...)
			v2 := replaces(t, m, v1, "two")
			m.Stage(v2)
			if test.stays == "" {
				awaitLive(t, m, v2)
				equal(t, "policy", history(t, m)[0].Allow, "replace")
				return
			}
			awaitStays(t, m, v2, test.stays)
			equal(t, "live", status(t, m).Live, v1)
		})
	}
}

// What is staged before somebody watches, or while nobody may apply it, is looked at when that changes.
func TestNothingIsAppliedByItselfIfSwitchedOff(t *testing.T) {
	t.Parallel()
	m, v1 := automaticMachine(t, nspawn.Trixie, "[Auto]\nApply=no\n")
	v2 := adds(t, m, v1, "two")
	m.Stage(v2)
	equal(t, "liveapply-staged.path", m.Try("systemctl", "is-active", "liveapply-staged.path").Stdout, "inactive")
	requireSays(t, "liveapplyctl status", m.Run("liveapplyctl", "status"), []string{"Stays staged: ", "Apply=no"})
	m.Run("systemctl", "start", "liveapply-staged.path")
	awaitStays(t, m, v2, "Apply=no")
	m.Write("/etc/liveapply/liveapply.conf", "")
	m.Run("systemctl", "restart", "liveapply-staged.path")
	awaitLive(t, m, v2)
}

// windowFrom is a window that begins at a time, in the machine's words.
func windowFrom(begin time.Time, length string) string {
	return "[Auto]\nWindow=2020-01-01 10min\nWindow=" + begin.UTC().Format("2006-01-02 15:04:05") + " UTC " + length + "\n"
}

func TestWhatIsStagedWaitsForTheWindow(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := automaticMachine(t, suite, windowFrom(time.Now().Add(24*time.Hour), "1h"))
		v2 := adds(t, m, v1, "two")
		m.Stage(v2)
		awaitStays(t, m, v2, "it waits for the window that begins at ")
		equal(t, "live", status(t, m).Live, v1)

		// At its begin, which has to be yet to come when the timer is started.
		begin := time.Now().Add(time.Minute).Truncate(time.Second)
		m.Write("/etc/liveapply/liveapply.conf", windowFrom(begin, "1h"))
		m.Run("systemctl", "daemon-reload")
		m.Run("systemctl", "restart", "liveapply-window.timer")
		time.Sleep(time.Until(begin)) // without asking all the time
		awaitLive(t, m, v2)
		if started, _ := during(t, m); started.Before(begin) {
			t.Errorf("it was applied %v before the window", begin.Sub(started))
		}

		// In the middle of it.
		v3 := adds(t, m, v2, "three")
		m.Stage(v3)
		awaitLive(t, m, v3)

		// After it.
		m.Write("/etc/liveapply/liveapply.conf", windowFrom(time.Now().Add(-time.Minute), "30s"))
		v4 := adds(t, m, v3, "four")
		m.Stage(v4)
		awaitStays(t, m, v4, "no window begins any more")

		// None that is one.
		m.Write("/etc/liveapply/liveapply.conf", "[Auto]\nWindow=sometimes 4h\n")
		equal(t, "exit status for a bad window", m.Try("systemctl", "start", "liveapply-staged.service").Code, 1)
		requireSays(t, "liveapplyctl status", m.Run("liveapplyctl", "status"), []string{`Stays staged: the window "sometimes 4h": Failed to parse calendar specification`})
	})
}

// A unit that is to run whenever a tree has been applied.
func TestTargetStartsWhatWaitsForAnApplication(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := productMachine(t, suite, nspawn.Options{})
		for name, remain := range map[string]string{"once": "no", "stays": "yes"} {
			m.Write("/etc/systemd/system/"+name+".service", "[Unit]\nPartOf=liveapply.target\nAfter=liveapply.target\n[Service]\nType=oneshot\nRemainAfterExit="+remain+
				"\nExecStart=/bin/sh -c 'echo started >> /run/"+name+"'\nExecStop=/bin/sh -c 'echo stopped >> /run/"+name+"'\n[Install]\nWantedBy=liveapply.target\n")
		}
		m.Run("systemctl", "enable", "once.service", "stays.service")
		v2, v3 := adds(t, m, v1, "two"), adds(t, m, v1, "three")
		awaitLog := func(name, want string) {
			t.Helper()
			waitFor(t, name+".service: "+want, func() bool {
				return m.Exists("/run/"+name) && strings.Join(strings.Fields(m.Read("/run/"+name)), " ") == want
			})
		}
		apply(t, m, v2)
		awaitLog("stays", "started")
		awaitLog("once", "started stopped")
		apply(t, m, v3)
		awaitLog("stays", "started stopped started")
		awaitLog("once", "started stopped started stopped")
		// Nothing new, and what is refused, is no application.
		apply(t, m, v3)
		if result := tryApply(m, derived(t, m, v3, func(tree *nspawn.Tree) { tree.Remove("usr/bin/true") })); result.Code == 0 {
			t.Error("a tree that cannot run a program was applied")
		}
		reset(t, m)
		awaitLog("stays", "started stopped started stopped")
		awaitLog("once", "started stopped started stopped")
	})
}
