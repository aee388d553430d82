package image

import (
	"archive/tar"
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseSource(t *testing.T) {
	digest := strings.Repeat("0aF", 21) + "9"
	for text, want := range map[string]Source{
		"/run/updates.img":                 {Location: "/run/updates.img"},
		"/a,b":                             {Location: "/a,b"},
		"https://x/y?z=1,sha256=" + digest: {Location: "https://x/y?z=1", SHA256: digest},
	} {
		got, err := ParseSource(text)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: %v, (-want +got):\n%s", text, err, diff)
		}
	}
	for _, text := range []string{"", ",sha256=" + digest, "/a,sha256=", "/a,sha256=" + digest + "0", "/a,sha256=" + digest[1:] + "x"} {
		if got, err := ParseSource(text); err == nil {
			t.Errorf("%q was taken as %+v", text, got)
		}
	}
}

// server gives content, at /image with its length, at /chunked without, and at /moved by a redirection.
func server(t *testing.T, content []byte) string {
	mux := http.NewServeMux()
	mux.HandleFunc("/image", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", r.Header.Get("Accept-Encoding"))
		_, _ = w.Write(content)
	})
	mux.HandleFunc("/chunked", func(w http.ResponseWriter, r *http.Request) {
		for i := range content {
			_, _ = w.Write(content[i : i+1])
			w.(http.Flusher).Flush()
		}
	})
	mux.HandleFunc("/cut", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100000")
		_, _ = w.Write(content)
	})
	mux.Handle("/moved", http.RedirectHandler("/image", http.StatusFound))
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL
}

func TestWhatWasCheckedIsWhatIsRead(t *testing.T) {
	archive := tarOf(t, tar.Header{Name: "usr/a", Size: 3})
	path, url, dir := written(t, archive), server(t, archive), t.TempDir()
	for _, location := range []string{path, url + "/image", url + "/chunked", url + "/moved"} {
		image, err := Source{location, strings.ToUpper(sum(archive))}.Open(t.Context(), int64(len(archive)), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		if err := os.WriteFile(path, []byte("something else"), 0o600); err != nil {
			t.Fatal(err)
		}
		var names []string
		err = Read(t.Context(), image, enough, func(e Entry) error { names = append(names, e.Path); return nil })
		if diff := cmp.Diff([]string{"usr", "usr/a"}, names); err != nil || diff != "" {
			t.Errorf("%s: %v, (-want +got):\n%s", location, err, diff)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
}

// As in an early boot: from the server to /run, and mounted from there.
func TestDownloadedFileSystemIsMountedFromTheCopy(t *testing.T) {
	dir, run := example(t), t.TempDir()
	if err := unix.Mount("tmpfs", run, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(run, unix.MNT_DETACH) }() // udev may have a loop device open yet, which keeps its image
	for _, f := range formats {
		content := readFile(t, f.make(t, dir))
		if content == nil {
			continue
		}
		image, err := Source{server(t, content) + "/image", sum(content)}.Open(t.Context(), enough.Bytes, run)
		if err != nil {
			t.Fatal(err)
		}
		entries := 0
		if err := Read(t.Context(), image, enough, func(e Entry) error { entries++; return nil }); err != nil || entries != len(tree(t, dir)) {
			t.Errorf("%s: %d entries, %v", f.name, entries, err)
		}
		image.Close()
	}
}

func TestSourcesAreRefused(t *testing.T) {
	content := bytes.Repeat([]byte("x"), 5000)
	path, url, dir := written(t, content), server(t, content), t.TempDir()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	right, wrong := sum(content), strings.Repeat("0", 64)
	const long, other = "more than 4999 bytes", "and not " + "0000"
	for _, test := range []struct {
		source Source
		limit  int64
		want   string
	}{
		{Source{path, wrong}, 5000, other},
		{Source{path, right}, 4999, long},
		{Source{path, "12"}, 5000, "no sha256"},
		{Source{dir, right}, 5000, "only a file can"},
		{Source{fifo, right}, 5000, "only a file can"},
		{Source{path + "x", ""}, 5000, "no such file"},
		{Source{url + "/image", ""}, 5000, "needs a checksum"},
		{Source{url + "/image", wrong}, 5000, other},
		{Source{url + "/chunked", wrong}, 5000, other},
		{Source{url + "/image", right}, 4999, long},
		{Source{url + "/chunked", right}, 4999, long},
		{Source{url + "/cut", right}, 200000, "unexpected EOF"},
		{Source{url + "/nothing", right}, 5000, "404"},
		{Source{"http://127.0.0.1:1/image", right}, 5000, "connection refused"},
		{Source{"ftp://x/y", right}, 5000, "only http and https"},
		{Source{"file:///etc/passwd", right}, 5000, "only http and https"},
		{Source{strings.Replace(url, "://", "://me:hidden@", 1) + "/nothing", right}, 5000, "me:xxxxx@"},
	} {
		image, err := test.source.Open(t.Context(), test.limit, dir)
		if err == nil {
			image.Close()
			t.Errorf("%v was taken", test.source)
			continue
		}
		if !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%v: %q does not say %q", test.source, err, test.want)
		}
	}
}

func TestDirectoryWithoutAChecksumIsOpened(t *testing.T) {
	dir := t.TempDir()
	image, err := Source{Location: dir}.Open(t.Context(), 0, "/nonexistent")
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	err = Read(t.Context(), image, enough, func(e Entry) error { _, err := io.Copy(io.Discard, e.Content); return err })
	if err != nil {
		t.Error(err)
	}
}
