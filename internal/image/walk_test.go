package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWhatADirectoryMustNotHaveIsRefused(t *testing.T) {
	for _, test := range []struct {
		name string
		make func(path string) error
		want string
	}{
		{"a device", func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) }, "device node"},
		{"a whiteout", func(path string) error { return unix.Mknod(path, unix.S_IFCHR, 0) }, "device node"},
		{"a FIFO", func(path string) error { return unix.Mkfifo(path, 0o600) }, "FIFO"},
		{"a socket", func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o600, 0) }, "socket"},
		{"an opaque directory", func(path string) error {
			if err := os.Mkdir(path, 0o755); err != nil {
				return err
			}
			return unix.Setxattr(path, "trusted.overlay.opaque", []byte("y"), 0)
		}, "overlayfs would obey"},
		{"a mount", func(path string) error {
			if err := os.Mkdir(path, 0o755); err != nil {
				return err
			}
			return unix.Mount("/etc", path, "", unix.MS_BIND, "")
		}, "something is mounted there"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "new\nname")
			if err := test.make(path); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
			refused(t, dir, enough, `"new\nname"`, test.want)
		})
	}
}

func TestChangesWhileADirectoryIsReadLeadNowhereElse(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	for path, content := range map[string]string{
		filepath.Join(outside, "file"): "secret", filepath.Join(dir, "sub/file"): "ours", filepath.Join(dir, "other"): "ours",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	links := t.TempDir()
	for name, target := range map[string]string{"sub": outside, "other": filepath.Join(outside, "file")} {
		if err := os.Symlink(target, filepath.Join(links, name)); err != nil {
			t.Fatal(err)
		}
	}
	stop, stopped := make(chan bool), make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			for _, name := range []string{"sub", "other"} {
				if err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, name), unix.AT_FDCWD, filepath.Join(links, name), unix.RENAME_EXCHANGE); err != nil {
					stopped <- err
					return
				}
			}
		}
	}()
	kinds := make(map[uint32]bool)
	deadline := time.Now().Add(time.Minute)
	for i := 0; i < 2000 || len(kinds) < 2 && time.Now().Before(deadline); i++ { // with one processor, the two seldom take turns
		nodes, _ := read(dir, enough) // that it was changed may be an error
		for path, n := range nodes {
			if n.Content == sum([]byte("secret")) {
				t.Fatalf("%q has what is outside of the image", path)
			}
			if path == "sub" {
				kinds[n.Mode&unix.S_IFMT] = true
			}
		}
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if len(kinds) != 2 {
		t.Errorf("nothing was changed while it was read: %v", kinds)
	}
}

func TestFileThatChangesWhileItIsReadIsAnError(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	for content, want := range map[string]string{"changed and longer": "changed while it was read", "": "truncated"} {
		image, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		err = Read(t.Context(), image, enough, func(e Entry) error { return os.WriteFile(path, []byte(content), 0o644) })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}
