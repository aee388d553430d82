//go:build nspawn

package nspawn_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/test/nspawn"
)

// together is a machine on which several change the system at the same instant.
type together struct {
	m        *nspawn.Machine
	random   *rand.Rand
	booted   string
	commits  []string
	numbers  map[string]string // of the releases, by commit
	overlays int
}

// actor is one of them: what it runs, and, if it asks for the application of a commit, how.
type actor struct {
	command string
	target  string
	asked   string // Allow= and who asks, as the history has them
}

// byCtl is who asks by liveapplyctl, in the history; a start of the unit alone is nobody.
const byCtl = " by liveapplyctl, uid 0"

// actors are the kinds of them. All of them may be refused, each with a reason.
var actors = []func(s *together) actor{
	func(s *together) actor {
		commit, allow := s.commit(), []string{"additive", "replace", "force"}[s.random.IntN(3)]
		return actor{"liveapplyctl apply --allow=" + allow + " " + commit, commit, allow + byCtl}
	},
	func(s *together) actor {
		commit := s.commit()
		return actor{"systemctl start liveapply@$(systemd-escape lab/" + s.numbers[commit] + ").service", commit, "replace by "}
	},
	func(s *together) actor {
		commit := s.commit()
		return actor{"systemctl start " + applyUnit(commit), commit, "replace by "}
	},
	func(*together) actor { return actor{command: "liveapplyctl reset"} },
	func(*together) actor { return actor{command: "liveapplyctl rollback"} },
	func(*together) actor { return actor{command: "systemctl start liveapply-recover.service"} },
	func(s *together) actor { return actor{command: "ostree admin deploy --stage " + s.commit()} },
	func(s *together) actor {
		s.overlays++
		return actor{command: fmt.Sprintf("liveapplyctl overlay import --name=image-%d /var/good", s.overlays)}
	},
	func(*together) actor { return actor{command: "liveapplyctl overlay import --name=bad /var/bad"} },
	func(s *together) actor {
		return actor{command: fmt.Sprintf("liveapplyctl overlay remove image-%d", 1+s.random.IntN(s.overlays+1))}
	},
	func(s *together) actor {
		return actor{command: fmt.Sprintf("echo %d | liveapplyctl overlay set own --from=- /etc/lab/of-an-overlay", s.random.IntN(10))}
	},
	func(s *together) actor { // a kill of one that changes the machine, if there is one then
		return actor{command: fmt.Sprintf("sleep 0.%02d; kill -KILL $(pidof liveapply-helper | cut -d' ' -f%d) 2>/dev/null || true", s.random.IntN(60), 1+s.random.IntN(3))}
	},
}

func (s *together) commit() string { return s.commits[s.random.IntN(len(s.commits))] }

// round has some of them start at the same instant, or while others are on their way, and waits until all have ended and nothing is under way.
func (s *together) round(t *testing.T) []actor {
	t.Helper()
	var script strings.Builder
	script.WriteString("rm -rf /run/round /run/now; mkdir /run/round\n")
	all := make([]actor, 2+s.random.IntN(3))
	apart := 1 + s.random.IntN(2)*400 // milliseconds
	for i := range all {
		all[i] = actors[s.random.IntN(len(actors))](s)
		fmt.Fprintf(&script, "{ until [ -e /run/now ]; do :; done; sleep 0.%03d; { %s; } >/run/round/%d.said 2>&1; echo $? >/run/round/%d.code; } &\n", s.random.IntN(apart), all[i].command, i, i)
	}
	// A kill may have left a transaction between two units: whatever comes next takes it back, as recover does.
	script.WriteString(`touch /run/now; wait
		systemctl reset-failed 'liveapply*'
		systemctl start liveapply-recover.service
		until [ ! -e /run/liveapply/transaction.json ] && [ -z "$(systemctl list-jobs --no-legend 'liveapply*')" ]; do sleep 0.05; done`)
	s.m.For(t).Run("sh", "-c", script.String())
	return all
}

// requireRight looks at the machine after a round.
func (s *together) requireRight(t *testing.T, round []actor, before []transaction) {
	t.Helper()
	m := s.m.For(t)
	for i, a := range round {
		code, said := strings.TrimSpace(m.Read(fmt.Sprintf("/run/round/%d.code", i))), m.Read(fmt.Sprintf("/run/round/%d.said", i))
		if code != "0" && strings.TrimSpace(said) == "" {
			t.Errorf("%s ended with %s and gave no reason", a.command, code)
		}
		if strings.Contains(said, "no such file") || strings.Contains(said, "has taken the place") {
			t.Errorf("%s: %s", a.command, said)
		}
	}
	// Each transaction is what somebody has asked for, once, in the way in which they did.
	asked := map[string]int{}
	for _, a := range round {
		asked[a.target+" "+a.asked]++
	}
	after := history(t, m)
	for _, entry := range after[len(before):] {
		if entry.Target == "" || entry.Result == "reset" || strings.HasSuffix(entry.RequestedBy, "rollback") {
			continue
		}
		what := entry.Target + " " + entry.Allow + " by " + entry.RequestedBy
		if asked[what]--; asked[what] < 0 {
			t.Errorf("the history has %+v, which nobody has asked for", entry)
		}
	}
	now := status(t, m)
	equal(t, "phase", now.Phase, "")
	number, live := s.numbers[now.Live], now.Live
	mounts := m.MountsAt("/usr")
	source := mounts[len(mounts)-1].Source
	if live == s.booted && len(mounts) == 1 {
		source = "liveapply:" + live
	}
	if source = strings.TrimPrefix(source, "liveapply:"); source != live && !strings.HasPrefix(source, live+"+") {
		t.Errorf("/usr is %s, and status says %s", source, live)
	}
	for _, path := range []string{"/usr/share/lab", "/etc/lab/default", "/etc/lab/only-in-" + number} {
		equal(t, path, m.Try("cat", path).Stdout, number)
	}
	for commit, other := range s.numbers {
		if other != "1" { // of which all others are made
			equal(t, "there is /etc/lab/only-in-"+other, m.Exists("/etc/lab/only-in-"+other), commit == live)
		}
	}
	etcRevert := "inactive"
	if live != s.booted || m.Exists("/etc/lab/of-an-overlay") {
		etcRevert = "active"
	}
	equal(t, "liveapply-etc-revert.service", m.Try("systemctl", "is-active", "liveapply-etc-revert.service").Stdout, etcRevert)
	watch := "inactive"
	if live != s.booted {
		watch = "active"
	}
	equal(t, "liveapply-recover.path", m.Try("systemctl", "is-active", "liveapply-recover.path").Stdout, watch)
	var list []struct{ Name string }
	unmarshal(t, m.Run("liveapplyctl", "overlay", "list", "--json"), &list)
	for _, o := range list {
		if path := "/usr/share/" + o.Name; o.Name != "own" && !m.Exists("/usr/share/good-1") {
			t.Errorf("there is an overlay %s, and its files are not shown (%s)", o.Name, path)
		}
	}
	if left := below(t, m, "/run/liveapply/overlay"); len(left) > 0 {
		t.Errorf("requests for overlays are left: %v", left)
	}
}

// In CI these are a few rounds.
func TestManyAtTheSameInstantTakeTurns(t *testing.T) {
	t.Parallel()
	rounds := 8
	if isExhaustive() {
		rounds = 2000
	}
	s := &together{random: seeded(t), numbers: map[string]string{}}
	s.booted = lab.Derive(t, product(t, nspawn.Trixie), labRelease("1"))
	s.m = lab.Machine(t, s.booted, nspawn.Options{})
	s.m.Boot()
	s.m.Run("mkdir", "-p", "/etc/liveapply")
	s.m.Write("/etc/liveapply/liveapply.conf", "[Apply]\nAllow=replace\n[Auto]\nApply=no\n")
	s.m.Run("systemctl", "stop", "liveapply-staged.path")
	s.numbers[s.booted] = "1"
	for i, commit := range siblings(t, s.m, s.booted) {
		s.numbers[commit] = fmt.Sprint(i + 2)
		s.commits = append(s.commits, commit)
		s.m.Run("ostree", "refs", "--create=lab/"+s.numbers[commit], commit)
	}
	s.m.Run("sh", "-c", "mkdir -p /var/good/usr/share /var/bad/dev; for i in $(seq 200); do echo $i >/var/good/usr/share/good-$i; done; mkfifo /var/bad/dev/fifo")
	overlays(t, s.m, overlay.Operation{Verb: overlay.Create, Name: "own"})
	for i := range rounds {
		t.Run(fmt.Sprint("round ", i+1), func(t *testing.T) {
			before := history(t, s.m.For(t))
			round := s.round(t)
			s.requireRight(t, round, before)
			if t.Failed() {
				for i, a := range round {
					t.Logf("%s: %s", a.command, s.m.For(t).Read(fmt.Sprintf("/run/round/%d.said", i)))
				}
			}
		})
		if t.Failed() {
			t.Fatalf("after %d rounds\n%s", i+1, s.m.Journal("--unit=liveapply*", "--output=short-monotonic", "--lines=150"))
		}
	}
}

// What is refused leaves the request that comes next alone, however soon it comes.
func TestRefusedImageLeavesTheNextOneAlone(t *testing.T) {
	t.Parallel()
	m, _ := productMachine(t, nspawn.Trixie, nspawn.Options{})
	m.Run("sh", "-c", "mkdir -p /var/good/usr/share/good /var/bad/dev; for i in $(seq 4000); do echo $i >/var/good/usr/share/good/$i; done; mkfifo /var/bad/dev/fifo")
	for i := range 6 {
		result := m.Try("sh", "-c", fmt.Sprintf("liveapplyctl overlay import --name=bad /var/bad & sleep 0.0%d; liveapplyctl overlay import --name=good /var/good; code=$?; wait; exit $code", 2*i))
		equal(t, fmt.Sprint("exit status of the good one, ", i, ": ", result.Stderr), result.Code, 0)
		equal(t, "files of the good one", m.Run("sh", "-c", "ls /usr/share/good | wc -l"), "4000")
		m.Run("sh", "-c", `until [ -z "$(systemctl list-jobs --no-legend 'liveapply*')" ]; do sleep 0.05; done`)
		m.Run("liveapplyctl", "overlay", "remove", "good")
	}
}

// A request counts for the start that it was left for: not for one by a ref that leads to the same commit, nor for a later one.
func TestRequestCountsForItsOwnStartAlone(t *testing.T) {
	t.Parallel()
	m, v1 := releaseMachine(t, nspawn.Trixie)
	makeTransient(m)
	v2 := derived(t, m, v1, labRelease("2"))
	v3 := derived(t, m, v2, labRelease("3"))
	m.Run("ostree", "refs", "--create=lab/next", v3)
	m.Write("/etc/liveapply/liveapply.conf", "[Apply]\nTransient=yes\nAllow=additive\n")

	holdAfter := func(phase string) {
		hold(m, phase)
		m.Run("liveapplyctl", "apply", "--no-wait", "--force", v2)
		awaitHeld(m, phase, v2)
	}
	holdAfter("prepare")
	// The one by the ref, which the configuration does not allow, has its turn while the same commit has been asked for with --force, and has not begun.
	byRef := m.Start("systemctl", "start", "liveapply@lab-next.service")
	awaitProperty(m, phaseUnit("prepare", "lab-next"), "StatusText", "waiting for the transaction of "+v2+" to end")
	dropIn(m, phaseUnit("prepare", v3), `ExecStartPre=/bin/sh -c "until [ -e /run/forced ]; do sleep 0.1; done"`)
	forced := m.Start("liveapplyctl", "apply", "--force", v3)
	awaitProperty(m, phaseUnit("prepare", v3), "SubState", "start-pre")
	m.Write("/run/go", "")
	if output, err := byRef.Wait(); err == nil {
		t.Errorf("the one by the ref was applied: %s", output)
	}
	m.Write("/run/forced", "")
	if output, err := forced.Wait(); err != nil {
		t.Errorf("the one with --force: %v: %s", err, output)
	}
	requireLive(t, m, v3)
	removeDropIns(m)
	reset(t, m)

	// One whose start fails does not wait for the next.
	dropIn(m, "liveapply-prepare@.service", "ExecStartPre=/bin/false")
	equal(t, "exit status", m.Try("liveapplyctl", "apply", "--force", v2).Code, exitFailed)
	removeDropIns(m)
	if tryApply(m, v2).Code == 0 {
		t.Error("what was asked for with a start that failed counted for the next one")
	}
	requireSays(t, "the refusal", lastTransaction(t, m).Reason, []string{"additive"})
}

// Who starts the unit once more while phases run, or between two of them, waits for the same end: there is one application, and nothing runs twice.
func TestStartWhileTheSameIsAppliedJoinsIt(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := productMachine(t, suite, nspawn.Options{})
		v2 := derived(t, m, v1, labRelease("2"))
		makeTransient(m)
		for i, phase := range phases {
			const released = "/run/released"
			m.Run("rm", "-f", released)
			dropIn(m, "liveapply-"+phase+"@.service", "ExecStartPost=/bin/sh -c 'until [ -e "+released+" ]; do sleep 0.02; done'")
			m.Run("systemctl", "start", "--no-block", applyUnit(v2))
			awaitHeld(m, phase, v2)
			m.Run("systemctl", "start", "--no-block", applyUnit(v2))
			m.Write(released, "")
			apply(t, m, v2)
			requireLive(t, m, v2)
			equal(t, "transactions that were held in "+phase, len(history(t, m)), 2*i+1)
			equal(t, "result in the history", lastTransaction(t, m).Result, "applied")
			equal(t, "phases that are active", m.Run("systemctl", "list-units", "--no-legend", "--state=active", "liveapply-*@*.service"), "")
			removeDropIns(m)
			reset(t, m)
		}
	})
}

// Who asks for a commit that /usr shows already, but whose application may yet be taken back, waits for its end and has it applied once more; and no wait ends
// because systemd is executed again.
func TestPersonAsksForWhatIsBeingTakenBack(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, labRelease("2"))
	makeTransient(m)
	const released = "/run/released"
	dropIn(m, "liveapply-tmpfiles@.service", "ExecStartPost=/bin/sh -c 'until [ -e "+released+" ]; do sleep 0.02; done; rm "+released+"; false'")
	m.Run("systemctl", "start", "--no-block", applyUnit(v2))
	awaitHeld(m, "tmpfiles", v2)
	asking := m.Start("liveapplyctl", "apply", v2)
	m.Run("sh", "-c", "until ls -l /proc/$(pgrep --newest liveapplyctl)/fd | grep -q inotify; do sleep 0.02; done") // it waits
	release := func() {
		m.Run("systemctl", "daemon-reexec")
		m.Write(released, "")
		waitFor(t, "the phase to go on", func() bool { return !m.Exists(released) })
	}
	release()
	awaitHeld(m, "tmpfiles", v2) // once more, for the one who asks
	release()
	output, err := asking.Wait()
	removeDropIns(m)
	if err == nil || !strings.Contains(output, "tmpfiles") {
		t.Errorf("the one who asked was told (%v) %s", err, output)
	}
	equal(t, "live commit", status(t, m).Live, v1)
	m.Run("liveapplyctl", "apply", v2)
	requireLive(t, m, v2)
	equal(t, "liveapplyctl apply of what is live", m.Try("liveapplyctl", "apply", v2).Code, exitNothing)
}
