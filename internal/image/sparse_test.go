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
	path := filepath.Join(t.TempDir(), "copy")
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
		// The sectors that the file takes would count the file system's own blocks, too.
		for at := int64(0); at < size; at += 4096 {
			if len(bytes.Trim(content[at:min(at+4096, size)], "\x00")) > 0 {
				continue
			}
			if data, err := dst.Seek(at, unix.SEEK_DATA); err == nil && data < at+4096 {
				t.Fatalf("the block of zeros at %d was written", at)
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
