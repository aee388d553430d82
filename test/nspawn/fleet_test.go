//go:build nspawn

package nspawn_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/liveapply/liveapply/test/nspawn"
)

// fleetAddress is where each machine finds the lock server, in a network of its own.
const fleetAddress = "127.0.0.1:7077"

// fleetConfiguration has a machine take a slot.
const fleetConfiguration = "[Auto]\nApply=replace\nFleetLock=http://" + fleetAddress + "/base\nFleetLockGroup=workers\n"

const (
	fleetLock    = "liveapply-fleetlock.service"
	fleetRelease = "liveapply-fleetlock-release.service"
)

// fleet is a lock server with one slot, and its machines.
type fleet struct {
	t        *testing.T
	machines []*nspawn.Machine
	file     string    // of the server: who holds the slot
	program  string    // the server's
	server   *exec.Cmd // nil while the server is away
}

// newFleet boots machines that share one slot. The server is away.
func newFleet(t *testing.T, suite nspawn.Suite, machines int) (f *fleet, commit string) {
	t.Helper()
	dir := t.TempDir()
	f = &fleet{t: t, file: filepath.Join(dir, "holders"), program: filepath.Join(dir, "fleetlock")}
	if output, err := exec.Command("go", "build", "-o", f.program, "./fleetlock").CombinedOutput(); err != nil {
		t.Fatalf("building the lock server: %v\n%s", err, output)
	}
	for range machines {
		var m *nspawn.Machine
		m, commit = automaticMachine(t, suite, fleetConfiguration)
		f.machines = append(f.machines, m)
	}
	t.Cleanup(f.kill)
	return f, commit
}

// start starts the server, which all machines that are on can reach.
func (f *fleet) start(mode ...string) {
	f.t.Helper()
	f.kill()
	f.server = exec.Command(f.program, append([]string{f.file, "workers", "1", strconv.Itoa(len(f.machines))}, mode...)...)
	for _, m := range f.machines {
		listener := m.Listen(fleetAddress)
		file, err := listener.(*net.TCPListener).File()
		if err != nil {
			f.t.Fatal(err)
		}
		// Only the server keeps it open: when that is killed, nobody listens.
		listener.Close()
		defer file.Close()
		f.server.ExtraFiles = append(f.server.ExtraFiles, file)
	}
	f.server.Stderr = os.Stderr
	if err := f.server.Start(); err != nil {
		f.t.Fatal(err)
	}
}

// kill ends the server, at once.
func (f *fleet) kill() {
	if f.server != nil {
		f.server.Process.Kill()
		f.server.Wait()
	}
	f.server = nil
}

// awaitDeath waits for a server that was started with die-after-write.
func (f *fleet) awaitDeath() {
	f.t.Helper()
	ended := make(chan struct{})
	go func(server *exec.Cmd) { server.Wait(); close(ended) }(f.server)
	select {
	case <-ended:
		f.server = nil
	case <-time.After(5 * time.Minute):
		f.t.Fatal("nobody had the lock server change its file")
	}
}

// holder is who holds the slot.
func (f *fleet) holder() string {
	f.t.Helper()
	content, err := os.ReadFile(f.file)
	if err != nil && !os.IsNotExist(err) {
		f.t.Fatal(err)
	}
	return strings.TrimSpace(string(content))
}

// id is what a machine is called by the protocol.
func fleetID(m *nspawn.Machine) string {
	return m.Run("systemd-id128", "machine-id", "--app-specific=08296e0d11e54fd4acba49b0a2cd6899")
}

func (f *fleet) awaitHolder(m *nspawn.Machine) {
	f.t.Helper()
	waitFor(f.t, "a machine to hold the slot", func() bool { return f.holder() == fleetID(m) })
}

func (f *fleet) awaitReleased() {
	f.t.Helper()
	waitFor(f.t, "the slot to be given back", func() bool { return f.holder() == "" })
}

// awaitSays waits until liveapplyctl status and a unit's journal say something of the slot.
func awaitSays(t *testing.T, m *nspawn.Machine, unit, want string) {
	t.Helper()
	waitFor(t, unit+" to say "+want, func() bool {
		return strings.Contains(m.Run("liveapplyctl", "status"), want) &&
			strings.Contains(m.Journal("--unit="+unit, "--output=cat"), want)
	})
}

// during returns when the last transaction of a machine began and ended.
func during(t *testing.T, m *nspawn.Machine) (begin, end time.Time) {
	t.Helper()
	all := history(t, m)
	phases := all[len(all)-1].Phases
	parse := func(s string) time.Time {
		at, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	last := phases[len(phases)-1]
	return parse(phases[0].Started), parse(last.Started).Add(time.Duration(last.Seconds * float64(time.Second)))
}

const waitsForSlot = "waiting for a slot of http://" + fleetAddress + "/base (group workers): the server "

func TestMachinesOfAFleetApplyOneAfterTheOther(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		f, v1 := newFleet(t, suite, 2)
		first, second := f.machines[0], f.machines[1]
		v2 := adds(t, first, v1, "two")
		second.Pull(v2)
		hold(first, "prepare")
		f.start()

		first.Stage(v2)
		awaitHeld(first, "prepare", v2)
		equal(t, "holder", f.holder(), fleetID(first))
		requireSays(t, "liveapplyctl status", first.Run("liveapplyctl", "status"), []string{"holds a slot of "})
		second.Stage(v2)
		awaitSays(t, second, fleetLock, waitsForSlot+"answers 409 Conflict: semaphore currently full, all slots are locked already (failed_lock_semaphore_full)")

		// Without the server, nobody gets a slot, and nobody loses one. What has begun goes on.
		f.kill()
		awaitSays(t, second, fleetLock, waitsForSlot+"does not answer: ")
		first.Write("/run/go", "")
		awaitLive(t, first, v2)
		awaitSays(t, first, fleetRelease, "keeping a slot of http://"+fleetAddress+"/base (group workers): the server does not answer: ")
		equal(t, "holder", f.holder(), fleetID(first))
		equal(t, "live on the second", status(t, second).Live, v1)
		equal(t, "liveapply-fleetlock.service of the second", second.Try("systemctl", "is-active", fleetLock).Stdout, "activating")

		f.start()
		awaitLive(t, second, v2)
		f.awaitReleased()
		_, end := during(t, first)
		if begin, _ := during(t, second); begin.Before(end) {
			t.Errorf("the second began at %v, before the first had ended at %v", begin, end)
		}
		for _, m := range f.machines {
			requireNoneFailed(t, m)
			for _, unit := range []string{fleetLock, fleetRelease} {
				waitFor(t, unit+" to end", func() bool { return m.Try("systemctl", "is-active", unit).Stdout == "inactive" })
			}
		}
	})
}

// It is killed between what it does and what it says, both times.
func TestAnswersOfTheLockServerAreLost(t *testing.T) {
	t.Parallel()
	f, v1 := newFleet(t, nspawn.Trixie, 2)
	first, second := f.machines[0], f.machines[1]
	v2 := adds(t, first, v1, "two")
	second.Pull(v2)
	hold(first, "prepare")
	f.start("die-after-write")
	first.Stage(v2)
	f.awaitDeath()
	equal(t, "holder", f.holder(), fleetID(first))
	// Within a second it asks again, and the status is about that.
	waitFor(t, "the journal to say that there was no answer", func() bool {
		return strings.Contains(first.Journal("--unit="+fleetLock, "--output=cat"), waitsForSlot+"does not answer: EOF")
	})
	awaitSays(t, first, fleetLock, waitsForSlot+"does not answer: ")
	second.Stage(v2)
	f.start("die-after-write")
	awaitHeld(first, "prepare", v2)
	awaitSays(t, second, fleetLock, waitsForSlot+"answers 409 Conflict")
	first.Write("/run/go", "")
	awaitLive(t, first, v2)
	f.awaitDeath()
	equal(t, "holder", f.holder(), "")
	f.start()
	awaitLive(t, second, v2)
	f.awaitReleased()
}

// Who asked was killed before the answer came.
func TestSlotThatNobodyKnowsOfIsGivenBack(t *testing.T) {
	t.Parallel()
	f, v1 := newFleet(t, nspawn.Trixie, 1)
	m := f.machines[0]
	v2 := adds(t, m, v1, "two")
	f.start("die-after-write")
	m.Stage(v2)
	f.awaitDeath()
	equal(t, "holder", f.holder(), fleetID(m))
	m.Run("systemctl", "kill", "--signal=SIGKILL", fleetLock)
	waitFor(t, "liveapply-staged.service to fail", func() bool {
		return m.Try("systemctl", "is-failed", "liveapply-staged.service").Stdout == "failed"
	})
	f.start()
	f.awaitReleased()
	equal(t, "live", status(t, m).Live, v1)
	equal(t, "warnings of systemd", m.Journal("--unit="+fleetRelease, "--priority=warning", "_PID=1"), "")
	m.Run("systemctl", "start", "liveapply-staged.service")
	awaitLive(t, m, v2)
	f.awaitReleased()
}

func TestServerThatIsAwayAtFirst(t *testing.T) {
	t.Parallel()
	f, v1 := newFleet(t, nspawn.Trixie, 1)
	m := f.machines[0]
	m.Run("systemctl", "stop", fleetRelease) // of the boot
	v2, v3 := adds(t, m, v1, "two"), adds(t, m, v1, "three")
	m.Stage(v2)
	awaitSays(t, m, fleetLock, waitsForSlot+"does not answer: dial tcp "+fleetAddress+": connect: connection refused")
	equal(t, "liveapply-staged.service", m.Try("systemctl", "is-active", "liveapply-staged.service").Stdout, "activating")
	m.Stage(v3) // what is staged when there is a slot counts
	f.start()
	awaitLive(t, m, v3)
	equal(t, "history", results(t, m), byItself("applied", v3))
	f.awaitReleased()
	requireNoneFailed(t, m)
}

func TestSlotIsGivenBackAfterAFailure(t *testing.T) {
	t.Parallel()
	f, v1 := newFleet(t, nspawn.Trixie, 1)
	m := f.machines[0]
	for name, edit := range map[string]func(*nspawn.Tree){
		"refused": func(tree *nspawn.Tree) { tree.Remove("usr/bin/true") },
		"rolled back": func(tree *nspawn.Tree) {
			tree.Write("usr/lib/sysusers.d/spoilt.conf", "u spoilt-user not-a-number\n", 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := m.For(t)
			commit := derived(t, m, v1, edit)
			f.start("die-after-write") // so that it is seen that there was a slot
			m.Stage(commit)
			f.awaitDeath()
			equal(t, "holder", f.holder(), fleetID(m))
			f.start()
			awaitStays(t, m, commit, "it was "+name+" before: ")
			f.awaitReleased()
			m.Run("systemctl", "reset-failed")
		})
	}
}

func TestPowerCutWhileASlotIsHeld(t *testing.T) {
	t.Parallel()
	f, v1 := newFleet(t, nspawn.Trixie, 1)
	m := f.machines[0]
	v2 := adds(t, m, v1, "two")
	hold(m, "prepare")
	f.start()
	m.Stage(v2)
	awaitHeld(m, "prepare", v2)
	equal(t, "holder", f.holder(), fleetID(m))
	m.PowerCut()
	f.kill()
	// The server is away, and the boot does not wait for it.
	m.Boot()
	equal(t, "system state", m.Run("systemctl", "is-system-running"), "running")
	awaitSays(t, m, fleetRelease, "keeping a slot of ")
	f.awaitHolder(m)
	f.start()
	f.awaitReleased()
	requireNoneFailed(t, m)
}

// What runs liveapply-staged.service is killed. Its transaction goes on, and has the slot until it has ended.
func TestSlotIsHeldUntilTheTransactionHasEnded(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		f, v1 := newFleet(t, suite, 1)
		m := f.machines[0]
		v2 := adds(t, m, v1, "two")
		hold(m, "prepare")
		f.start()
		m.Stage(v2)
		awaitHeld(m, "prepare", v2)
		m.Run("systemctl", "kill", "--signal=SIGKILL", "liveapply-staged.service")
		waitFor(t, "the slot to be about to be given back", func() bool {
			return m.Try("systemctl", "is-active", fleetRelease).Stdout == "active" && m.Try("systemctl", "is-active", fleetLock).Stdout == "inactive"
		})
		equal(t, "holder", f.holder(), fleetID(m))
		m.Write("/run/go", "")
		awaitLive(t, m, v2)
		f.awaitReleased()
	})
}

func TestUnhealthyMachineKeepsTheSlot(t *testing.T) {
	t.Parallel()
	f, v1 := newFleet(t, nspawn.Trixie, 1)
	m := f.machines[0]
	f.start()
	fail := func(unit string) {
		m.Try("systemd-run", "--unit="+unit, "--wait", "false")
		equal(t, unit, m.Try("systemctl", "is-failed", unit).Stdout, "failed")
	}
	fail("broken-before.service")
	v2 := adds(t, m, v1, "two")
	hold(m, "prepare")
	m.Stage(v2)
	awaitHeld(m, "prepare", v2)
	fail("broken-by-it.service")
	m.Write("/run/go", "")
	awaitLive(t, m, v2)
	awaitSays(t, m, fleetRelease, "since it was taken, units have failed: broken-by-it.service")
	equal(t, "holder", f.holder(), fleetID(m))
	m.Run("systemctl", "reset-failed", "broken-by-it.service")
	f.awaitReleased()
	equal(t, "broken-before.service", m.Try("systemctl", "is-failed", "broken-before.service").Stdout, "failed")
}

func TestServerThatRefusesIsAFailure(t *testing.T) {
	t.Parallel()
	f, v1 := newFleet(t, nspawn.Trixie, 1)
	m := f.machines[0]
	f.start()
	m.Write("/etc/liveapply/liveapply.conf", strings.Replace(fleetConfiguration, "workers", "others", 1))
	v2 := adds(t, m, v1, "two")
	m.Stage(v2)
	waitFor(t, "liveapply-staged.service to fail", func() bool {
		return m.Try("systemctl", "is-failed", "liveapply-staged.service").Stdout == "failed"
	})
	const reason = `the server answers 400 Bad Request: there is no group "others" (unknown_group)`
	requireSays(t, "the journal", m.Journal("--unit=liveapply-staged.service"), []string{reason})
	awaitSays(t, m, fleetLock, reason)
	equal(t, "live", status(t, m).Live, v1)
	equal(t, "holder", f.holder(), "")

	// Where it is set right, it is for the next time.
	m.Write("/etc/liveapply/liveapply.conf", fleetConfiguration)
	m.Run("systemctl", "start", "liveapply-staged.service")
	awaitLive(t, m, v2)
	f.awaitReleased()
}
