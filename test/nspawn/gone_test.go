//go:build nspawn

package nspawn_test

import (
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// loss is what others may do to a commit that is live.
type loss struct {
	name string
	do   func(t *testing.T, m *nspawn.Machine, r *releases)
	next func(r *releases) string // the commit of the next boot
}

var losses = []loss{
	{"its deployment removed", undeployLive, booted},
	{"its ref deleted", func(_ *testing.T, m *nspawn.Machine, r *releases) { deleteRefs(m, "test/"+r.live[:12]) }, live},
	{"the ref of what is live deleted", func(_ *testing.T, m *nspawn.Machine, _ *releases) { deleteRefs(m, "liveapply/live") }, live},
	{"its objects pruned", pruneLive, booted},
	{"a newer deployment staged", func(_ *testing.T, m *nspawn.Machine, r *releases) { m.Stage(r.other) }, other},
	{"all of it", func(t *testing.T, m *nspawn.Machine, r *releases) {
		pruneLive(t, m, r)
		m.Stage(r.other)
	}, other},
}

func undeployLive(t *testing.T, m *nspawn.Machine, r *releases) {
	t.Helper()
	m.Run("ostree", "admin", "undeploy", "0")
	if list := m.Run("ostree", "admin", "status"); strings.Contains(list, "debian "+r.live) {
		t.Fatalf("the deployment is still there:\n%s", list)
	}
}

func deleteRefs(m *nspawn.Machine, refs ...string) {
	m.Run("ostree", append([]string{"refs", "--repo=/sysroot/ostree/repo", "--delete"}, refs...)...)
}

// pruneLive takes the live commit out of the repo, by all that keeps it there.
func pruneLive(t *testing.T, m *nspawn.Machine, r *releases) {
	t.Helper()
	undeployLive(t, m, r)
	deleteRefs(m, "test/"+r.live[:12], "liveapply/live")
	pruned := m.Run("ostree", "prune", "--repo=/sysroot/ostree/repo", "--refs-only", "--depth=0")
	if m.Try("ostree", "show", "--repo=/sysroot/ostree/repo", r.live).Code == 0 {
		t.Fatalf("the commit is still there after ostree prune:\n%s", pruned)
	}
}

func TestUsrStaysWholeWhateverHappensToTheLiveCommit(t *testing.T) {
	t.Parallel()
	m, r := newReleases(t)
	whole := treeOf(t, r.live)
	for _, loss := range losses {
		t.Run(loss.name, func(t *testing.T) {
			m := m.For(t)
			m.Pull(r.live)
			apply(t, m, r.live)
			etc := m.Snapshot("/etc")
			loss.do(t, m, r)
			requireTree(t, "/usr", m.Snapshot("/usr"), whole)
			requireTree(t, "/etc", m.Snapshot("/etc"), etc)
			equal(t, "live commit", status(t, m).Live, r.live)
			m.Run("systemctl", "daemon-reload")

			reset(t, m)
			requireTree(t, "/usr", m.Snapshot("/usr"), r.before.usr)
			requireTree(t, "/etc", m.Snapshot("/etc"), r.before.etc)
			requireNothingLeft(t, m)
			if loss.next(r) == r.other { // somebody else has staged it
				m.Run("ostree", "admin", "undeploy", "0")
			}
			requireSame(t, m, r.before)
		})
		if t.Failed() {
			return
		}
	}
}

func TestRebootWhateverHappensToTheLiveCommit(t *testing.T) {
	t.Parallel()
	for _, loss := range losses {
		if !isExhaustive() && loss.name != "all of it" {
			continue
		}
		t.Run(loss.name, func(t *testing.T) {
			m, r := newReleases(t)
			next, want := loss.next(r), r.before.etc
			if next != r.booted {
				want = etcOfDeployment(t, m, next)
			}
			apply(t, m, r.live)
			loss.do(t, m, r)
			m.Reboot()
			equal(t, "booted commit", m.BootedCommit(), next)
			requireUsrIs(t, m, next)
			requireTree(t, "/etc", withoutAccounts(m.Snapshot("/etc")), withoutAccounts(want))
			requireNothingLeft(t, m)
		})
	}
}

// Without the live commit it is not known which of /etc are its defaults. It can be had again, or is not needed any more after a reset.
func TestAnotherCommitIsRefusedWhenTheLiveOneIsPruned(t *testing.T) {
	t.Parallel()
	m, r := newReleases(t)
	for _, mend := range []struct {
		name string
		do   func(m *nspawn.Machine)
	}{
		{"and applied when it was pulled again", func(m *nspawn.Machine) { m.Pull(r.live) }},
		{"and applied after a reset", func(m *nspawn.Machine) { m.Run("liveapplyctl", "reset") }},
	} {
		t.Run(mend.name, func(t *testing.T) {
			m := m.For(t)
			apply(t, m, r.live)
			pruneLive(t, m, r)
			applied := factsOf(t, m)
			result := m.Try("liveapplyctl", "apply", r.other)
			equal(t, "exit status", result.Code, exitRefused)
			requireSays(t, "liveapplyctl", result.Stderr, []string{r.live, "is not in the OSTree repo", "pull it"})
			requireSame(t, m, applied)
			mend.do(m)
			apply(t, m, r.other)
			requireUsrIs(t, m, r.other)
			reset(t, m)
			m.Pull(r.live)
			requireSame(t, m, r.before)
		})
	}
}
