package underlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadOnlyTreeCanBeWrittenThroughAPrivateView(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}

	view, err := OpenWritable(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	inside := fmt.Sprintf("/proc/self/fd/%d", view.Fd())
	for _, sub := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(inside, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(inside, "a/file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(inside, "a/file"), filepath.Join(inside, "b/file")); err != nil {
		t.Errorf("a link within the view: %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "b/file")); err != nil || string(got) != "content" {
		t.Errorf("the tree itself shows %q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "c"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to the tree itself: %v, want %v", err, unix.EROFS)
	}
}
