//go:build nspawn

package nspawn_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// footprint is what may grow with the number of transactions, at a moment without one.
type footprint struct {
	state   []string // see stateOf
	units   int      // that systemd has loaded
	journal int64    // bytes of the journal of etc, 0 if there is none
	memory  int      // KiB that process 1 has for itself
}

func footprintOf(t *testing.T, m *nspawn.Machine, booted string) footprint {
	t.Helper()
	awaitEnd(m) // nobody waits for liveapply-needs-restart.service, which is loaded as long as it runs
	f := footprint{
		state: stateOf(t, m),
		units: strings.Count(m.Run("systemctl", "list-units", "--all", "--plain", "--no-legend"), "\n") + 1,
	}
	if info, err := os.Stat(backing(m, booted, "etc/journal.json")); err == nil {
		f.journal = info.Size()
	}
	for line := range strings.Lines(m.Read("/proc/1/status")) {
		if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &f.memory); err == nil {
			break
		}
	}
	if f.memory == 0 {
		t.Fatal("/proc/1/status does not tell the memory of process 1")
	}
	return f
}

// memoryNoise is by how many KiB the memory of process 1 may differ for other reasons.
const memoryNoise = 1024

// requireNoGrowth compares the footprint with what it was half of the transactions before, in the same state.
func requireNoGrowth(t *testing.T, half, now footprint) {
	t.Helper()
	t.Logf("half way %d units, journal of %d bytes, process 1 %d KiB; now %d, %d, %d",
		half.units, half.journal, half.memory, now.units, now.journal, now.memory)
	requireSameState(t, facts{state: half.state}, now.state)
	if now.units > half.units {
		t.Errorf("%d units are loaded, half way it were %d", now.units, half.units)
	}
	if now.journal > half.journal {
		t.Errorf("the journal of etc has %d bytes, half way it had %d", now.journal, half.journal)
	}
	if now.memory > half.memory+memoryNoise {
		t.Errorf("process 1 has %d KiB, half way it had %d", now.memory, half.memory)
	}
}

// siblings are commits none of which is older than another.
func siblings(t *testing.T, m *nspawn.Machine, booted string) []string {
	t.Helper()
	var commits []string
	for _, number := range []string{"2", "3", "4"} {
		commits = append(commits, derived(t, m, booted, labRelease(number)))
	}
	return commits
}

func TestTwoAdministratorsAtOnceLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	m, v1 := releaseMachine(t, nspawn.Trixie)
	commits := siblings(t, m, v1)
	before := factsOf(t, m)

	var half footprint
	transactions := sampled(30, 200)
	for i := range 2 {
		var administrators sync.WaitGroup
		for range 2 {
			own := rand.New(rand.NewPCG(random.Uint64(), 0))
			administrators.Add(1)
			go func() {
				defer administrators.Done()
				administer(t, m, own, commits, transactions/4)
			}()
		}
		administrators.Wait()
		for _, entry := range history(t, m) {
			if entry.Result != "applied" && entry.Result != "reset" {
				t.Errorf("the history has %+v", entry)
			}
		}
		reset(t, m)
		requireSame(t, m, before)
		if now := footprintOf(t, m, v1); i == 0 {
			half = now
		} else {
			requireNoGrowth(t, half, now)
		}
	}
}

// administer applies commits and resets, at random. Each has to succeed, whoever else does something at that time.
func administer(t *testing.T, m *nspawn.Machine, random *rand.Rand, commits []string, times int) {
	for range times {
		unit := "liveapply-reset.service"
		if i := random.IntN(len(commits) + 1); i < len(commits) {
			unit = applyUnit(commits[i])
		}
		if result := m.Try("systemctl", "start", unit); result.Code != 0 {
			t.Errorf("systemctl start %s: exit status %d\n%s\n%s", unit, result.Code, result.Stderr,
				m.Try("systemctl", "status", "--full", "--no-pager", unit).Stdout)
		}
	}
}

// Without a reset in between, too: the journal of etc has what was there before the first of them, however many there are.
func TestApplicationsInARowDoNotAddUp(t *testing.T) {
	t.Parallel()
	m, v1 := releaseMachine(t, nspawn.Trixie)
	commits := siblings(t, m, v1)
	before := factsOf(t, m)

	var half footprint
	rounds := sampled(6, 66)
	for i := range rounds {
		for _, commit := range commits {
			apply(t, m, commit)
		}
		if i == rounds/2 {
			half = footprintOf(t, m, v1)
		}
	}
	requireNoGrowth(t, half, footprintOf(t, m, v1))
	reset(t, m)
	requireSame(t, m, before)
}
