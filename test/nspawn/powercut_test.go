//go:build nspawn

package nspawn_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/liveapply/liveapply/test/nspawn"
)

// isExhaustive tells whether the fault tests run whole, which takes longer than CI has: it runs a sample.
func isExhaustive() bool { return os.Getenv("LIVEAPPLY_TEST_EXHAUSTIVE") != "" }

// part is which part of all cases runs, the K-th of N by LIVEAPPLY_TEST_EXHAUSTIVE=K/N; the first of one with any other value, and in a sample.
func part() (k, n int) {
	if _, err := fmt.Sscanf(os.Getenv("LIVEAPPLY_TEST_EXHAUSTIVE"), "%d/%d", &k, &n); err != nil || k < 1 || k > n {
		return 1, 1
	}
	return k, n
}

// inPart takes of all cases those of the part: each N-th, beginning with the K-th.
func inPart[T any](all []T) (some []T) {
	k, n := part()
	for i := k - 1; i < len(all); i += n {
		some = append(some, all[i])
	}
	return some
}

// isPart tells whether there are other parts, which may have all cases of a kind.
func isPart() bool {
	_, n := part()
	return n > 1
}

// sampled is how many of the cases of a fault test run.
func sampled(sample, all int) int {
	if isExhaustive() {
		return all
	}
	return sample
}

// seeded returns random numbers that can be had again: the seed is in the log, and LIVEAPPLY_TEST_SEED gives it.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if given := os.Getenv("LIVEAPPLY_TEST_SEED"); given != "" {
		if _, err := fmt.Sscan(given, &seed); err != nil {
			t.Fatalf("LIVEAPPLY_TEST_SEED=%s: %v", given, err)
		}
	}
	t.Logf("LIVEAPPLY_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// instants draws one instant out of each of n equal parts of a duration.
func instants(random *rand.Rand, n int, whole time.Duration) []time.Duration {
	var drawn []time.Duration
	for i := range n {
		drawn = append(drawn, time.Duration((float64(i)+random.Float64())/float64(n)*float64(whole)))
	}
	return drawn
}

// measured is how long something takes.
func measured(do func()) time.Duration {
	begin := time.Now()
	do()
	return time.Since(begin)
}

// outage is a machine that loses power again and again, and what it has to be like after each boot.
type outage struct {
	booted string
	before facts
}

// newOutage boots a machine that is in release 1.
func newOutage(t *testing.T, suite nspawn.Suite) (*outage, *nspawn.Machine) {
	t.Helper()
	o := &outage{booted: lab.Derive(t, product(t, suite), labRelease("1"))}
	m := lab.Machine(t, o.booted, nspawn.Options{})
	m.Boot()
	o.before = factsOf(t, m)
	return o, m
}

// edit is what the administrator does, and wants to find again: a file of their own, and a default.
func (o *outage) edit(m *nspawn.Machine, content string) {
	o.write(m, "lab/own", content)
	o.write(m, "lab/edited", content)
}

func (o *outage) write(m *nspawn.Machine, path, content string) {
	m.Write("/etc/"+path, content)
	o.before.etc[path] = m.Snapshot("/etc/" + path)["."]
}

// cutAndBoot cuts the power. The machine comes up as it was before, with what the administrator has edited.
func (o *outage) cutAndBoot(t *testing.T, m *nspawn.Machine) {
	t.Helper()
	m.PowerCut()
	m.Boot()
	equal(t, "booted commit", m.BootedCommit(), o.booted)
	o.requireAsBefore(t, m)
}

func (o *outage) requireAsBefore(t *testing.T, m *nspawn.Machine) {
	t.Helper()
	equal(t, "system state", m.Try("systemctl", "is-system-running").Stdout, "running")
	m.Run("ostree", "admin", "cleanup") // of what libostree itself leaves of a staged deployment
	requireSameAfterBoot(t, m, o.before)
}

// requireApplies makes sure that nothing is in the way of the next application.
func (o *outage) requireApplies(t *testing.T, m *nspawn.Machine, commit string) {
	t.Helper()
	apply(t, m, commit)
	requireLive(t, m, commit)
	requireUsrIs(t, m, commit)
	reset(t, m)
	requireSameAfterBoot(t, m, o.before)
}

func TestPowerCutTakesEverythingBack(t *testing.T) {
	t.Parallel()
	eachSuite(t, testPowerCuts)
}

func testPowerCuts(t *testing.T, suite nspawn.Suite) {
	o, m := newOutage(t, suite)
	v2 := derived(t, m, o.booted, labRelease("2"))
	v3 := derived(t, m, v2, labRelease("3"))

	for _, phase := range phases {
		t.Run("after "+phase, func(t *testing.T) {
			m := m.For(t)
			holdAfter(t, m, phase, v2)
			o.edit(m, t.Name())
			o.cutAndBoot(t, m)
		})
	}
	t.Run("while live", func(t *testing.T) {
		m := m.For(t)
		apply(t, m, v2)
		apply(t, m, v3)
		requireLive(t, m, v3)
		o.edit(m, t.Name())
		o.cutAndBoot(t, m)
	})
	t.Run("during the reset", func(t *testing.T) {
		m := m.For(t)
		apply(t, m, v2)
		dropIn(m, "liveapply-reset.service", "ExecStartPost=/bin/sleep infinity")
		m.Run("systemctl", "start", "--no-block", "liveapply-reset.service")
		awaitProperty(m, "liveapply-reset.service", "SubState", "start-post")
		o.edit(m, t.Name())
		o.cutAndBoot(t, m)
	})
	// A transient application has the commit stay in the repo before it makes anything else.
	t.Run("when there was a ref alone", func(t *testing.T) {
		m := m.For(t)
		m.Run("ostree", "refs", "--create=liveapply/next", v2)
		o.cutAndBoot(t, m)
	})
	t.Run("and then an application works", func(t *testing.T) {
		o.requireApplies(t, m.For(t), v2)
	})
}

// The instants are anywhere, whatever the machine is doing then. The administrator edits a default just before the power goes.
func TestPowerCutAtAnyInstantTakesEverythingBack(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	o, m := newOutage(t, nspawn.Trixie)
	v2 := derived(t, m, o.booted, labRelease("2"))
	v3 := derived(t, m, v2, labRelease("3"))
	applying := measured(func() { apply(t, m, v2) })
	switching := measured(func() { apply(t, m, v3) })
	resetting := measured(func() { reset(t, m) })

	cut := func(t *testing.T, m *nspawn.Machine, instant time.Duration, unit string) {
		t.Helper()
		o.write(m, "lab/own", t.Name())
		m.Run("systemctl", "start", "--no-block", unit)
		time.Sleep(instant)
		o.write(m, "lab/edited", t.Name())
		o.cutAndBoot(t, m)
		o.write(m, "lab/edited", "1\n") // the default again, for the next application to change
	}
	for i, instant := range instants(random, sampled(8, 50), applying) {
		t.Run(fmt.Sprintf("apply/%d after %v", i, instant), func(t *testing.T) {
			cut(t, m.For(t), instant, applyUnit(v2))
		})
	}
	for i, instant := range instants(random, sampled(3, 10), switching) {
		t.Run(fmt.Sprintf("apply onto a live commit/%d after %v", i, instant), func(t *testing.T) {
			m := m.For(t)
			apply(t, m, v2)
			cut(t, m, instant, applyUnit(v3))
		})
	}
	for i, instant := range instants(random, sampled(3, 10), resetting) {
		t.Run(fmt.Sprintf("reset/%d after %v", i, instant), func(t *testing.T) {
			m := m.For(t)
			apply(t, m, v3)
			cut(t, m, instant, "liveapply-reset.service")
		})
	}
	o.requireApplies(t, m, v2)
}

// Which deployment a machine comes up in that lost power while it went down, libostree decides. The /etc that belongs to the new one is
// what libostree merges from the administrator's own, not from the live one.
func TestPowerCutDuringShutdownLeadsToTheOldOrTheNewDeployment(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	o, m := newOutage(t, nspawn.Trixie)
	target := derived(t, m, o.booted, labRelease("2"))
	apply(t, m, target)
	goingDown := measured(m.PowerOff) * 5 / 4 // it takes longer at times, and its end is what matters
	m.Boot()
	o.booted, o.before = target, factsOf(t, m)

	came := map[string]int{}
	for i, instant := range instants(random, sampled(3, 10), goingDown) {
		verb := []string{"reboot", "poweroff"}[i%2]
		t.Run(fmt.Sprintf("%s/%d after %v", verb, i, instant), func(t *testing.T) {
			m := m.For(t)
			target := derived(t, m, o.booted, labRelease(fmt.Sprint(i+3)))
			o.edit(m, t.Name())
			want := etcOfDeployment(t, m, target)
			o.before.state = stateOf(t, m) // without the deployment that this has replaced
			apply(t, m, target)
			if asked := m.Try("systemctl", "--no-block", verb); asked.Code > 0 { // what goes down may end it before it can report success
				t.Fatalf("systemctl %s: %s", verb, asked.Stderr)
			}
			time.Sleep(instant)
			m.PowerCut()
			m.Boot()
			if m.BootedCommit() == o.booted {
				came["old"]++
				o.requireAsBefore(t, m)
				return
			}
			came["new"]++
			equal(t, "booted commit", m.BootedCommit(), target)
			requireUsrIs(t, m, target)
			requireTree(t, "/etc", withoutAccounts(m.Snapshot("/etc")), withoutAccounts(want))
			requireNothingLeft(t, m)
			o.booted, o.before = target, factsOf(t, m)
		})
	}
	t.Logf("the machine came up in the old deployment %d times, in the new one %d times", came["old"], came["new"])
	o.requireApplies(t, m, derived(t, m, o.booted, labRelease("the-last")))
}

// withoutAccounts leaves out what systemd-sysusers does at a boot.
func withoutAccounts(etc nspawn.Snapshot) nspawn.Snapshot {
	accounts := []string{".updated", ".pwd.lock"}
	for _, name := range []string{"passwd", "group", "shadow", "gshadow"} {
		accounts = append(accounts, name, name+"-")
	}
	return etc.Without(accounts...)
}
