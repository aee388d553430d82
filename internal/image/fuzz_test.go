package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/fuzztest"
	"golang.org/x/sys/unix"
)

// perByte is how much memory reading may take for a byte of an archive: each directory of a long path is an entry.
const perByte = 512

// Whatever an archive says, what comes out of it keeps the rules and the limits.
func FuzzArchive(f *testing.F) {
	long := strings.Repeat("a/", 60)
	for _, archive := range [][]byte{
		tarOf(f, tar.Header{Name: "./usr/a", Size: 700}, tar.Header{Name: "usr/b", Typeflag: tar.TypeLink, Linkname: "usr/a"}),
		tarOf(f, tar.Header{Name: long + "\n", PAXRecords: map[string]string{tarXattr + "user.a": "b"}}),
		tarOf(f, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, tar.Header{Name: "l/x"}),
		cpioOf(record{name: "usr", mode: directory}, record{name: "usr/a", mode: regular, inode: 3, links: 2},
			record{name: "usr/b", mode: regular, inode: 3, links: 2, content: "hello"}, record{name: "l", mode: symlink, content: "../x"}),
		append(cpioOf(record{name: "../x", mode: regular}), cpioOf(record{name: long, mode: directory})...),
	} {
		f.Add(archive)
		f.Add(gzipped(f, archive))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if fileSystemOf(data) != "" {
			t.Skip("the kernel reads those")
		}
		if compressionOf(data) != nil {
			readFuzzed(t, data) // the window is memory that does not depend on the length
			return
		}
		fuzztest.Bounded(t, len(data), perByte, func() { readFuzzed(t, data) })
	})
}

func readFuzzed(t *testing.T, data []byte) {
	image := inMemory(t, data)
	defer image.Close()
	limits := Limits{Bytes: 1 << 20, Entries: 1000}
	size, entries, kinds := int64(0), 0, map[string]uint32{".": unix.S_IFDIR}
	_ = Read(context.Background(), image, limits, func(e Entry) error {
		entries++
		if e.Path == "." || path.Clean("/"+e.Path) != "/"+e.Path || strings.ContainsRune(e.Path, 0) {
			t.Errorf("an entry has the name %q", e.Path)
		}
		if !isDir(kinds[path.Dir(e.Path)]) {
			t.Errorf("%q is not in a directory", e.Path)
		}
		if kind, known := kinds[e.Path]; known && !(isDir(kind) && isDir(e.Mode)) {
			t.Errorf("%q is there twice", e.Path)
		}
		if to := kinds[e.Link]; e.Link != "" && to != unix.S_IFREG && to != unix.S_IFLNK {
			t.Errorf("%q is a link to %q", e.Path, e.Link)
		}
		kinds[e.Path] = e.Mode & unix.S_IFMT
		if e.Content == nil {
			return nil
		}
		n, err := io.Copy(io.Discard, e.Content)
		if size += n; n > e.Size || err == nil && n != e.Size {
			return fmt.Errorf("%q has %d bytes, not %d", e.Path, n, e.Size)
		}
		return err
	})
	if size > limits.Bytes || entries > limits.Entries {
		t.Errorf("%d entries with %d bytes came out", entries, size)
	}
}

// inMemory is a file with data.
func inMemory(t *testing.T, data []byte) *os.File {
	fd, err := unix.MemfdCreate("image", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	image := os.NewFile(uintptr(fd), "image")
	if _, err := io.Copy(image, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	return image
}
