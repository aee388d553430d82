//go:build nspawn

package nspawn_test

import (
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// makeExtension makes an extension, which systemd-sysext can merge.
func makeExtension(m *nspawn.Machine) {
	m.Run("sh", "-c", `mkdir -p /var/lib/extensions/more/usr/lib/extension-release.d /var/lib/extensions/more/usr/share
		echo ID=_any >/var/lib/extensions/more/usr/lib/extension-release.d/extension-release.more
		touch /var/lib/extensions/more/usr/share/more`)
}

// systemd-sysext mounts an overlay of its own on /usr, which would hide what is mounted beneath it, and is made of what was there before.
func TestExtensionsAreMergedIntoWhatIsLive(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := productMachine(t, suite, nspawn.Options{})
		makeTransient(m)
		withFile := func(parent, name string) string {
			return derived(t, m, parent, func(tree *nspawn.Tree) {
				tree.Write("usr/share/"+name, "", 0o644)
				tree.Write("usr/etc/issue", name+"\n", 0o644)
			})
		}
		v2 := withFile(v1, "two")
		v3 := withFile(v2, "three")
		makeExtension(m)
		requireFiles := func(names ...string) {
			t.Helper()
			for _, name := range names {
				m.Run("test", "-e", "/usr/share/"+name)
			}
		}
		// As systemd-confext does, and ostree-prepare-root for a transient /etc.
		m.Run("sh", "-c", "mkdir -p /run/confext/etc && mount -t overlay confext -o lowerdir=/run/confext/etc:/etc /etc")
		result := m.Try("liveapplyctl", "apply", v2)
		equal(t, "exit status is 0", result.Code == 0, false)
		requireSays(t, "apply", result.Stderr, []string{"/etc is not that of the booted deployment", "systemd-confext unmerge"})
		m.Run("umount", "/etc")

		refused := func(command ...string) {
			t.Helper()
			result := m.Try("liveapplyctl", command...)
			equal(t, "exit status is 0", result.Code == 0, false)
			requireSays(t, command[0], result.Stderr, []string{"/usr: systemd-sysext has merged extensions", "systemd-sysext unmerge"})
		}
		issue := m.Read("/etc/issue")

		m.Run("systemd-sysext", "merge")
		refused("apply", v2)
		m.Run("systemd-sysext", "unmerge")
		apply(t, m, v2)
		m.Run("systemd-sysext", "merge")
		requireFiles("two", "more")
		equal(t, "live", status(t, m).Live, v2)
		refused("apply", v3)
		refused("reset")
		refused("overlay", "create", "fix")
		equal(t, "live", status(t, m).Live, v2)
		equal(t, "/etc/issue", m.Read("/etc/issue"), "two\n")
		m.Run("systemd-sysext", "unmerge")
		apply(t, m, v3)
		m.Run("liveapplyctl", "overlay", "create", "fix")
		m.Run("touch", "/run/fix")
		m.Run("liveapplyctl", "overlay", "set", "fix", "/usr/share/fix", "--from=/run/fix")
		m.Run("systemd-sysext", "merge")
		requireFiles("three", "fix", "more")
		refused("reset")
		equal(t, "/etc/issue", m.Read("/etc/issue"), "three\n")
		m.Run("systemd-sysext", "unmerge")
		reset(t, m)
		equal(t, "/etc/issue", m.Read("/etc/issue"), issue)

		// At boot, overlays come first.
		m.Run("systemctl", "enable", "systemd-sysext.service")
		m.Reboot()
		requireFiles("fix", "more")
		refused("overlay", "disable", "fix")
	})
}
