//go:build nspawn

package nspawn_test

import (
	"fmt"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// requireLocal compares files on mounts below /usr with what they have to be all the time.
func requireLocal(t *testing.T, m *nspawn.Machine, when string, files map[string]string) {
	t.Helper()
	for path, content := range files {
		if !m.Exists(path) {
			t.Errorf("%s: %s is not there", when, path)
			continue
		}
		equal(t, when+": content of "+path, m.Read(path), content)
	}
}

func TestMountBelowUsrIsThereBeforeDuringAndAfter(t *testing.T) {
	t.Parallel()
	for _, on := range []struct {
		suite  nspawn.Suite
		shared bool
	}{{nspawn.Trixie, false}, {nspawn.Trixie, true}, {nspawn.Bookworm, false}} {
		t.Run(fmt.Sprintf("%s, shared=%v", on.suite, on.shared), func(t *testing.T) {
			m, v1 := productMachine(t, on.suite, nspawn.Options{UsrInPeerGroupOfRoot: on.shared})
			m.Run("mount", "-t", "tmpfs", "-o", "nosuid,mode=1775", "tmpfs", "/usr/local")
			m.Run("mkdir", "/usr/local/deeper")
			m.Run("mount", "-t", "tmpfs", "-o", "ro,noexec", "tmpfs", "/usr/local/deeper")
			m.Write("/usr/local/file", "on a tmpfs")
			m.Run("mkdir", "/run/bound")
			m.Write("/run/bound/file", "bound")
			m.Run("mount", "--bind", "/run/bound", "/usr/share/common-licenses")
			m.Run("touch", "/run/bound-file")
			m.Run("mount", "--bind", "/run/bound-file", "/usr/lib/os-release")
			files := map[string]string{"/usr/local/file": "on a tmpfs", "/usr/share/common-licenses/file": "bound", "/usr/lib/os-release": ""}
			before := factsOf(t, m)

			witness := installWitness(t, m)
			tellWitnesses(t, m, "0 bound bound")
			reader := m.Start("nice", witness, "watch", witnessStep, "/usr/share/common-licenses/file", "/usr/local/file", "/usr/lib/os-release")
			waitUntilReady(t, reader)
			target := v1
			for i := range 2 {
				target = derived(t, m, target, func(tree *nspawn.Tree) { tree.Write("usr/share/number", fmt.Sprint(i), 0o644) })
				apply(t, m, target)
				requireLocal(t, m, "after an application", files)
				requireTree(t, "/usr", m.Snapshot("/usr").Without(mountedBelowUsr...), treeOf(t, target).Without(mountedBelowUsr...))
			}
			reset(t, m)
			requireLocal(t, m, "after a reset", files)
			requireSame(t, m, before)
			tellWitnesses(t, m, "stop")
			requireSaw(t, reader, 1)
		})
	}
}

var mountedBelowUsr = []string{"local", "share/common-licenses", "lib/os-release"}

// A state overlay makes a directory of the tree writable, with its changes in /var.
func TestStateOverlayIsThereBeforeDuringAndAfter(t *testing.T) {
	t.Parallel()
	v1 := lab.Derive(t, product(t, nspawn.Trixie), func(tree *nspawn.Tree) {
		tree.Write("usr/local/share/shipped", "1", 0o644)
		tree.Symlink("/usr/lib/systemd/system/ostree-state-overlay@.service",
			"usr/etc/systemd/system/local-fs.target.wants/ostree-state-overlay@usr-local.service")
	})
	m := lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	equal(t, "mounts at /usr/local", len(m.MountsAt("/usr/local")), 1)
	m.Write("/usr/local/mine", "mine")
	files := map[string]string{"/usr/local/mine": "mine", "/usr/local/share/shipped": "1"}
	requireLocal(t, m, "before", files)
	before := factsOf(t, m)
	target := v1
	for i := range 2 {
		target = derived(t, m, target, func(tree *nspawn.Tree) {
			tree.Write("usr/share/number", fmt.Sprint(i), 0o644)
			tree.Write("usr/local/share/shipped", fmt.Sprint(i+2), 0o644)
		})
		apply(t, m, target)
		requireLocal(t, m, "after an application", files)
		m.Write("/usr/local/mine-too", "still writable")
		m.Run("rm", "/usr/local/mine-too")
		requireTree(t, "/usr", m.Snapshot("/usr").Without("local"), treeOf(t, target).Without("local"))
	}
	reset(t, m)
	requireLocal(t, m, "after a reset", files)
	requireSame(t, m, before)
}

func TestWhatIsMountedWhileLiveSurvivesReset(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%v", shared), func(t *testing.T) {
			m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{UsrInPeerGroupOfRoot: shared})
			m.Run("mount", "-t", "tmpfs", "tmpfs", "/usr/share/common-licenses")
			v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/number", "2", 0o644) })
			v3 := derived(t, m, v2, func(tree *nspawn.Tree) { tree.Write("usr/share/number", "3", 0o644) })
			apply(t, m, v2)
			m.Run("mount", "-t", "tmpfs", "tmpfs", "/usr/local")
			m.Write("/usr/local/file", "content")
			m.Run("umount", "/usr/share/common-licenses")
			apply(t, m, v3)
			requireLocal(t, m, "after the next application", map[string]string{"/usr/local/file": "content"})
			reset(t, m)
			requireLocal(t, m, "after a reset", map[string]string{"/usr/local/file": "content"})
			equal(t, "mounts at /usr/share/common-licenses", len(m.MountsAt("/usr/share/common-licenses")), 0)
			m.Run("umount", "/usr/local")
			requireUsrIs(t, m, v1)
		})
	}
}

func TestMountThatTheTargetHasNoPlaceForIsRefused(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	m.Run("mount", "-t", "tmpfs", "tmpfs", "/usr/share/common-licenses")
	before := factsOf(t, m)
	for name, edit := range map[string]func(*nspawn.Tree){
		"nothing there": func(tree *nspawn.Tree) { tree.Remove("usr/share/common-licenses") },
		"a file": func(tree *nspawn.Tree) {
			tree.Remove("usr/share/common-licenses")
			tree.Write("usr/share/common-licenses", "file", 0o644)
		},
		"a symbolic link": func(tree *nspawn.Tree) {
			tree.Remove("usr/share/common-licenses")
			tree.Symlink("doc", "usr/share/common-licenses")
		},
		"no parent directory": func(tree *nspawn.Tree) { tree.Remove("usr/share") },
	} {
		t.Run(name, func(t *testing.T) {
			m := m.For(t)
			requireRefused(t, m, before, refusal{commit: derived(t, m, v1, edit), says: []string{"/usr/share/common-licenses", "mount", "unmount it first"}})
		})
	}
}

// What is mounted only while a tree is live is in the way of a reset if the booted tree has no such directory.
func TestResetWithAMountThatTheBootedTreeHasNoPlaceFor(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) {
		tree.Mkdir("usr/share/new", 0o755)
		tree.Write("usr/etc/new", "new", 0o644)
	})
	before := factsOf(t, m)
	apply(t, m, v2)
	m.Run("mount", "-t", "tmpfs", "tmpfs", "/usr/share/new")
	live := factsOf(t, m)
	result := m.Try("liveapplyctl", "reset")
	equal(t, "exit status of liveapplyctl reset", result.Code, 1)
	requireSays(t, "liveapplyctl reset", result.Stderr, []string{"/usr/share/new", "unmount it first"})
	requireSame(t, m, live)
	m.Run("umount", "/usr/share/new")
	requireUsrIs(t, m, v2)
	m.Run("liveapplyctl", "reset")
	requireSame(t, m, before)
}
