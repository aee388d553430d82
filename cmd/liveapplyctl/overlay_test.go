package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/internal/overlay/content"
	"github.com/liveapply/liveapply/internal/state"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

func TestVerbsOfOverlayRefuseMistakesBeforeTheyLook(t *testing.T) {
	for _, line := range []string{
		"overlay frobnicate", "overlay --json", "help overlay frobnicate", "help overlay set now", "overlay create", "overlay create a b", "overlay create .a", "overlay create a --scope=all",
		"overlay create a --scope=unit:nginx.socket", "overlay create a --scope=unit:a@.service", "overlay create overlays.json", "overlay mask a /usr/\xe4", "overlay create a --priority=high", "overlay add a", "overlay set a", "overlay set a /b", "overlay set a /b /c --from=d",
		"overlay set a /b --from=c --from=d", "overlay set a /b /c --from=- --from=-", "overlay edit a", "overlay edit a /b /c", "overlay enable", "overlay enable --force a", "overlay freeze a b",
		"overlay import", "overlay import a --name=../a", "overlay import a --sha256=12", "overlay import https://example.com/a.img", "overlay backup", "overlay backup a b c", "overlay restore",
		"overlay restore a --name=/", "overlay list a", "overlay show", "overlay diff a b",
	} {
		var usage usageError
		if err := run(context.Background(), strings.Fields(line)); !errors.As(err, &usage) {
			t.Errorf("liveapplyctl %s: %v", line, err)
		}
	}
}

func TestArityIsThatOfTheUsageLine(t *testing.T) {
	for args, want := range map[string][2]int{"": {0, 0}, "[COMMIT]": {0, 1}, "NAME [FILE]": {1, 2}, "NAME PATH": {2, 2}} {
		least, most := verb{args: args}.arity()
		if diff := cmp.Diff(want, [2]int{least, most}); diff != "" {
			t.Errorf("%q (-want +got):\n%s", args, diff)
		}
	}
	if least, most := (verb{args: "NAME PATH..."}).arity(); least != 2 || most < 1000 {
		t.Errorf("NAME PATH... takes %d to %d", least, most)
	}
}

func TestListOfOverlaysFitsATerminalAndIsCompleteInAPipe(t *testing.T) {
	overlays := []listedOverlay{
		{Overlay: overlay.Overlay{Name: "try", Kind: overlay.Ordinary, Scope: overlay.System, Enabled: true, Writable: true}, Runtime: true, Stale: []string{}},
		{Overlay: overlay.Overlay{Name: "updates", Kind: overlay.Updates, Scope: overlay.Global, Priority: -10, Enabled: true, Source: "/run/media/\x1b[31m/updates.img"}, Stale: []string{"/usr/bin/a", "/usr/bin/b"}},
		{Overlay: overlay.Overlay{Name: "canary", Kind: overlay.Ordinary, Scope: "unit:nginx.service", Priority: 5}},
	}
	var onTerminal, inPipe, none bytes.Buffer
	must(t, errors.Join(printOverlays(terminal(&onTerminal, 60), overlays), printOverlays(pipe(&inPipe), overlays), printOverlays(pipe(&none), nil)))
	requireFits(t, onTerminal.String(), 60)
	want := `NAME     SCOPE               PRIORITY  STATE     STALE  WHAT
try      system                     0  enabled       -  overlay, runtime, writable
updates  global                   -10  enabled       2  updates, from /run/media/\u001b[31m/updates.img
canary   unit:nginx.service         5  disabled      ?  overlay
`
	if diff := cmp.Diff(want, inPipe.String()); diff != "" {
		t.Errorf("in a pipe (-want +got):\n%s", diff)
	}
	if none.String() != "There is no overlay.\n" {
		t.Errorf("without overlays: %q", none.String())
	}
}

func TestEntriesAreShown(t *testing.T) {
	shown := shownOverlay{
		listedOverlay: listedOverlay{Overlay: overlay.Overlay{Name: "hotfix", Kind: overlay.Ordinary, Scope: overlay.System, Enabled: true}},
		Entries: []overlay.Entry{
			{Path: "etc/a\nb", Kind: overlay.File, Mode: 0o640, Size: 2048, Stale: true}, {Path: "usr/bin/x", Kind: overlay.Masked},
			{Path: "usr/lib/x", Kind: overlay.Link, Mode: 0o777}, {Path: "usr/share/x", Kind: overlay.Folder, Opaque: true, Mode: 0o1755},
		},
	}
	var inPipe bytes.Buffer
	must(t, printEntries(pipe(&inPipe), shown))
	want := ` Overlay: hotfix
    Kind: overlay
   Scope: system
Priority: 0
   State: enabled

KIND       MODE     SIZE  STALE  PATH
file       0640  2.0 KiB  stale  /etc/a; b
mask       -           -  -      /usr/bin/x
symlink    -           -  -      /usr/lib/x
directory  1755        -  -      /usr/share/x
`
	if diff := cmp.Diff(want, inPipe.String()); diff != "" {
		t.Errorf("in a pipe (-want +got):\n%s", diff)
	}
}

// trees are two of them, below and in an overlay.
type trees struct{ below, above string }

// compare compares what the trees have at a path.
func (s trees) compare(t *testing.T, kind overlay.EntryKind, path string) difference {
	t.Helper()
	var below machine.Below
	if _, err := os.Lstat(filepath.Join(s.below, path)); err == nil {
		below.Path = filepath.Join(s.below, path)
	}
	d, err := compare(context.Background(), overlay.Entry{Path: path, Kind: kind}, below, filepath.Join(s.above, path))
	must(t, err)
	return d
}

func TestDifferencesTellAllAndCanBePatched(t *testing.T) {
	s := trees{t.TempDir(), t.TempDir()}
	both := func(path, below, above string) {
		write(t, filepath.Join(s.below, path), below)
		write(t, filepath.Join(s.above, path), above)
	}
	both("usr/text", "one\ntwo\n", "one\n2\x1b[31m")
	both("usr/binary", "a\x00b", "a\x00cd")
	both("usr/equal", "a\n", "a\n")
	both("usr/mode", "a\n", "a\n")
	must(t, unix.Chmod(filepath.Join(s.above, "usr/mode"), 0o4755))
	write(t, filepath.Join(s.above, "usr/new"), "new\n")
	write(t, filepath.Join(s.below, "usr/hidden"), "hidden\n")
	write(t, filepath.Join(s.below, "usr/link"), "no link\n")
	must(t, os.Symlink("else/where", filepath.Join(s.above, "usr/link")))

	differences := []difference{
		s.compare(t, overlay.File, "usr/text"), s.compare(t, overlay.File, "usr/binary"), s.compare(t, overlay.File, "usr/equal"), s.compare(t, overlay.File, "usr/mode"),
		s.compare(t, overlay.File, "usr/new"), s.compare(t, overlay.Masked, "usr/hidden"), s.compare(t, overlay.Link, "usr/link"),
	}
	differences[1].Stale = true
	var inPipe, onTerminal bytes.Buffer
	must(t, errors.Join(printDifferences(pipe(&inPipe), differences), printDifferences(terminal(&onTerminal, 80), differences)))
	want := `--- a/usr/text
+++ b/usr/text
@@ -1,2 +1,2 @@
 one
-two
+2` + "\x1b[31m" + `
\ No newline at end of file
replaced /usr/binary (file, 0644, 4 B, was file, 0644, 3 B)
stale /usr/binary: what it replaced is another file now
same /usr/equal (file, 0644, 2 B)
replaced /usr/mode (file, 4755, 2 B, was file, 0644, 2 B)
added /usr/new (file, 0644, 4 B)
--- /dev/null
+++ b/usr/new
@@ -0,0 +1 @@
+new
hidden /usr/hidden (file, 0644, 7 B)
replaced /usr/link (symlink to else/where, was file, 0644, 8 B)
`
	if diff := cmp.Diff(want, inPipe.String()); diff != "" {
		t.Errorf("in a pipe (-want +got):\n%s", diff)
	}
	if strings.Contains(withoutStyles(onTerminal.String()), "\x1b") {
		t.Errorf("a file commands the terminal: %q", onTerminal.String())
	}
	patch := exec.Command("patch", "--strip=1", "--directory="+s.below)
	patch.Stdin = &inPipe
	if said, err := patch.CombinedOutput(); err != nil {
		t.Fatalf("patch: %v: %s", err, said)
	}
	for _, path := range []string{"usr/text", "usr/new"} {
		got, err := os.ReadFile(filepath.Join(s.below, path))
		must(t, err)
		want, err := os.ReadFile(filepath.Join(s.above, path))
		must(t, err)
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s, patched (-want +got):\n%s", path, diff)
		}
	}
}

// aChange is a request on a system in a directory of its own.
func aChange(t *testing.T) *overlayChange {
	t.Helper()
	root := t.TempDir()
	return &overlayChange{machine: &machine.Machine{Root: root, State: state.Dirs{Run: filepath.Join(root, "run/liveapply")}}, id: newOverlayRequest()}
}

func TestContentIsNamedOrKept(t *testing.T) {
	c := aChange(t)
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "regular\n")
	must(t, unix.Chmod(file, 0o4750))
	if path, mode, err := c.content(file); err != nil || path != file || mode != 0o750 {
		t.Errorf("a file is %s, %#o, %v", path, mode, err)
	}

	t.Chdir(filepath.Dir(file))
	if path, _, err := c.content("file"); err != nil || path != file {
		t.Errorf("a file in the working directory is %s, %v", path, err)
	}

	fifo := filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	go func() { _ = os.WriteFile(fifo, []byte("from a pipe\n"), 0) }()
	open, err := os.Open(file)
	must(t, err)
	defer open.Close()
	kept := map[string]bool{}
	latin1 := filepath.Join(t.TempDir(), "\xe4")
	write(t, latin1, "in another encoding\n")
	for from, want := range map[string]string{fifo: "from a pipe\n", procPath(open): "regular\n", latin1: "in another encoding\n"} {
		path, mode, err := c.content(from)
		must(t, err)
		got, err := os.ReadFile(path)
		must(t, err)
		if string(got) != want || mode != newFileMode || kept[path] || !strings.HasPrefix(path, c.machine.State.Run+"/overlay/"+c.id+".d/") {
			t.Errorf("%s is kept as %s with %q, %#o", from, path, got, mode)
		}
		kept[path] = true
	}
	if _, _, err := c.content("/usr"); err == nil {
		t.Error("a directory is content")
	}
	must(t, c.machine.State.RemoveOverlayRequest(c.id))
	for path := range kept {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}
}

func procPath(file *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", file.Fd()) }

// anOverlay is one with operations done to it, in a store of its own.
func anOverlay(t *testing.T, root string, operations ...overlay.Operation) overlay.Placed {
	t.Helper()
	dir := t.TempDir()
	store := overlay.Store{Dir: dir, Path: dir}
	draft, err := content.NewDraft(store, content.Under{Root: root, Base: func(string) (overlay.Base, error) { return overlay.Base{}, nil }}, content.Rules{})
	must(t, err)
	defer draft.Close()
	for _, op := range append([]overlay.Operation{{Verb: overlay.Create, Name: "x"}}, operations...) {
		op.Name = "x"
		must(t, draft.Do(context.Background(), op))
	}
	must(t, errors.Join(draft.Finish(context.Background(), false), draft.Commit()))
	all, err := overlay.All([]overlay.Store{store})
	must(t, err)
	return all[0]
}

func TestEditorGetsACopyOfWhatThereIs(t *testing.T) {
	seen := filepath.Join(t.TempDir(), "seen")
	t.Setenv("SEEN", seen)
	t.Setenv("VISUAL", "")
	for name, test := range map[string]struct {
		path, editor, seen, result string
		err                        string
	}{
		"of the system":         {"/etc/system.conf", `sh -c 'cp "$1" "$SEEN"; echo more >>"$1"' -`, "system\n", "system\nmore\n", ""},
		"of the overlay":        {"/etc/mine.conf", `sh -c 'cp "$1" "$SEEN"; echo more >>"$1"' -`, "mine\n", "mine\nmore\n", ""},
		"replaced by rename":    {"/etc/mine.conf", `sh -c 'cp "$1" "$SEEN"; echo all >"$1.new"; mv "$1.new" "$1"' -`, "mine\n", "all\n", ""},
		"of none":               {"/etc/none.conf", `sh -c 'cp "$1" "$SEEN"; echo new >"$1"' -`, "", "new\n", ""},
		"not changed":           {"/etc/mine.conf", `sh -c 'cp "$1" "$SEEN"' -`, "mine\n", "", errNothing.Error()},
		"not empty, but failed": {"/etc/mine.conf", `sh -c 'cp "$1" "$SEEN"; echo >>"$1"; false' -`, "mine\n", "", "nothing was changed"},
		"of a link":             {"/etc/link.conf", "true", "", "", "name the file that it leads to"},
		"of a directory":        {"/etc/dir", "true", "", "", "no regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			c := aChange(t)
			etc := filepath.Join(c.machine.Root, "etc")
			for file, content := range map[string]string{"system.conf": "system\n", "mine.conf": "not mine\n", "dir/file": ""} {
				write(t, filepath.Join(etc, file), content)
			}
			must(t, os.Symlink("system.conf", filepath.Join(etc, "link.conf")))
			mine := filepath.Join(t.TempDir(), "mine")
			write(t, mine, "mine\n")
			o := anOverlay(t, c.machine.Root, overlay.Operation{Verb: overlay.Set, Path: "/etc/mine.conf", From: mine, Mode: 0o644})
			must(t, os.WriteFile(seen, nil, 0o600))
			t.Setenv("EDITOR", test.editor)

			copied, _, err := c.edit(o, test.path)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("the error is %v, want %q", err, test.err)
				}
			} else {
				must(t, err)
				result, err := os.ReadFile(copied)
				must(t, err)
				if string(result) != test.result || filepath.Base(copied) != filepath.Base(test.path) {
					t.Errorf("%s has %q, want %q", copied, result, test.result)
				}
			}
			if got, err := os.ReadFile(seen); err != nil || string(got) != test.seen {
				t.Errorf("the editor has seen %q, %v, want %q", got, err, test.seen)
			}
			for file, content := range map[string]string{"system.conf": "system\n", "mine.conf": "not mine\n"} {
				if got, err := os.ReadFile(filepath.Join(etc, file)); err != nil || string(got) != content {
					t.Errorf("%s has %q, %v", file, got, err)
				}
			}
		})
	}
}

func TestStackOfUsrIsShown(t *testing.T) {
	stack := []machine.UsrLayer{
		{Kind: "overlay", Name: "try", Writable: true}, {Kind: "updates", Name: "updates", Generation: 2, Stale: []string{"/usr/bin/a", "/usr/lib/b\x1b"}},
		{Kind: "live"}, {Kind: "booted"},
	}
	show := func(stack []machine.UsrLayer) string {
		var text bytes.Buffer
		must(t, printStack(pipe(&text), stack))
		return text.String()
	}
	want := `○ This system was not booted from OSTree
 /usr: overlay try (writable)
       updates updates
       the live commit
       the booted commit
Stale: updates: /usr/bin/a, /usr/lib/b\u001b
`
	if diff := cmp.Diff(want, show(stack)); diff != "" {
		t.Errorf("with overlays (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("○ This system was not booted from OSTree\n/usr: what the system has\n", show([]machine.UsrLayer{{Kind: "base"}})); diff != "" {
		t.Errorf("without (-want +got):\n%s", diff)
	}
	if fields := stackFields([]machine.UsrLayer{{Kind: "live"}, {Kind: "booted"}}); fields != nil {
		t.Errorf("without overlays, where commits are shown, there is more: %v", fields)
	}
	facts, err := json.Marshal(statusFacts{nil, []machine.UsrLayer{{Kind: "base"}}})
	if err != nil || string(facts) != `{"stack":[{"kind":"base"}]}` {
		t.Errorf("without OSTree, the facts are %s, %v", facts, err)
	}
}

func TestLastWordsTellOfOverlaysThatAreDisabled(t *testing.T) {
	c := aChange(t)
	c.say("Overlay %s has %s%s", "x", "/a\x1b", ofDisabled(overlay.Placed{}))
	if c.done != `Overlay x has /a\u001b; it is disabled.` {
		t.Errorf("it says %q", c.done)
	}
}
