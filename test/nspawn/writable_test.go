//go:build nspawn

package nspawn_test

import (
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/test/nspawn"
)

// What is written to an overlay is written by the kernel with the capabilities of the unit that mounted it, which is another one
// after each switch.
func TestWritableOverlayTakesWhateverIsWritten(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, booted := productMachine(t, suite, nspawn.Options{})
		makeTransient(m)
		usr := m.Snapshot("/usr")
		m.Run("systemd-run", "--unit=guarded", "--service-type=exec", "--property=ProtectSystem=strict", "sleep", "infinity")
		in := func(unit string, command ...string) nspawn.Result {
			t.Helper()
			pid := m.Run("systemctl", "show", "--property=MainPID", "--value", unit+".service")
			return m.Try("nsenter", append([]string{"--target", pid, "--mount"}, command...)...)
		}
		write := func(when string) {
			t.Helper()
			for _, command := range []string{
				"cp /usr/bin/true /usr/bin/written && chown 1:2 /usr/bin/written && chmod 4711 /usr/bin/written",
				"chown 3:4 /usr/lib/os-release && touch -d @0 /usr/lib/os-release",
				"ln -f /usr/bin/written /usr/bin/linked && ln -sf written /usr/bin/symlink",
				"mkdir -p /usr/share/written/dir && mv /usr/bin/linked /usr/share/written/dir/",
				"rm /usr/share/written -r && rm /usr/bin/factor && cp /usr/bin/true /usr/bin/factor",
				"chown -R 0:0 /usr/share/common-licenses && chmod 600 /usr/share/common-licenses/GPL-3 && echo more >>/usr/share/common-licenses/GPL-3",
			} {
				if result := m.Try("sh", "-ec", command); result.Code != 0 {
					t.Errorf("%s: %s: %s", when, command, result.Stderr)
				}
			}
			if result := in("guarded", "touch", "/usr/bin/written"); !strings.Contains(result.Stderr, "Read-only") {
				t.Errorf("%s: the service that may not write wrote: %s", when, result.Stderr)
			}
		}

		overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "scratch", Writable: true})
		write("created")
		overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "fix"}, set(m, "fix", "/usr/share/fixed", "fixed\n"))
		equal(t, "a file of another overlay", m.Run("cat", "/usr/share/fixed"), "fixed")
		write("beside another overlay")
		apply(t, m, derived(t, m, booted, func(tree *nspawn.Tree) { tree.Write("usr/share/two", "2\n", 0o644) }))
		equal(t, "a file of the commit", m.Run("cat", "/usr/share/two"), "2")
		equal(t, "what was written", m.Run("stat", "--format=%u:%g %a", "/usr/bin/written"), "1:2 4711")
		write("above a live commit")

		writer := m.Start("sh", "-c", "exec 7>>/usr/share/log; sleep infinity")
		waitFor(t, "the file is open", func() bool { return m.Try("test", "-e", "/usr/share/log").Code == 0 })
		refused := tryOverlays(t, m, overlay.Request{Operations: []overlay.Operation{{Verb: overlay.Disable, Name: "scratch"}}})
		if journal := m.Journal("--unit=liveapply-overlay@*"); refused.Code == 0 || !strings.Contains(journal, "open for writing: /usr/share/log by process") {
			t.Errorf("an overlay with a file open for writing was disabled, or nobody says why not:\n%s", journal)
		}
		write("after a refusal")
		writer.Stop()

		overlays(t, m, overlay.Operation{Verb: overlay.Disable, Name: "scratch"})
		if m.Try("test", "-e", "/usr/bin/written").Code == 0 {
			t.Error("what was written is still there")
		}
		overlays(t, m, overlay.Operation{Verb: overlay.Enable, Name: "scratch"})
		equal(t, "what was written, back again", m.Run("stat", "--format=%u:%g %a", "/usr/bin/written"), "1:2 4711")
		reset(t, m)
		write("after a reset")
		m.Reboot()
		equal(t, "what was written, after a reboot", m.Run("stat", "--format=%u:%g %a", "/usr/bin/written"), "1:2 4711")
		overlays(t, m, overlay.Operation{Verb: overlay.Remove, Name: "scratch"}, overlay.Operation{Verb: overlay.Remove, Name: "fix"})
		if diff := nspawn.Diff(usr, m.Snapshot("/usr")); diff != "" {
			t.Errorf("/usr is not as before:\n%s", diff)
		}
	})
}
