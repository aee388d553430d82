package xattr

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestReadsAllXattrsByName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"user.empty": "", "user.b": "2", "user.a": "\x00\xff", "user.long": strings.Repeat("v", 3000)}
	for range 3 { // more names than fit into a small buffer
		name := "user." + strings.Repeat("n", 100+len(want))
		want[name] = name
	}
	for name, value := range want {
		if err := unix.Setxattr(path, name, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	listed, err := List(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func(func(string, []byte)) error{
		"Read":     func(add func(string, []byte)) error { return Read(path, add) },
		"ReadOpen": func(add func(string, []byte)) error { return ReadOpen(int(f.Fd()), add) },
	} {
		got, order := map[string]string{}, []string(nil)
		if err := read(func(name string, value []byte) { got[name], order = string(value), append(order, name) }); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if !slices.IsSorted(order) || !slices.Equal(order, listed) {
			t.Errorf("%s: in the order %q, List says %q", name, order, listed)
		}
	}
}

func TestAFileWithoutXattrsHasNone(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := errors.Join(unix.Setxattr(dir, "user.a", []byte("1"), 0), os.Symlink(dir, link)); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"a symbolic link to one that has": link, "no file system with xattrs": "/proc/self/comm"} {
		if names, err := List(path); err != nil || len(names) != 0 {
			t.Errorf("%s: %q, %v", name, names, err)
		}
	}
	if err := Read(filepath.Join(dir, "none"), func(string, []byte) {}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what does not exist: %v", err)
	}
}
