package stale

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/nstest"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/treediff"
	"github.com/liveapply/liveapply/internal/underlay"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// newTmpfs mounts a filesystem of its own until the test ends.
func newTmpfs(t *testing.T, at string) string {
	t.Helper()
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	return at
}

// newLabOfSeveral returns a lab whose /usr is a filesystem, another one for layers, and a function that shows such a layer.
func newLabOfSeveral(t *testing.T) (l lab, layers lab, show func(layer string)) {
	t.Helper()
	l, layers = newLab(t), newLab(t)
	newTmpfs(t, l.usr)
	newTmpfs(t, layers.usr)
	private := filepath.Join(t.TempDir(), "private")
	usr := underlay.Usr{Path: l.usr, Private: private}
	t.Cleanup(func() {
		if err := usr.Detach(); err != nil {
			t.Error(err)
		}
	})
	return l, layers, func(layer string) {
		t.Helper()
		stack := underlay.Stack{Source: underlay.Source{Live: layer}, Layers: []string{filepath.Join(layers.usr, layer)}}
		if _, err := usr.Switch(stack); err != nil {
			t.Fatal(err)
		}
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	id, err := identify(unix.AT_FDCWD, path, 0)
	if err != nil {
		t.Fatal(err)
	}
	return id.ino
}

func TestFilesOfSeveralFilesystems(t *testing.T) {
	l, layers, show := newLabOfSeveral(t)
	same, other, twin := l.put("bin/same", "/bin/sleep", ""), l.put("bin/other", "/bin/sleep", ""), l.put("bin/twin", "/bin/sleep", "")
	number := inode(t, twin)
	booted := map[string]int{"same": l.start(same, "1000"), "other": l.start(other, "1000"), "twin": l.start(twin, "1000")}

	layers.put("one/bin/other", "/bin/sleep", "x")
	// Numbers are given in their order on each filesystem: the file that replaces another one may well have the same.
	replacement := layers.put("one/bin/twin", "/bin/sleep", "x")
	for range 1000 {
		if inode(t, replacement) == number {
			break
		}
		replacement = layers.put("one/bin/twin", "/bin/sleep", "x")
	}
	show("one")
	if got := inode(t, twin); got != number {
		t.Fatalf("the file in the layer has inode %d, not %d: this tests nothing", got, number)
	}
	l.requireFound("one layer", map[int][]File{booted["other"]: {{other, Replaced}}, booted["twin"]: {{twin, Replaced}}})

	first := map[string]int{"same": l.start(same, "1000"), "other": l.start(other, "1000"), "twin": l.start(twin, "1000")}
	layers.put("two/bin/other", "/bin/sleep", "y")
	show("two")
	l.requireFound("the layer after that", map[int][]File{
		booted["other"]: {{other, Replaced}}, first["other"]: {{other, Replaced}}, first["twin"]: {{twin, Replaced}},
	})
}

// The content would tell as well, but reading all files that all processes use is not cheap.
func TestUnchangedFilesAreNotRead(t *testing.T) {
	l, layers, show := newLabOfSeveral(t)
	same := l.put("bin/same", "/bin/sleep", "")
	l.start(same, "1000")
	number := inode(t, same)
	layers.put("one/bin/other", "/bin/sleep", "")
	layers.put("two/bin/other", "/bin/sleep", "")
	for _, layer := range []string{"one", "two"} {
		show(layer)
		if got := inode(t, same); got != number {
			t.Errorf("an unchanged file has inode %d now, it was %d", got, number)
		}
	}
}

func TestScriptsOfTreesOfSeveralFilesystems(t *testing.T) {
	l, layers, show := newLabOfSeveral(t)
	trees := Trees(t.TempDir())
	l.put("bin/perl", "/usr/bin/perl", "")
	script := filepath.Join(l.usr, "script")
	showCommit := func(layer string, commit ostree.Checksum) {
		t.Helper()
		path := filepath.Join(layers.usr, layer, "script")
		change := treediff.Change{Path: "script", New: ostree.Entry{Kind: ostree.KindFile, Checksum: commit}}
		// Perl reads it to its end, and closes it, before it says anything.
		content := "#!" + l.usr + "/bin/perl\n$| = 1; print 'ready'; <STDIN>; # " + layer + "\n"
		for _, do := range []func() error{
			func() error { return os.MkdirAll(filepath.Dir(path), 0o755) },
			func() error { return os.WriteFile(path, []byte(content), 0o755) },
			func() error { return trees.Describe(commit, []treediff.Change{change}) },
			func() error { show(layer); return nil },
			func() error { return trees.Shows(l.usr, commit) },
		} {
			if err := do(); err != nil {
				t.Fatal(err)
			}
		}
	}
	showCommit("one", ostree.Checksum{1})
	pid := l.startScript(script)
	showCommit("two", ostree.Checksum{2})
	system := l.system()
	system.Trees = trees
	found, err := system.Scan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range found.Processes {
		if process.PID == pid && len(process.Files) == 1 && process.Files[0] == (File{script, Argument}) {
			return
		}
	}
	t.Errorf("the script of another tree was not found: %+v", found.Processes)
}

// A file that overlayfs copied up keeps the inode number that it had in the layer below, if that is on the same filesystem.
func TestFilesThatAreWrittenInPlaceThroughAnOverlay(t *testing.T) {
	l := newLab(t)
	base := newTmpfs(t, l.usr)
	l.usr = filepath.Join(base, "usr")
	written, touched := l.put("bin/written", "/bin/sleep", ""), l.put("bin/touched", "/bin/sleep", "")
	number := inode(t, written)
	first := l.start(written, "1000")
	l.start(touched, "1000")
	stack := underlay.Stack{Source: underlay.Source{Live: underlay.Base}, Upper: filepath.Join(base, "upper"), Work: filepath.Join(base, "work")}
	usr := underlay.Usr{Path: l.usr, Private: filepath.Join(t.TempDir(), "private")}
	content, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	for _, do := range []func() error{
		func() error { return os.Mkdir(stack.Upper, 0o755) },
		func() error { return os.Mkdir(stack.Work, 0o755) },
		func() error { _, err := usr.Switch(stack); return err },
		func() error { return os.WriteFile(written, append(content, 'x'), 0o755) },
		func() error { return os.Chmod(touched, 0o700) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := usr.Detach(); err != nil {
			t.Error(err)
		}
	})
	if got := inode(t, written); got != number {
		t.Fatalf("the file that was written has inode %d, not %d: this tests nothing", got, number)
	}
	l.requireFound("written in place", map[int][]File{first: {{written, Replaced}}})
}
