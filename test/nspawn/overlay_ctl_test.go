//go:build nspawn

package nspawn_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/liveapply/liveapply/test/nspawn"
)

// listedOverlay is an object of liveapplyctl overlay list --json, as liveapplyctl(1) describes it.
type listedOverlay struct {
	Name       string   `json:"name"`
	Kind       string   `json:"kind"`
	Scope      string   `json:"scope"`
	Priority   int      `json:"priority"`
	Enabled    bool     `json:"enabled"`
	Writable   bool     `json:"writable"`
	Generation int      `json:"generation"`
	Created    string   `json:"created"`
	Changed    string   `json:"changed"`
	Source     string   `json:"source"`
	SHA256     string   `json:"sha256"`
	Runtime    bool     `json:"runtime"`
	Stale      []string `json:"stale"`
}

// shownOverlay is what liveapplyctl overlay show --json prints.
type shownOverlay struct {
	listedOverlay
	Entries []struct {
		Path   string `json:"path"`
		Kind   string `json:"kind"`
		Opaque bool   `json:"opaque"`
		Mode   uint32 `json:"mode"`
		Size   int64  `json:"size"`
		Base   *struct {
			Commit   string `json:"commit"`
			Checksum string `json:"checksum"`
		} `json:"base"`
		Stale bool `json:"stale"`
	} `json:"entries"`
}

// difference is an object of liveapplyctl overlay diff --json.
type difference struct {
	Path   string          `json:"path"`
	Change string          `json:"change"`
	Before *differentFacts `json:"before"`
	After  *differentFacts `json:"after"`
	Diff   string          `json:"diff"`
	Stale  bool            `json:"stale"`
}

type differentFacts struct {
	Kind   string `json:"kind"`
	Mode   uint32 `json:"mode"`
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Size   int64  `json:"size"`
	Target string `json:"target"`
}

// overlayCtl runs liveapplyctl overlay in a shell, which must end with an exit status, and returns all that it prints.
func overlayCtl(t *testing.T, m *nspawn.Machine, code int, command string) string {
	t.Helper()
	result := m.Try("sh", "-c", "cd /run; liveapplyctl overlay "+command)
	if result.Code != code {
		t.Fatalf("liveapplyctl overlay %s: exit status %d, want %d\n%s\n%s", command, result.Code, code, result.Stdout, result.Stderr)
	}
	if (code == exitFailed || code == exitUsage) && !strings.HasPrefix(result.Stderr, "liveapplyctl: ") {
		t.Errorf("liveapplyctl overlay %s does not tell what is wrong on standard error: %q", command, result.Stderr)
	}
	return strings.TrimSpace(result.Stdout + "\n" + result.Stderr)
}

// listOverlays lists the overlays, the topmost first.
func listOverlays(t *testing.T, m *nspawn.Machine) (all []listedOverlay) {
	t.Helper()
	decode(t, overlayCtl(t, m, 0, "list --json"), &all)
	return all
}

func showOverlay(t *testing.T, m *nspawn.Machine, name string) (shown shownOverlay) {
	t.Helper()
	decode(t, overlayCtl(t, m, 0, "show --json "+name), &shown)
	return shown
}

// entriesOf are the paths of an overlay, each behind its kind.
func entriesOf(t *testing.T, m *nspawn.Machine, name string) string {
	t.Helper()
	var entries []string
	for _, entry := range showOverlay(t, m, name).Entries {
		entries = append(entries, fmt.Sprintf("%s %s", entry.Kind, entry.Path))
	}
	return strings.Join(entries, "\n")
}

// differencesOf are those of an overlay, by path.
func differencesOf(t *testing.T, m *nspawn.Machine, name string) map[string]difference {
	t.Helper()
	var all []difference
	decode(t, overlayCtl(t, m, 0, "diff --json "+name), &all)
	byPath := map[string]difference{}
	for _, d := range all {
		byPath[d.Path] = d
	}
	return byPath
}

// stackOf is what status says that /usr shows, from top to bottom.
func stackOf(layers []usrLayer) string {
	var lines []string
	for _, layer := range layers {
		lines = append(lines, strings.TrimSpace(layer.Kind+" "+layer.Name))
	}
	return strings.Join(lines, ", ")
}

// usrSource is the source that findmnt shows.
func usrSource(m *nspawn.Machine) string {
	return m.Run("sh", "-c", "findmnt --noheadings --raw --output=SOURCE --mountpoint /usr | tail -n 1")
}

// demoRelease has files for overlays to replace.
func demoRelease(number string) func(*nspawn.Tree) {
	return func(tree *nspawn.Tree) {
		tree.Write("usr/share/demo/text", "one\n"+number+"\n", 0o640)
		tree.Write("usr/share/demo/same", "same\n", 0o644)
		tree.Write("usr/share/demo/hidden", "hidden\n", 0o644)
		tree.Write("usr/share/demo/folder/file", "file\n", 0o644)
		tree.Write("usr/etc/demo/conf", "conf "+number+"\n", 0o600)
	}
}

func demoMachine(t *testing.T, suite nspawn.Suite, options nspawn.Options) (m *nspawn.Machine, v1 string) {
	t.Helper()
	v1 = lab.Derive(t, product(t, suite), demoRelease("1"))
	m = lab.Machine(t, v1, options)
	m.Boot()
	makeTransient(m)
	// The first change of all leaves an index, and notes in /run, and the first one in /etc a unit that is active from then on.
	for _, lifetime := range []string{"", "--runtime"} {
		overlayCtl(t, m, 0, "create first "+lifetime)
		overlayCtl(t, m, 0, "mask first /etc/issue")
		overlayCtl(t, m, 0, "remove first")
	}
	return m, v1
}

// untouched runs something that must not change anything.
func untouched(t *testing.T, m *nspawn.Machine, do func()) {
	t.Helper()
	before, state := factsOf(t, m), overlayStateOf(t, m)
	do()
	awaitEnd(m)
	m.Run("sh", "-c", "systemctl reset-failed 'liveapply*'")
	requireTidy(t, m)
	if diff := state.diff(overlayStateOf(t, m)); diff != "" {
		t.Errorf("something is changed:\n%.3000s", diff)
	}
	requireSame(t, m, before)
}

func TestOverlaysAtTheCommandLine(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := demoMachine(t, suite, nspawn.Options{})
		v2 := derived(t, m, v1, demoRelease("2"))
		before := factsOf(t, m)

		equal(t, "list of none", overlayCtl(t, m, 0, ""), "There is no overlay.")
		equal(t, "create", overlayCtl(t, m, 0, "create fix --priority=3"), "Overlay fix is made, and enabled.")
		overlayCtl(t, m, exitFailed, "create fix")
		overlayCtl(t, m, exitFailed, "create fix --runtime")
		m.Run("sh", "-c", "cd /usr/share/demo && liveapplyctl overlay add fix same")
		m.Write("/run/new", "new\n")
		m.Run("chmod", "751", "/run/new")
		generation := listOverlays(t, m)[0].Generation
		m.Run("sh", "-c", "cd /run; echo from stdin | liveapplyctl overlay set fix /usr/share/demo/text /usr/share/demo/new /etc/demo/conf --from=- --from=new --from=/run/new")
		equal(t, "generations of one call", listOverlays(t, m)[0].Generation-generation, 1)
		equal(t, "a replaced file", m.Run("cat", "/usr/share/demo/text"), "from stdin")
		equal(t, "modes", m.Run("stat", "--format=%a", "/usr/share/demo/text", "/usr/share/demo/new", "/etc/demo/conf"), "640\n751\n600")

		m.Write("/run/editor", "#!/bin/sh\necho edited >>\"$1\"\n")
		m.Run("chmod", "755", "/run/editor")
		equal(t, "edit", m.Run("env", "EDITOR=/run/editor", "liveapplyctl", "overlay", "edit", "fix", "/usr/share/demo/text"), "Overlay fix has new content for /usr/share/demo/text.")
		equal(t, "an edited file", m.Run("cat", "/usr/share/demo/text"), "from stdin\nedited")
		m.Run("env", "EDITOR=/run/editor", "liveapplyctl", "overlay", "edit", "fix", "/etc/demo/edited")
		equal(t, "a file that edit makes", m.Run("cat", "/etc/demo/edited"), "edited")
		untouched(t, m, func() {
			equal(t, "edit without a change", m.Try("env", "EDITOR=true", "liveapplyctl", "overlay", "edit", "fix", "/usr/share/demo/text").Code, exitNothing)
			equal(t, "an editor that fails", m.Try("env", "EDITOR=/run/editor \"$1\"; false", "liveapplyctl", "overlay", "edit", "fix", "/usr/share/demo/text").Code, exitFailed)
			refused := m.Try("env", "EDITOR=/run/editor", "liveapplyctl", "overlay", "edit", "fix", "/usr/lib/systemd/systemd")
			equal(t, "exit status of what is refused", refused.Code, exitFailed)
			_, kept, _ := strings.Cut(refused.Stderr, "what was edited is in ")
			equal(t, "what was edited: "+refused.Stderr, m.Run("tail", "--bytes=7", strings.TrimSpace(kept)), "edited")
		})

		equal(t, "mask", overlayCtl(t, m, 0, "mask fix /usr/share/demo/hidden /usr/share/demo/folder"), "Overlay fix hides /usr/share/demo/hidden, /usr/share/demo/folder.")
		equal(t, "what is left", m.Run("ls", "/usr/share/demo"), "new\nsame\ntext")
		overlayCtl(t, m, 0, "unset fix /usr/share/demo/folder")
		equal(t, "what was masked", m.Run("cat", "/usr/share/demo/folder/file"), "file")
		overlayCtl(t, m, exitFailed, "unset fix /usr/share/demo/folder")

		equal(t, "entries", entriesOf(t, m, "fix"),
			"file etc/demo/conf\nfile etc/demo/edited\nmask usr/share/demo/hidden\nfile usr/share/demo/new\nfile usr/share/demo/same\nfile usr/share/demo/text")
		requireSays(t, "overlay show", overlayCtl(t, m, 0, "show fix"), []string{"Overlay: fix", "Priority: 3", "State: enabled", "/etc/demo/conf", "/usr/share/demo/hidden"})
		d := differencesOf(t, m, "fix")
		for path, change := range map[string]string{"/etc/demo/conf": "replaced", "/etc/demo/edited": "added", "/usr/share/demo/hidden": "hidden", "/usr/share/demo/same": "same", "/usr/share/demo/text": "replaced"} {
			equal(t, "diff: "+path, d[path].Change, change)
		}
		equal(t, "diff of a text", d["/usr/share/demo/text"].Diff, "--- a/usr/share/demo/text\n+++ b/usr/share/demo/text\n@@ -1,2 +1,2 @@\n-one\n-1\n+from stdin\n+edited\n")
		equal(t, "diff of one in /etc", d["/etc/demo/conf"].Diff, "--- a/etc/demo/conf\n+++ b/etc/demo/conf\n@@ -1 +1 @@\n-conf 1\n+new\n")
		equal(t, "mode before", d["/etc/demo/conf"].Before.Mode, 0o600)
		// What diff prints, patch(1) and people read.
		requireSays(t, "overlay diff", overlayCtl(t, m, 0, "diff fix"), []string{"+++ b/usr/share/demo/text", "+from stdin", "hidden /usr/share/demo/hidden (file, 0644, 7 B)", "same /usr/share/demo/same"})

		overlayCtl(t, m, 0, "create --runtime top --priority=7")
		overlayCtl(t, m, 0, "mask top /usr/share/demo/new")
		equal(t, "stack", stackOf(status(t, m).Stack), "overlay top, overlay fix, booted")
		requireSays(t, "findmnt", usrSource(m), []string{"liveapply:" + v1 + "+", ":top,fix"})

		// Only root may change them and see what they have; all may know which there are, and what /usr shows.
		for command, code := range map[string]int{"list": 0, "list --json": 0, "show fix": exitFailed, "diff fix": exitFailed, "backup fix -": exitFailed, "create mine": exitFailed} {
			result := unprivileged(m, append([]string{"overlay"}, strings.Fields(command)...)...)
			equal(t, "exit status of nobody's "+command+": "+result.Stderr, result.Code, code)
		}
		requireSays(t, "status of nobody", unprivileged(m, "status").Stdout, []string{"top", "fix"})

		// Stale.
		none := func(when string) {
			t.Helper()
			for _, o := range listOverlays(t, m) {
				if o.Stale == nil || len(o.Stale) > 0 {
					t.Errorf("%s, %s is stale at %q", when, o.Name, o.Stale)
				}
			}
		}
		none("at first")
		apply(t, m, v2)
		equal(t, "stack", stackOf(status(t, m).Stack), "overlay top, overlay fix, live, booted")
		equal(t, "a replaced file", m.Run("cat", "/usr/share/demo/text"), "from stdin\nedited")
		stale := "/etc/demo/conf /usr/share/demo/text"
		equal(t, "stale in list", strings.Join(listOverlays(t, m)[1].Stale, " "), stale)
		equal(t, "stale in status", strings.Join(status(t, m).Stack[1].Stale, " "), stale)
		d = differencesOf(t, m, "fix")
		equal(t, "a stale difference", d["/usr/share/demo/text"].Stale, true)
		equal(t, "one that is not", d["/usr/share/demo/same"].Stale, false)
		equal(t, "diff with the live commit", strings.Contains(d["/usr/share/demo/text"].Diff, "-2\n"), true)
		equal(t, "diff with the live commit in /etc", strings.Contains(d["/etc/demo/conf"].Diff, "-conf 2\n"), true)
		requireSays(t, "overlay show", overlayCtl(t, m, 0, "show fix"), []string{"stale"})
		requireSays(t, "overlay diff", overlayCtl(t, m, 0, "diff fix"), []string{"stale /usr/share/demo/text: what it replaced is another file now"})
		m.Run("sh", "-c", "echo current | liveapplyctl overlay set fix /usr/share/demo/text --from=-")
		overlayCtl(t, m, 0, "add fix /etc/demo/conf")
		none("made current")
		reset(t, m)
		equal(t, "stale after a reset", strings.Join(listOverlays(t, m)[1].Stale, " "), stale)
		equal(t, "what takes files in /etc back at shutdown", m.Try("systemctl", "is-active", "liveapply-etc-revert.service").Stdout, "active")

		equal(t, "disable", overlayCtl(t, m, 0, "disable fix"), "fix: disabled.")
		equal(t, "disable again", overlayCtl(t, m, exitNothing, "disable fix"), "fix: disabled already.")
		equal(t, "the file below", m.Run("cat", "/usr/share/demo/text"), "one\n1")
		equal(t, "a change of a disabled one", m.Run("liveapplyctl", "overlay", "mask", "fix", "/usr/share/demo/folder"), "Overlay fix hides /usr/share/demo/folder; it is disabled.")
		equal(t, "what it hides", m.Run("cat", "/usr/share/demo/folder/file"), "file")
		equal(t, "stack", stackOf(status(t, m).Stack), "overlay top, booted")
		requireSays(t, "overlay list", overlayCtl(t, m, 0, "list"), []string{"fix", "disabled"})
		equal(t, "enable", overlayCtl(t, m, 0, "enable --quiet fix"), "")
		equal(t, "what it hides", m.Exists("/usr/share/demo/folder"), false)
		// Those of two stores are two steps.
		overlayCtl(t, m, exitFailed, "disable fix top")
		overlayCtl(t, m, exitUsage, "disable")
		overlayCtl(t, m, exitUsage, "set fix /usr/share/demo/text")
		overlayCtl(t, m, exitFailed, "disable nobody")

		requireSays(t, "remove without waiting", overlayCtl(t, m, 0, "remove top --no-wait"), []string{"Started liveapply-overlay@", "See liveapplyctl status."})
		waitFor(t, "the overlay to be gone", func() bool { return len(listOverlays(t, m)) == 1 })
		awaitEnd(m)
		equal(t, "remove", overlayCtl(t, m, 0, "remove fix"), "fix: removed.")
		requireTidy(t, m)
		requireSame(t, m, before)
	})
}

func TestBackupsAreRestoredAsTheyWere(t *testing.T) {
	t.Parallel()
	m, _ := demoMachine(t, nspawn.Trixie, nspawn.Options{})
	nothing := factsOf(t, m)
	m.Write("/run/new", "new\n")
	overlayCtl(t, m, 0, "create fix --priority=3")
	overlayCtl(t, m, 0, "set fix /usr/share/demo/text /usr/share/demo/deep/er/new /etc/demo/conf --from=new --from=new --from=new")
	overlayCtl(t, m, 0, "mask fix /usr/share/demo/folder /usr/share/demo/hidden")
	overlayCtl(t, m, 0, "add fix /usr/share/demo/same")
	before, entries := factsOf(t, m), entriesOf(t, m, "fix")

	equal(t, "backup", overlayCtl(t, m, 0, "backup fix"), "The backup of overlay fix is fix.tar.zst.")
	equal(t, "mode of a backup", m.Run("stat", "--format=%a", "/run/fix.tar.zst"), "600")
	overlayCtl(t, m, 0, "backup fix - >/run/stdout.tar.zst")
	m.Run("cmp", "/run/fix.tar.zst", "/run/stdout.tar.zst")
	untouched(t, m, func() { overlayCtl(t, m, exitFailed, "restore fix.tar.zst") }) // there is one of this name
	m.Run("cp", "/run/fix.tar.zst", "/run/copy")
	overlayCtl(t, m, 0, "restore copy --name=other")
	equal(t, "entries under another name", entriesOf(t, m, "other"), entries)
	overlayCtl(t, m, 0, "remove other")
	requireSame(t, m, before)

	overlayCtl(t, m, 0, "remove fix")
	requireSame(t, m, nothing)
	backup := []byte(m.Read("/run/fix.tar.zst"))
	// restored tries to restore something that is not what was written.
	refused := func(what string, content []byte) {
		t.Helper()
		untouched(t, m, func() {
			m.Write("/run/bad.tar.zst", string(content))
			requireSays(t, "restoring "+what, overlayCtl(t, m, exitFailed, "restore bad.tar.zst"), []string{"/run/bad.tar.zst"})
		})
	}
	refused("nothing", nil)
	refused("what is no backup", []byte("this is no backup"))
	refused("half a backup", backup[:len(backup)/2])
	refused("a backup without its end", backup[:len(backup)-1])
	plain := unpacked(t, backup)
	for _, change := range [][2]string{{"new\n", "NEW\n"}, {"tree/usr/share/demo/deep/er/new", "tree/usr/share/demo/deep/er/old"}, {`"name":"fix"`, `"name":"../"`}} {
		i := bytes.LastIndex(plain, []byte(change[0]))
		if i < 0 {
			t.Fatalf("the backup has no %q", change[0])
		}
		tampered := slices.Concat(plain[:i], []byte(change[1]), plain[i+len(change[0]):])
		refused("a backup with "+change[1], packed(t, tampered))
	}

	overlayCtl(t, m, 0, "restore - <fix.tar.zst")
	equal(t, "entries", entriesOf(t, m, "fix"), entries)
	equal(t, "priority", listOverlays(t, m)[0].Priority, 3)
	requireTree(t, "/usr", m.Snapshot("/usr"), before.usr)
	requireTree(t, "/etc", m.Snapshot("/etc"), before.etc)
	overlayCtl(t, m, 0, "remove fix")
	requireSame(t, m, nothing)
}

func unpacked(t *testing.T, content []byte) []byte {
	t.Helper()
	reader, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	plain, err := reader.DecodeAll(content, nil)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

func packed(t *testing.T, content []byte) []byte {
	t.Helper()
	writer, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	return writer.EncodeAll(content, nil)
}

func TestFreezeKeepsWhatWasWritten(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, _ := demoMachine(t, suite, nspawn.Options{})
		nothing := factsOf(t, m)
		overlayCtl(t, m, 0, "create scratch --writable")
		overlayCtl(t, m, exitFailed, "create second --writable")
		overlayCtl(t, m, exitFailed, "set scratch /usr/share/demo/text --from=/etc/demo/conf")
		m.Run("sh", "-ec", `
			echo written >/usr/share/demo/text
			mkdir -p /usr/share/demo/made/deep
			echo new >/usr/share/demo/made/deep/file
			ln -s deep/file /usr/share/demo/made/link
			rm -r /usr/share/demo/folder /usr/share/demo/hidden
			mkdir /usr/share/demo/folder
			echo other >/usr/share/demo/folder/other
			setfattr -n user.of -v demo /usr/share/demo/made/deep/file
			chown 1:2 /usr/share/demo/same; chmod 600 /usr/share/demo/same`)
		written := m.Snapshot("/usr")
		entries := entriesOf(t, m, "scratch")
		for _, want := range []string{"file usr/share/demo/text", "directory usr/share/demo/made", "file usr/share/demo/made/deep/file", "symlink usr/share/demo/made/link",
			"directory usr/share/demo/folder", "file usr/share/demo/folder/other", "mask usr/share/demo/hidden", "file usr/share/demo/same"} {
			requireSays(t, "show of a writable overlay", "\n"+entries+"\n", []string{"\n" + want + "\n"})
		}
		equal(t, "diff of a writable overlay", differencesOf(t, m, "scratch")["/usr/share/demo/text"].Diff,
			"--- a/usr/share/demo/text\n+++ b/usr/share/demo/text\n@@ -1,2 +1 @@\n-one\n-1\n+written\n")

		writer := m.Start("sh", "-c", "exec 7>>/usr/share/demo/log; sleep infinity")
		waitFor(t, "the file to be open", func() bool { return m.Exists("/usr/share/demo/log") })
		untouched(t, m, func() {
			requireSays(t, "freeze while a file is open", overlayCtl(t, m, exitFailed, "freeze scratch"), []string{"open for writing: /usr/share/demo/log by process "})
		})
		m.Run("sh", "-c", "echo >>/usr/share/demo/log; rm /usr/share/demo/log") // it can be written to as before
		writer.Stop()

		equal(t, "freeze", overlayCtl(t, m, 0, "freeze scratch"), "Overlay scratch is an ordinary one now.")
		equal(t, "freeze again", overlayCtl(t, m, exitNothing, "freeze scratch"), "Overlay scratch is not writable.")
		equal(t, "writing to what is frozen", m.Try("touch", "/usr/share/demo/text").Code, 1)
		requireTree(t, "/usr", m.Snapshot("/usr"), written)
		equal(t, "entries", entriesOf(t, m, "scratch"), entries)
		m.Run("sh", "-c", "echo changed | liveapplyctl overlay set scratch /usr/share/demo/text --from=-")
		equal(t, "a change of what is frozen", m.Run("cat", "/usr/share/demo/text"), "changed")
		m.Reboot()
		equal(t, "after a reboot", m.Run("cat", "/usr/share/demo/text", "/usr/share/demo/made/link"), "changed\nnew")
		overlayCtl(t, m, 0, "remove scratch")
		requireTree(t, "/usr", m.Snapshot("/usr"), nothing.usr)
	})
}

func TestRulesForOverlays(t *testing.T) {
	t.Parallel()
	m, _ := demoMachine(t, nspawn.Trixie, nspawn.Options{})
	m.Run("mkdir", "/run/big", "/run/image", "/run/image/usr")
	m.Run("sh", "-c", "head -c 5000 /dev/zero >/run/big/file; echo small >/run/small; echo EICAR >/run/image/usr/virus; mkdir -p /run/image/usr/share/demo; mv /run/image/usr/virus /run/image/usr/share/demo")
	m.Write("/run/scan", "#!/bin/sh\nif found=$(cd \"$2\" && grep -rl \"$1\" .); then echo \"found in $found\"; exit 1; fi\n")
	m.Run("chmod", "755", "/run/scan")
	overlayCtl(t, m, 0, "create fix")
	overlayCtl(t, m, 0, "set fix /usr/share/demo/text --from=small")
	overlayCtl(t, m, 0, "add fix /usr/bin/true")
	overlayCtl(t, m, 0, "backup fix")
	rules := func(rules string) {
		t.Helper()
		m.Write("/etc/liveapply/liveapply.conf", "[Apply]\nTransient=yes\n[Overlay]\n"+rules)
	}
	refused := func(command string, says ...string) {
		t.Helper()
		untouched(t, m, func() { requireSays(t, "overlay "+command, overlayCtl(t, m, exitFailed, command), says) })
	}

	rules("MaxSize=4K\n")
	refused("set fix /usr/share/demo/new --from=big/file", "MaxSize=")
	refused("add fix /usr/bin/bash", "MaxSize=")
	refused("restore fix.tar.zst --name=again", "MaxSize=")
	overlayCtl(t, m, 0, "unset fix /usr/bin/true")
	overlayCtl(t, m, 0, "set fix /usr/share/demo/new --from=small")

	rules("AllowPaths=/usr/share/demo /etc/demo/*\n")
	refused("set fix /usr/share/other --from=small", "/usr/share/other is not among AllowPaths=")
	refused("mask fix /usr/bin/factor", "AllowPaths=")
	refused("mask fix /etc/issue", "AllowPaths=")
	refused("restore fix.tar.zst --name=again", "AllowPaths=")
	overlayCtl(t, m, 0, "set fix /usr/share/demo/deep/new /etc/demo/new --from=small --from=small")

	rules("ContentScan=/run/scan EICAR\n")
	m.Run("sh", "-c", "echo EICAR >/run/bad")
	refused("set fix /usr/share/demo/new --from=bad", "ContentScan=", "found in ./usr/share/demo/new")
	refused("set fix /etc/demo/new --from=bad", "found in ./etc/demo/new")
	refused("import image", "found in ./usr/share/demo/virus")
	overlayCtl(t, m, 0, "set fix /usr/share/demo/new --from=small")
	rules("ContentScan=/run/no-such-program\n")
	refused("set fix /usr/share/demo/new --from=small", "/run/no-such-program")

	rules("AllowSetuid=yes\n")
	overlayCtl(t, m, 0, "add fix /usr/bin/su")
	rules("")
	refused("set fix /usr/share/demo/new --from=small", "AllowSetuid=yes")
	overlayCtl(t, m, 0, "unset fix /usr/bin/su")
	overlayCtl(t, m, 0, "set fix /usr/share/demo/new --from=small")
}

func TestOverlayOfAUnitAtTheCommandLine(t *testing.T) {
	t.Parallel()
	m := lab.Machine(t, lab.Derive(t, product(t, nspawn.Trixie), withTrial), nspawn.Options{})
	m.Boot()
	m.Run("systemctl", "start", trialUnit)
	overlayCtl(t, m, 0, "create trial --scope=unit:"+trialUnit)
	m.Write("/run/new", "trial\n")
	overlayCtl(t, m, 0, "set trial /usr/lib/lab/changed /etc/trial.conf --from=new --from=new")
	for _, path := range []string{"/usr/lib/lab/changed", "/etc/trial.conf"} {
		equal(t, path+", for the unit", seenBy(m, trialUnit, path), "trial")
	}
	equal(t, "the file, for others", m.Run("cat", "/usr/lib/lab/changed"), "1")
	equal(t, "there is the one in /etc, for others", m.Exists("/etc/trial.conf"), false)
	// What makes it an extension for systemd is none of its content.
	equal(t, "entries", entriesOf(t, m, "trial"), "file etc/trial.conf\nfile usr/lib/lab/changed")
	equal(t, "differences", len(differencesOf(t, m, "trial")), 2)
	equal(t, "stack", stackOf(status(t, m).Stack), "booted")
	requireSays(t, "overlay list", overlayCtl(t, m, 0, "list"), []string{"trial", "unit:" + trialUnit})

	overlayCtl(t, m, 0, "backup trial")
	overlayCtl(t, m, 0, "remove trial")
	equal(t, "the file, for the unit", seenBy(m, trialUnit, "/usr/lib/lab/changed"), "1")
	overlayCtl(t, m, 0, "restore trial.tar.zst")
	equal(t, "entries", entriesOf(t, m, "trial"), "file etc/trial.conf\nfile usr/lib/lab/changed")
	equal(t, "the file, for the unit", seenBy(m, trialUnit, "/usr/lib/lab/changed"), "trial")
	overlayCtl(t, m, 0, "remove trial")
	requireTidy(t, m)

	// A unit that cannot be restarted, neither with an overlay nor without it, is in the way of its own overlays only.
	m.Write("/etc/systemd/system/stays.service", "[Unit]\nRefuseManualStop=yes\n[Service]\nExecStart=sleep infinity\n")
	m.Run("systemctl", "daemon-reload")
	m.Run("systemctl", "start", "stays.service")
	overlayCtl(t, m, 0, "create steady")
	overlayCtl(t, m, 0, "mask steady /usr/lib/lab/changed")
	overlayCtl(t, m, 0, "create stays --scope=unit:stays.service") // there is nothing to see yet
	requireSays(t, "overlay set", overlayCtl(t, m, 1, "set stays /usr/lib/lab/new --from=/etc/hostname"), []string{"restarting stays.service", "refuse"})
	awaitEnd(m)
	equal(t, "there is what another overlay hides", m.Exists("/usr/lib/lab/changed"), false)
	equal(t, "entries", entriesOf(t, m, "stays"), "")
	overlayCtl(t, m, 0, "remove steady stays")
	requireTidy(t, m)
}

// The manager of a user goes on with what it was started with, and so has that.
func TestContentThatAUnitRunsOnIsKept(t *testing.T) {
	t.Parallel()
	m, _ := demoMachine(t, nspawn.Trixie, nspawn.Options{})
	m.Run("useradd", "--uid=1000", "--create-home", "demo")
	const manager, path, store = "user@1000.service", "/usr/share/demo/text", "/var/lib/liveapply/overlays/mine/"
	set := func(content string) {
		t.Helper()
		m.Run("sh", "-c", "echo "+content+" | liveapplyctl overlay set mine "+path+" --from=-")
	}
	overlayCtl(t, m, 0, "create mine --scope=user:1000")
	set("first")
	m.Run("systemctl", "start", manager)
	equal(t, "the first content", seenBy(m, manager, path), "first")
	set("second")
	set("third")
	equal(t, "what the manager goes on with", seenBy(m, manager, path), "first")
	equal(t, "the content that it has", m.Run("ls", store), "1\n3")
	m.Run("systemctl", "restart", manager)
	equal(t, "after a restart", seenBy(m, manager, path), "third")
	set("fourth")
	equal(t, "what is kept after a restart", m.Run("ls", store), "3\n4")
	overlayCtl(t, m, 0, "remove mine")
	equal(t, "what the manager goes on with", seenBy(m, manager, path), "third")
	equal(t, "what is kept of a removed one", m.Run("ls", store), "3")
	m.Run("systemctl", "stop", manager)
	overlayCtl(t, m, 0, "create other")
	requireTidy(t, m)
}

func TestNeedsRestartFindsWhatRunsOnFilesThatAnOverlayReplaces(t *testing.T) {
	t.Parallel()
	for kind, boot := range map[string]func(t *testing.T) *nspawn.Machine{
		"OSTree": func(t *testing.T) *nspawn.Machine {
			m, _ := demoMachine(t, nspawn.Trixie, nspawn.Options{})
			return m
		},
		"plain": func(t *testing.T) *nspawn.Machine { return plainMachine(t, nspawn.Trixie) },
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			m := boot(t)
			requireOutdated(t, m, "without an overlay")
			library := m.Run("sh", "-c", "realpath /usr/lib/*/libdbus-1.so.3")
			m.Run("sh", "-c", "cp "+library+" /run/libdbus; echo changed >>/run/libdbus")
			overlayCtl(t, m, 0, "create fix")
			overlayCtl(t, m, 0, "set fix "+library+" --from=libdbus")
			requireOutdated(t, m, "with an overlay", "system dbus.service: replaced "+library)
			requireSays(t, "needs-restart", m.Run("liveapplyctl", "needs-restart"), []string{"dbus.service", library})
			overlayCtl(t, m, 0, "disable fix")
			requireOutdated(t, m, "when it is disabled")
			overlayCtl(t, m, 0, "enable fix")
			requireOutdated(t, m, "when it is enabled again", "system dbus.service: replaced "+library)
			m.Run("systemctl", "restart", "dbus.service")
			requireOutdated(t, m, "after a restart")
			overlayCtl(t, m, 0, "remove fix")
			requireOutdated(t, m, "without the overlay", "system dbus.service: replaced "+library)

			// One with mounts of its own stays on the stack that it was started on.
			m.Run("systemctl", "restart", "dbus.service")
			m.Run("cp", "/usr/bin/sleep", "/run/program")
			overlayCtl(t, m, 0, "create tool")
			overlayCtl(t, m, 0, "set tool /usr/share/demo/program --from=program")
			m.Run("systemd-run", "--quiet", "--unit=apart", "--service-type=exec", "--property=ProtectKernelModules=yes", "/usr/share/demo/program", "infinity")
			requireOutdated(t, m, "with a tool")
			m.Run("sh", "-c", "echo changed >>/run/program")
			overlayCtl(t, m, 0, "set tool /usr/share/demo/program --from=program")
			requireOutdated(t, m, "with another one", "system apart.service: replaced /usr/share/demo/program")
			overlayCtl(t, m, 0, "remove tool")
			requireOutdated(t, m, "without the tool", "system apart.service: deleted /usr/share/demo/program")
		})
	}
}

func TestContentOfRequestsThatNobodyWaitsFor(t *testing.T) {
	t.Parallel()
	m, _ := demoMachine(t, nspawn.Trixie, nspawn.Options{})
	overlayCtl(t, m, 0, "create fix")
	m.Run("sh", "-c", "echo piped | liveapplyctl overlay set --no-wait fix /usr/share/demo/text --from=-")
	waitFor(t, "the content", func() bool { return m.Try("cat", "/usr/share/demo/text").Stdout == "piped" })
	awaitEnd(m)
	requireTidy(t, m)

	// Whoever waits is interrupted, and the unit goes on.
	m.Write("/etc/liveapply/liveapply.conf", "[Overlay]\nContentScan=/run/scan\n")
	m.Write("/run/scan", "#!/bin/sh\nwhile [ ! -e /run/go ]; do sleep 0.05; done\n")
	m.Run("chmod", "755", "/run/scan")
	waiting := m.Start("sh", "-c", "echo later | liveapplyctl overlay set fix /usr/share/demo/text --from=-")
	waitFor(t, "the scan", func() bool { return m.Try("pgrep", "--full", "/run/scan").Code == 0 })
	m.Run("pkill", "--signal=INT", "--exact", "liveapplyctl")
	output, err := waiting.Wait()
	if err == nil {
		t.Error("an interrupted liveapplyctl succeeds")
	}
	requireSays(t, "an interrupted liveapplyctl", output, []string{"interrupted, but liveapply-overlay@", "goes on"})
	m.Write("/run/go", "")
	waitFor(t, "the content", func() bool { return m.Try("cat", "/usr/share/demo/text").Stdout == "later" })
	awaitEnd(m)
	requireTidy(t, m)
}

func TestBackupsOfOtherKindsOfOverlays(t *testing.T) {
	t.Parallel()
	m, _ := demoMachine(t, nspawn.Trixie, nspawn.Options{})
	nothing := factsOf(t, m)
	overlayCtl(t, m, 0, "create scratch --writable --runtime")
	if result := unprivileged(m, "overlay", "list"); result.Code != 0 || !strings.Contains(result.Stdout, "scratch") {
		t.Errorf("everybody may list overlays: %+v", result)
	}
	m.Run("sh", "-ec", `
		echo written >/usr/share/demo/text
		rm -r /usr/share/demo/folder; mkdir -m 700 /usr/share/demo/folder; echo other >/usr/share/demo/folder/other
		chmod 711 /usr/share/demo; chown 3:4 /usr/share/demo
		rm /usr/share/demo/hidden; ln -s /etc/demo /usr/share/demo/link; ln /usr/share/demo/text /usr/share/demo/hard
		setfattr -n user.of -v demo /usr/share/demo/text`)
	m.Run("sh", "-ec", "mkdir -p /run/image/lib/demo; echo image >/run/image/lib/demo/image")
	overlayCtl(t, m, 0, "import image --priority=4")
	before := factsOf(t, m)
	entries := map[string]string{}
	for _, name := range []string{"scratch", "updates"} {
		entries[name] = entriesOf(t, m, name)
		overlayCtl(t, m, 0, "backup "+name)
		overlayCtl(t, m, 0, "remove "+name)
	}
	requireSame(t, m, nothing)
	for _, name := range []string{"scratch", "updates"} {
		overlayCtl(t, m, 0, "restore "+name+".tar.zst")
		equal(t, "entries of "+name, entriesOf(t, m, name), entries[name])
	}
	requireTree(t, "/usr", m.Snapshot("/usr"), before.usr)
	equal(t, "stack", stackOf(status(t, m).Stack), "overlay scratch, updates updates, booted")
	m.Run("touch", "/usr/share/demo/more")
	requireSays(t, "overlay import", overlayCtl(t, m, 1, "import image --runtime"), []string{"there is an overlay updates already"})
	overlayCtl(t, m, 0, "import image") // it is one of updates still
	overlayCtl(t, m, 0, "remove scratch updates")
	requireSame(t, m, nothing)
}

// Also when no deployment is staged, whose unit would be stopped between this and the unmounting of /boot.
func TestOverlaysLeaveEtcAtEachShutdown(t *testing.T) {
	t.Parallel()
	m, _ := demoMachine(t, nspawn.Trixie, nspawn.Options{})
	m.Run("sh", "-c", "echo new >/run/new")
	overlayCtl(t, m, 0, "create kept")
	overlayCtl(t, m, 0, "set kept /etc/demo/conf --from=new")
	for range 3 {
		// What it needs stays mounted for as long as it takes.
		dropIn(m, "liveapply-etc-revert.service", "ExecStop=\nExecStop=/bin/sleep 1\nExecStop="+helper+" etc-revert")
		m.PowerOff()
		deployments, err := filepath.Glob(m.Sysroot() + "/ostree/deploy/debian/deploy/*/etc/demo/conf")
		if err != nil || len(deployments) != 1 {
			t.Fatalf("%q: %v", deployments, err)
		}
		content, err := os.ReadFile(deployments[0])
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "the file while the machine is off", string(content), "conf 1\n")
		m.Boot()
		equal(t, "the file while it is on", m.Read("/etc/demo/conf"), "new\n")
	}
}
