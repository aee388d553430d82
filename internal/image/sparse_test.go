package image

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestSparseCopyIsTheSameWithoutZeros(t *testing.T) {
	// What is a hole is a matter of the file system, too: some allocate ahead of what is written, and keep that. This one has a page or none.
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "huge=never"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	page := int64(os.Getpagesize())
	path := filepath.Join(dir, "copy")
	rapid.Check(t, func(t *rapid.T) {
		var content []byte
		for range rapid.IntRange(0, 6).Draw(t, "parts") {
			content = append(content, rapid.SliceOfN(rapid.Byte(), 0, 10).Draw(t, "data")...)
			content = append(content, make([]byte, rapid.IntRange(0, 200000).Draw(t, "zeros"))...)
		}
		dst, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer dst.Close()
		size, err := CopySparse(dst, iotest.HalfReader(bytes.NewReader(content)))
		if err != nil || size != int64(len(content)) {
			t.Fatalf("copied %d bytes of %d: %v", size, len(content), err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("the copy has other content: %v", err)
		}
		for at := int64(0); at < size; at += page {
			if len(bytes.Trim(content[at:min(at+page, size)], "\x00")) > 0 {
				continue
			}
			if data, err := dst.Seek(at, unix.SEEK_DATA); err == nil && data < at+page {
				t.Fatalf("the page of zeros at %d was written", at)
			} else if err != nil && !errors.Is(err, unix.ENXIO) {
				t.Fatal(err)
			}
		}
	})
}

func TestSparseCopyFailsAsTheReaderDoes(t *testing.T) {
	dst, err := os.Create(filepath.Join(t.TempDir(), "copy"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if _, err := CopySparse(dst, iotest.ErrReader(errTruncated)); err != errTruncated {
		t.Errorf("it returns %v", err)
	}
}
