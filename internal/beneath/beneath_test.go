package beneath

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func TestRemoveDeletesTheDirectoryAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	for _, sub := range []string{"outside/kept", "tree/a/b/c", "tree/closed"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tree := filepath.Join(dir, "tree")
	if err := errors.Join(os.Symlink(outside, filepath.Join(tree, "a/link")), os.Chmod(filepath.Join(tree, "closed"), 0),
		unix.Mknod(filepath.Join(tree, "a/whiteout"), unix.S_IFCHR, 0), unix.Mount(outside, filepath.Join(tree, "a/b/c"), "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	if err := Remove(tree); err == nil {
		t.Error("no error although something is mounted there")
	}
	if _, err := os.Stat(filepath.Join(outside, "kept")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(filepath.Join(tree, "a/b/c"), 0); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing
		if err := Remove(tree); err != nil {
			t.Error(err)
		}
	}
	if err := Remove(filepath.Join(dir, "no/such/directory")); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*/*"))
	if diff := cmp.Diff([]string{filepath.Join(outside, "kept")}, left); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if err := os.Symlink(outside, tree); err != nil {
		t.Fatal(err)
	}
	if err := Remove(tree); err == nil {
		t.Error("no error for a symbolic link")
	}
}
