//go:build nspawn

package nspawn_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// shortage is something of which a filesystem has no more.
type shortage struct {
	name string
	make func(t *testing.T, m *nspawn.Machine)
}

const filled = "/var/filled"

var shortages = []shortage{
	{"blocks", func(t *testing.T, m *nspawn.Machine) {
		fs := fileSystemOf(t, m)
		m.Run("mkdir", filled)
		m.Run("fallocate", fmt.Sprintf("--length=%d", int64(fs.Bavail)*fs.Bsize-1<<20), filled+"/most")
		// Not by blocks that are promised only, and given back.
		m.Run("sh", "-c", "dd if=/dev/zero of="+filled+"/rest bs=64k oflag=direct || dd if=/dev/zero of="+filled+"/last bs=4k oflag=sync || sync --file-system "+filled)
		if free := fileSystemOf(t, m).Bavail; free > 8 {
			t.Fatalf("%d blocks are free", free)
		}
	}},
	{"inodes", func(t *testing.T, m *nspawn.Machine) {
		m.Run("mkdir", filled)
		m.Run("sh", "-c", fmt.Sprintf("cd %s && seq %d | xargs touch", filled, fileSystemOf(t, m).Ffree))
		equal(t, "free inodes", fileSystemOf(t, m).Ffree, 0)
	}},
}

// hungry makes release 2, whose layer and whose defaults of /etc need blocks and inodes.
func hungry(tree *nspawn.Tree) {
	labRelease("2")(tree)
	for i := range 300 {
		tree.Write(fmt.Sprintf("usr/share/hungry/%d/file", i), "1", 0o644)
		tree.Write(fmt.Sprintf("usr/etc/hungry/%d", i), strings.Repeat(fmt.Sprintln(i), 2000), 0o644)
	}
}

// stopAt makes the helper of a phase stop at its n-th call of some kind, and go on when there is /run/go. strace counts per thread, and
// those of its children, so that it stops more often.
func stopAt(m *nspawn.Machine, phase, call string, n int) {
	m.Run("rm", "-f", "/run/go", "/run/trace")
	m.Write("/run/stop-at", `strace -f -o /run/trace -e trace=$1 -e inject=$1:signal=SIGSTOP:when=$2 "$3" "$4" "$5" &
until [ -e /run/go ]; do sleep 0.02; done
while pgrep --parent $! >/dev/null; do kill -CONT 0; sleep 0.02; done
wait $!
`)
	dropIn(m, "liveapply-"+phase+"@.service", fmt.Sprintf("SystemCallFilter=\nExecStart=\nExecStart=/bin/sh /run/stop-at %s %d %s %s %%I", call, n, helper, phase))
}

// awaitStop waits until the helper has been stopped.
func awaitStop(m *nspawn.Machine) {
	m.Run("sh", "-c", "until grep -q -e '--- SIGSTOP' -e 'stopped by SIGSTOP' /run/trace; do sleep 0.02; done")
}

// The filesystem has room for the commit when prepare looks, and none any more at a later instant.
func TestDiskThatFillsUpMeanwhile(t *testing.T) {
	t.Parallel()
	v1 := lab.Derive(t, product(t, nspawn.Trixie), labRelease("1"))
	v2 := lab.Derive(t, v1, hungry)
	m := smallMachine(t, v1, v2)
	makeTransient(m) // libostree needs more to stage a deployment than liveapply does itself
	before := factsOf(t, m)

	for j, shortage := range shortages {
		for i, fills := range []struct {
			when, phase, call string
			n                 int
		}{
			{"while the layer is built", "prepare", "linkat", 5},
			{"before etc", "etc", "openat", 1},
			{"while etc writes new files", "etc", "fchown", 20},
			{"before tmpfiles", "tmpfiles", "openat", 1},
			{"before record", "record", "openat", 1},
		} {
			if !isExhaustive() && i%2 != j {
				continue
			}
			t.Run(shortage.name+" "+fills.when, func(t *testing.T) {
				m := m.For(t)
				stopAt(m, fills.phase, fills.call, fills.n)
				applying := m.Start("liveapplyctl", "apply", v2)
				awaitStop(m)
				shortage.make(t, m)
				m.Write("/run/go", "")
				output, err := applying.Wait()
				m.Run("rm", "-r", filled)
				removeDropIns(m)
				if err == nil || !strings.Contains(strings.ToLower(output), "no space left on device") {
					t.Errorf("liveapplyctl says (%v), want that no space is left:\n%s", err, output)
				}
				requireSame(t, m, before)
				// With room again, it goes.
				apply(t, m, v2)
				requireUsrIs(t, m, v2)
				reset(t, m)
				requireSame(t, m, before)
			})
			if t.Failed() {
				return
			}
		}
	}
}

// What was applied can be taken back without any room.
func TestResetOnAFullDisk(t *testing.T) {
	t.Parallel()
	v1 := lab.Derive(t, product(t, nspawn.Trixie), labRelease("1"))
	v2 := lab.Derive(t, v1, hungry)
	m := smallMachine(t, v1, v2)
	makeTransient(m)
	before := factsOf(t, m)
	for _, shortage := range shortages {
		t.Run(shortage.name, func(t *testing.T) {
			m := m.For(t)
			apply(t, m, v2)
			shortage.make(t, m)
			m.Run("liveapplyctl", "reset")
			m.Run("rm", "-r", filled)
			requireSame(t, m, before)
		})
		if t.Failed() {
			return
		}
	}
}
