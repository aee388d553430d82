//go:build nspawn

package nspawn_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// The boots of one machine, each of which begins as the one before has left it.
func TestReboots(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := releaseMachine(t, suite)
		// The journal of a boot has to be there in the next one.
		m.Run("mkdir", "-p", "/var/log/journal")
		m.Run("journalctl", "--flush")
		v2 := derived(t, m, v1, labRelease("2"))
		v3 := derived(t, m, v2, labRelease("3"))
		v4 := derived(t, m, v3, labRelease("4"))

		t.Run("without a staged deployment nothing is left", func(t *testing.T) {
			m := m.For(t)
			before, deployments := factsOf(t, m), m.Run("ostree", "admin", "status")
			m.Run("liveapplyctl", "apply", "--transient", v2)
			requireLive(t, m, v2)
			equal(t, "transient", status(t, m).Transient, true)
			equal(t, "deployments", strings.Replace(m.Run("ostree", "admin", "status"), "\n    Unlocked: transient", "", 1), deployments)
			m.Reboot()
			requireSameAfterBoot(t, m, before)
			equal(t, "booted commit", m.BootedCommit(), v1)
		})
		if t.Failed() {
			return
		}
		t.Run("what a later commit changes again is the later commit's", func(t *testing.T) {
			m := m.For(t)
			// The way of rpm-ostree, which leaves the file in /etc: libostree takes it for the administrator's, and keeps it for good.
			m.Write("/etc/lab/default", "2\n")
			equal(t, "/etc/lab/default as rpm-ostree does it", contentOfDeployment(t, m, v3, "lab/default"), "2\n")
			m.Write("/etc/lab/default", "1\n")

			apply(t, m, v2)
			requireLive(t, m, v2)
			equal(t, "/etc/lab/default", m.Read("/etc/lab/default"), "2\n")
			equal(t, "/etc/lab/edited", m.Read("/etc/lab/edited"), "2\n")
			m.Write("/etc/lab/edited", "mine\n")
			m.Write("/etc/lab/own", "mine\n")

			m.Stage(v3)
			m.Reboot()
			equal(t, "booted commit", m.BootedCommit(), v3)
			equal(t, "/etc/lab/default", m.Read("/etc/lab/default"), "3\n")
			equal(t, "/etc/lab/edited", m.Read("/etc/lab/edited"), "mine\n")
			equal(t, "/etc/lab/own", m.Read("/etc/lab/own"), "mine\n")
			requireUsrIs(t, m, v3)
			requireNothingLeft(t, m)
			requireRevertedBeforeMerge(t, m)
		})
		if t.Failed() {
			return
		}
		t.Run("with a staged deployment the machine is in the target", func(t *testing.T) {
			m := m.For(t)
			apply(t, m, v4)
			requireLive(t, m, v4)
			want := m.Snapshot("/etc")
			m.Reboot()
			equal(t, "booted commit", m.BootedCommit(), v4)
			requireUsrIs(t, m, v4)
			requireTree(t, "/etc", withoutAccounts(m.Snapshot("/etc")), withoutAccounts(want))
			requireNothingLeft(t, m)
			equal(t, "live commit", status(t, m).Live, v4)
		})
	})
}

// labRelease makes the defaults and the files of a release.
func labRelease(number string) func(*nspawn.Tree) {
	return func(tree *nspawn.Tree) {
		tree.Write("usr/share/lab", number+"\n", 0o644)
		tree.Write("usr/share/lab-"+number, number+"\n", 0o644)
		tree.Write("usr/etc/lab/default", number+"\n", 0o644)
		tree.Write("usr/etc/lab/edited", number+"\n", 0o644)
		tree.Write("usr/etc/lab/only-in-"+number, number+"\n", 0o644)
		if number != "1" { // the first one boots, and systemd-sysusers would make it then, sooner or later
			tree.Write("usr/lib/sysusers.d/lab.conf", "u lab-"+number+" - \"release "+number+"\"\n", 0o644)
		}
	}
}

// requireLive makes sure that a commit is what the machine shows.
func requireLive(t *testing.T, m *nspawn.Machine, commit string) {
	t.Helper()
	equal(t, "live commit", status(t, m).Live, commit)
	mounts := m.MountsAt("/usr")
	equal(t, "source of /usr", mounts[len(mounts)-1].Source, "liveapply:"+commit)
}

// requireSameAfterBoot compares a machine with what it was in an earlier boot of the same deployment.
func requireSameAfterBoot(t *testing.T, m *nspawn.Machine, before facts) {
	t.Helper()
	after := factsOf(t, m)
	requireSameState(t, facts{state: exceptMounts(before.state)}, exceptMounts(after.state))
	requireTree(t, "/usr", after.usr, before.usr)
	requireTree(t, "/etc", after.etc, before.etc)
	requireNothingLeft(t, m)
	// systemd says so before there is a journal, and starts without one of the units.
	if strings.Contains(m.Console(), "ordering cycle") {
		t.Errorf("the order of the units at boot has a cycle:\n%s", m.Console())
	}
}

// exceptMounts leaves the mounts out: numbers of peer groups and names of nspawn's own files are new in every boot. See
// requireNothingLeft.
func exceptMounts(state []string) []string {
	return slices.DeleteFunc(slices.Clone(state), func(line string) bool { return strings.HasPrefix(line, "mount: ") })
}

// requireNothingLeft looks for anything that an application leaves behind.
func requireNothingLeft(t *testing.T, m *nspawn.Machine) {
	t.Helper()
	equal(t, "refs", m.Run("ostree", "refs", "--repo=/sysroot/ostree/repo", "--list", "liveapply"), "")
	equal(t, "mounts at /usr", len(m.MountsAt("/usr")), 1)
	for _, mount := range m.Mounts() {
		if strings.HasPrefix(mount.Source, "liveapply:") || strings.HasPrefix(mount.Mountpoint, "/run/liveapply/") {
			t.Errorf("%s is still mounted on %s", mount.Source, mount.Mountpoint)
		}
	}
	equal(t, "backing directories", m.Try("sh", "-c", "find /sysroot/ostree/deploy/*/backing -path '*liveapply*'").Stdout, "")
	equal(t, "stamps", m.Try("sh", "-c", "find /run/ostree -name '*liveapply*'").Stdout, "")
	equal(t, "files in /run/liveapply", strings.Join(below(t, m, "/run/liveapply"), " "), "")
	equal(t, "active units", m.Run("systemctl", "list-units", "--plain", "--no-legend", "--state=active", "liveapply.target", "liveapply-etc-revert.service"), "")
	equal(t, "failed units", m.Run("systemctl", "--failed", "--plain", "--no-legend"), "")
}

// contentOfDeployment returns what a file has in the /etc that libostree merges for a commit now.
func contentOfDeployment(t *testing.T, m *nspawn.Machine, commit, path string) string {
	t.Helper()
	m.Run("ostree", "admin", "deploy", "--os=debian", commit)
	content := m.Run("sh", "-c", "cat /sysroot/ostree/deploy/debian/deploy/"+commit+".*/etc/"+path)
	m.Run("ostree", "admin", "undeploy", "0")
	return content + "\n"
}

// requireRevertedBeforeMerge looks into the journal of the boot before.
func requireRevertedBeforeMerge(t *testing.T, m *nspawn.Machine) {
	t.Helper()
	journal := m.Run("journalctl", "--boot=-1", "--no-pager", "--output=cat", "--unit=liveapply-etc-revert.service", "--unit=ostree-finalize-staged.service")
	reverted := strings.Index(journal, "Stopped liveapply-etc-revert.service")
	merging := strings.Index(journal, "Stopping ostree-finalize-staged.service")
	if reverted < 0 || merging < reverted {
		t.Errorf("/etc was not taken back before libostree merged it:\n%s", journal)
	}
}
