//go:build nspawn

package nspawn_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// plainMachine is a Debian without OSTree, with the project.
func plainMachine(t *testing.T, suite nspawn.Suite) *nspawn.Machine {
	t.Helper()
	m := lab.PlainMachine(t, lab.Derive(t, product(t, suite), demoRelease("1")), nspawn.Options{})
	m.Boot()
	return m
}

// stackHere is the stack of /usr, which is all that status has to tell without OSTree.
func stackHere(t *testing.T, m *nspawn.Machine) string {
	t.Helper()
	var s struct {
		Stack []usrLayer `json:"stack"`
	}
	decode(t, m.Run("liveapplyctl", "status", "--json"), &s)
	return stackOf(s.Stack)
}

// withoutMachinesOwn leaves out what a boot makes.
func withoutMachinesOwn(etc nspawn.Snapshot) nspawn.Snapshot {
	return etc.Without("machine-id", ".pwd.lock", ".updated", "resolv.conf", "mtab")
}

func TestOverlaysWithoutOSTree(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m := plainMachine(t, suite)
		usr, etc := m.Snapshot("/usr"), withoutMachinesOwn(m.Snapshot("/etc"))
		unchanged := func(when string) {
			t.Helper()
			requireTree(t, "/usr "+when, m.Snapshot("/usr"), usr)
			requireTree(t, "/etc "+when, withoutMachinesOwn(m.Snapshot("/etc")), etc)
			equal(t, "mounts on /usr "+when, len(m.MountsAt("/usr")), 0)
			equal(t, "stack "+when, stackHere(t, m), "base")
		}
		equal(t, "system state", m.Run("systemctl", "is-system-running"), "running")
		requireSays(t, "status", m.Run("liveapplyctl", "status"), []string{"This system was not booted from OSTree"})
		unchanged("at first")
		for _, verb := range []string{"apply", "apply --dry-run", "reset", "rollback", "diff"} {
			result := m.Try("sh", "-c", "liveapplyctl "+verb)
			equal(t, "exit status of "+verb, result.Code, exitFailed)
			requireSays(t, verb, result.Stderr, []string{"not booted from an OSTree deployment"})
		}
		overlayCtl(t, m, exitFailed, "create everywhere --scope=global")

		m.Write("/run/new", "new\n")
		overlayCtl(t, m, 0, "create kept")
		overlayCtl(t, m, 0, "set kept /usr/share/demo/text /lib/demo/new /etc/demo/conf /etc/demo/new --from=new --from=new --from=new --from=new")
		overlayCtl(t, m, 0, "mask kept /usr/share/demo/folder /etc/issue")
		overlayCtl(t, m, 0, "create now --runtime --priority=3")
		overlayCtl(t, m, 0, "set now /usr/share/demo/same /etc/demo/now /run/demo --from=new --from=new --from=new")
		m.Run("sh", "-ec", "mkdir -p /run/image/lib/demo /run/image/etc/demo; echo image >/run/image/lib/demo/image; echo image >/run/image/etc/demo/image; tar -C /run/image -cf /run/updates.tar .")
		overlayCtl(t, m, 0, "import /run/updates.tar --sha256="+sumOf(t, m, "/run/updates.tar"))
		kept := func() {
			t.Helper()
			equal(t, "replaced files", m.Run("cat", "/usr/share/demo/text", "/etc/demo/conf"), "new\nnew")
			equal(t, "new files", m.Run("cat", "/usr/lib/demo/new", "/etc/demo/new"), "new\nnew")
			equal(t, "files of the image", m.Run("cat", "/usr/lib/demo/image", "/etc/demo/image"), "image\nimage")
			equal(t, "a replaced file keeps its mode", m.Run("stat", "--format=%a", "/etc/demo/conf"), "600")
			for _, path := range []string{"/usr/share/demo/folder", "/etc/issue"} {
				equal(t, "there is "+path, m.Exists(path), false)
			}
		}
		gone := func() {
			t.Helper()
			for _, path := range []string{"/etc/demo/now", "/run/demo"} {
				equal(t, "there is "+path, m.Exists(path), false)
			}
			equal(t, "a file of a runtime overlay", m.Run("cat", "/usr/share/demo/same"), "same")
			equal(t, "stack", stackHere(t, m), "updates updates, overlay kept, base")
			equal(t, "system state", m.Run("systemctl", "is-system-running"), "running")
		}
		kept()
		equal(t, "files until the reboot", m.Run("cat", "/usr/share/demo/same", "/etc/demo/now", "/run/demo"), "new\nnew\nnew")
		equal(t, "stack", stackHere(t, m), "overlay now, updates updates, overlay kept, base")
		if text := m.Run("liveapplyctl", "status"); !regexp.MustCompile(`(?s)not booted from OSTree.*\bnow\b.*\bupdates\b.*\bkept\b`).MatchString(text) {
			t.Errorf("status does not show the stack from top to bottom:\n%s", text)
		}
		requireSays(t, "findmnt", usrSource(m), []string{"liveapply:base+", ":now,updates,kept"})
		requireSays(t, "overlay list", overlayCtl(t, m, 0, "list"), []string{"now", "overlay, runtime", "updates, from /run/updates.tar"})
		equal(t, "entries", entriesOf(t, m, "kept"), "file etc/demo/conf\nfile etc/demo/new\nmask etc/issue\nfile usr/lib/demo/new\nmask usr/share/demo/folder\nfile usr/share/demo/text")
		d := differencesOf(t, m, "kept")
		equal(t, "diff", d["/usr/share/demo/text"].Diff, "--- a/usr/share/demo/text\n+++ b/usr/share/demo/text\n@@ -1,2 +1 @@\n-one\n-1\n+new\n")
		equal(t, "diff in /etc", d["/etc/demo/conf"].Diff, "--- a/etc/demo/conf\n+++ b/etc/demo/conf\n@@ -1 +1 @@\n-conf 1\n+new\n")
		requireTidy(t, m)

		m.Reboot()
		kept()
		gone()
		m.Run("sh", "-c", "echo new >/run/new")
		overlayCtl(t, m, 0, "create now --runtime")
		overlayCtl(t, m, 0, "set now /usr/share/demo/same /etc/demo/now --from=new --from=new")
		m.PowerCut()
		m.Boot()
		kept()
		gone()
		requireTidy(t, m)

		overlayCtl(t, m, 0, "disable kept updates")
		unchanged("while they are disabled")
		// What lies below changes in place.
		m.Run("sh", "-c", "echo changed >/usr/share/demo/text; echo changed >/etc/demo/conf")
		overlayCtl(t, m, 0, "enable kept updates")
		kept()
		equal(t, "stale", strings.Join(listOverlays(t, m)[1].Stale, " "), "/etc/demo/conf /usr/share/demo/text")
		// What the administrator changes stays.
		m.Write("/etc/demo/new", "mine\n")
		overlayCtl(t, m, 0, "remove kept")
		overlayCtl(t, m, 0, "remove updates")
		equal(t, "what lies below", m.Run("cat", "/usr/share/demo/text", "/etc/demo/conf"), "changed\nchanged")
		equal(t, "what the administrator has", m.Run("cat", "/etc/demo/new"), "mine")
		m.Run("sh", "-c", "rm /etc/demo/new; printf 'one\\n1\\n' >/usr/share/demo/text; echo conf 1 >/etc/demo/conf")
		unchanged("without overlays")
		requireTidy(t, m)

		overlayCtl(t, m, 0, "create scratch --writable")
		m.Run("sh", "-c", "echo written >/usr/share/demo/text; rm -r /usr/share/demo/folder")
		overlayCtl(t, m, 0, "freeze scratch")
		equal(t, "what was written", entriesOf(t, m, "scratch"), "mask usr/share/demo/folder\nfile usr/share/demo/text")
		m.Reboot()
		equal(t, "what was written", m.Run("cat", "/usr/share/demo/text"), "written")
		overlayCtl(t, m, 0, "remove scratch")
		unchanged("in the end")

		m.Write("/etc/systemd/system/"+trialUnit, "[Service]\nType=exec\nExecStart=sleep infinity\n")
		m.Run("systemctl", "daemon-reload")
		m.Run("systemctl", "start", trialUnit)
		overlayCtl(t, m, 0, "create trial --scope=unit:"+trialUnit)
		m.Run("sh", "-c", "echo trial | liveapplyctl overlay set trial /usr/share/demo/text --from=-")
		equal(t, "a file, for the unit", seenBy(m, trialUnit, "/usr/share/demo/text"), "trial")
		equal(t, "the file, for others", m.Run("cat", "/usr/share/demo/text"), "one\n1")
		m.Reboot()
		m.Run("systemctl", "start", trialUnit)
		equal(t, "a file, for the unit after a reboot", seenBy(m, trialUnit, "/usr/share/demo/text"), "trial")
		overlayCtl(t, m, 0, "remove trial")
		equal(t, "the file, for the unit", seenBy(m, trialUnit, "/usr/share/demo/text"), "one\n1")
		requireTidy(t, m)
	})
}

func TestUpdatesOfTheKernelCommandLineWithoutOSTree(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m := plainMachine(t, suite)
		usr, etc := m.Snapshot("/usr"), withoutMachinesOwn(m.Snapshot("/etc"))
		m.Run("sh", "-ec", `
			for number in 1 2; do
				mkdir -p /run/$number/lib/demo /run/$number/etc/demo /run/$number/run/demo /run/$number/lib/systemd/system/sysinit.target.wants
				for file in lib/demo/image lib/demo/of-$number etc/demo/conf etc/demo/of-$number run/demo/image; do echo $number >/run/$number/$file; done
				tar -C /run/$number -cf /var/updates-$number.tar .
			done`)
		// A unit that is in an image only, before sysinit.target.
		m.Write("/run/1/lib/systemd/system/seen.service", earlyUnit("image", "sysinit"))
		m.Run("sh", "-ec", `
			cd /run/1; mkdir usr usr/share
			for file in usr/share/seen etc/boot.conf run/boot; do echo 1 >$file; done
			ln -s ../seen.service lib/systemd/system/sysinit.target.wants/
			tar -cf /var/updates-1.tar .`)
		sum := sumOf(t, m, "/var/updates-2.tar")
		boot := func(args ...string) {
			t.Helper()
			m.SetKernelArgs(args...)
			m.Reboot()
		}
		shown := func() {
			t.Helper()
			equal(t, "the image above", m.Run("cat", "/usr/lib/demo/image", "/etc/demo/conf", "/run/demo/image"), "2\n2\n2")
			equal(t, "both images", m.Run("cat", "/usr/lib/demo/of-1", "/etc/demo/of-1", "/usr/lib/demo/of-2", "/etc/demo/of-2"), "1\n1\n2\n2")
			equal(t, "stack", stackHere(t, m), "updates updates-2, updates updates-1, base")
			equal(t, "system state", m.Run("systemctl", "is-system-running"), "running")
		}
		gone := func() {
			t.Helper()
			requireTree(t, "/usr", m.Snapshot("/usr"), usr)
			requireTree(t, "/etc", withoutMachinesOwn(m.Snapshot("/etc")), etc)
			equal(t, "there is a file in /run", m.Exists("/run/demo/image"), false)
			equal(t, "stack", stackHere(t, m), "base")
		}
		boot("liveapply.updates=/var/updates-1.tar", "liveapply.updates=/var/updates-2.tar,sha256="+sum)
		shown()
		equal(t, "what a unit of an image saw", m.Try("cat", "/run/seen-by-seen").Stdout, "image\n1\n1\n1")
		m.PowerCut()
		m.Boot()
		shown()
		m.SetKernelArgs()
		m.PowerCut()
		m.Boot()
		gone()

		// By URL, from a server on the machine itself.
		m.Write("/etc/systemd/system/www.socket", "[Unit]\nDefaultDependencies=no\nBefore=network-online.target\n[Socket]\nListenStream=127.0.0.1:80\nAccept=yes\n")
		m.Write("/etc/systemd/system/www@.service", "[Service]\nStandardInput=socket\nExecStart=/bin/sh /var/www\n")
		m.Write("/var/www", "end=$(printf '\\r')\nwhile read -r line && [ \"$line\" != \"$end\" ]; do :; done\nprintf 'HTTP/1.0 200 OK\\r\\n\\r\\n'\nexec cat /var/updates-2.tar\n")
		m.Run("systemctl", "add-wants", "network-online.target", "www.socket")
		etc = withoutMachinesOwn(m.Snapshot("/etc"))
		boot("liveapply.updates=http://127.0.0.1/updates,sha256="+sum, "liveapply.updates=/var/updates-1.tar")
		equal(t, "the image above", m.Run("cat", "/usr/lib/demo/image", "/etc/demo/conf", "/run/demo/image"), "1\n1\n1")
		equal(t, "both images", m.Run("cat", "/usr/lib/demo/of-1", "/etc/demo/of-1", "/usr/lib/demo/of-2", "/etc/demo/of-2"), "1\n1\n2\n2")
		equal(t, "stack", stackHere(t, m), "updates updates-2, updates updates-1, base")
		boot("liveapply.updates=http://127.0.0.1/updates")
		equal(t, "failed units", strings.Fields(m.Run("systemctl", "--failed", "--plain", "--no-legend") + " none")[0], "liveapply-updates-url.service")
		requireSays(t, "the journal", m.Journal("--unit=liveapply-updates-url.service"), []string{"needs a checksum"})
		gone()

		boot("liveapply.updates=/var/updates-1.tar", "liveapply.updates=/var/missing.tar")
		equal(t, "the image that there is", m.Run("cat", "/usr/lib/demo/image"), "1")
		equal(t, "failed units", strings.Fields(m.Run("systemctl", "--failed", "--plain", "--no-legend") + " none")[0], "liveapply-updates.service")
		requireSays(t, "the journal", m.Journal("--unit=liveapply-updates.service"), []string{"there is no /var/missing.tar"})
		boot("liveapply.updates=/var/updates-1.tar,sha256=" + sum)
		requireSays(t, "the journal", m.Journal("--unit=liveapply-updates.service"), []string{"and not " + sum})
		gone()
		boot("liveapply=off", "liveapply.updates=/var/updates-1.tar")
		gone()
		equal(t, "system state", m.Run("systemctl", "is-system-running"), "running")
	})
}
