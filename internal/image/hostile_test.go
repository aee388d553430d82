package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// written writes an image to a file.
func written(t testing.TB, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "updates.img")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// refused fails if the image is read, or refused without its name and all of want.
func refused(t *testing.T, image string, limits Limits, want ...string) {
	t.Helper()
	nodes, err := read(image, limits)
	if err == nil {
		t.Fatalf("it was read, as %v", nodes)
	}
	for _, part := range append(want, image) {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error %q does not say %q", err, part)
		}
	}
	if strings.ContainsAny(err.Error(), "\n\x00\x1b") {
		t.Errorf("the error %q has control characters", err)
	}
}

// tarOf makes an archive of headers with content of their size.
func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, header := range headers {
		if header.Mode == 0 && header.Typeflag != tar.TypeXGlobalHeader {
			header.Mode = 0o644
		}
		if err := w.WriteHeader(&header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, endless('x'), header.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

// record is an entry of a cpio archive, with any name and numbers.
type record struct {
	name, content string
	mode          uint32
	inode, links  int
	device        int
	size          string // eight digits; else that of content
}

func cpioOf(records ...record) []byte {
	var archive bytes.Buffer
	align := func() { archive.Write(make([]byte, -archive.Len()&3)) }
	for i, r := range append(records, record{name: cpioTrailer}) {
		if r.size == "" {
			r.size = fmt.Sprintf("%08X", len(r.content))
		}
		if r.inode == 0 {
			r.inode = i + 1
		}
		fmt.Fprintf(&archive, "070701%08X%08X%08X%08X%08X%08X%s%08X%08X%08X%08X%08X%08X%s\x00",
			r.inode, r.mode, 0, 0, max(r.links, 1), 0, r.size, 0, r.device, 0, 0, len(r.name)+1, 0, r.name)
		align()
		archive.WriteString(r.content)
		align()
	}
	return archive.Bytes()
}

const regular, directory, symlink = unix.S_IFREG | 0o644, unix.S_IFDIR | 0o755, unix.S_IFLNK | 0o777

func TestHostileNamesAreRefused(t *testing.T) {
	for name, want := range map[string]string{
		"../etc/passwd":                       `".."`,
		"usr/../../etc/passwd":                `".."`,
		"usr/..":                              `".."`,
		"./../x":                              `".."`,
		"/etc/passwd":                         "absolute",
		"//etc/passwd":                        "absolute",
		"usr/" + strings.Repeat("a", 256):     "256 bytes",
		strings.Repeat("a/", 2045) + "ab/cd":  "",
		strings.Repeat("abc/", 1023) + "abcd": "4096 bytes",
		"../\x1b[2J\n":                        `".."`,
	} {
		t.Run(fmt.Sprintf("%.30q", name), func(t *testing.T) {
			wants := []string{fmt.Sprintf("%.20q", name)[:min(len(name), 15)], want}
			if want == "" { // just short enough
				if _, err := read(written(t, tarOf(t, tar.Header{Name: name, Size: 1})), enough); err != nil {
					t.Error(err)
				}
				return
			}
			refused(t, written(t, tarOf(t, tar.Header{Name: name, Size: 1})), enough, wants...)
			if len(name) < cpioMaxName {
				refused(t, written(t, cpioOf(record{name: name, mode: regular, content: "x"})), enough, wants...)
			}
		})
	}
	for what, image := range map[string][]byte{
		"NUL byte":                 cpioOf(record{name: "usr/a\x00b", mode: regular}),
		"an entry's name has 4097": cpioOf(record{name: strings.Repeat("a/", 2048), mode: regular}),
		"no name":                  cpioOf(record{name: "", mode: regular}),
		"the root of the image":    cpioOf(record{name: ".", mode: symlink, content: "/"}),
	} {
		t.Run(what, func(t *testing.T) { refused(t, written(t, image), enough, what) })
	}
}

func TestLeadingDotAndSlashAtTheEndAreFine(t *testing.T) {
	archive := tarOf(t,
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "./usr//", Typeflag: tar.TypeDir, Mode: 0o750},
		tar.Header{Name: "././usr/./a", Size: 1}, tar.Header{Name: "lib/x/b", Size: 1})
	nodes, err := read(written(t, archive), enough)
	if err != nil {
		t.Fatal(err)
	}
	modes := make(map[string]uint32)
	for path, n := range nodes {
		modes[path] = n.Mode
	}
	want := map[string]uint32{"usr": unix.S_IFDIR | 0o750, "usr/a": regular, "lib": directory, "lib/x": directory, "lib/x/b": regular}
	if diff := cmp.Diff(want, modes); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWhatContradictsItselfIsRefused(t *testing.T) {
	link := tar.Header{Name: "usr/lib", Typeflag: tar.TypeSymlink, Linkname: "/etc"}
	file := tar.Header{Name: "usr/lib", Size: 1}
	dir := tar.Header{Name: "usr/lib", Typeflag: tar.TypeDir, Mode: 0o755}
	below := tar.Header{Name: "usr/lib/passwd", Size: 1}
	hard := func(to string) tar.Header { return tar.Header{Name: "usr/hard", Typeflag: tar.TypeLink, Linkname: to} }
	for _, test := range []struct {
		name    string
		headers []tar.Header
		want    []string
	}{
		{"below a link", []tar.Header{link, below}, []string{`"usr/lib/passwd"`, `"usr/lib", which it lies below, is a symbolic link`}},
		{"far below a link", []tar.Header{link, {Name: "usr/lib/a/b/c", Size: 1}}, []string{`"usr/lib/a/b/c"`, "symbolic link"}},
		{"a directory below a link", []tar.Header{link, {Name: "usr/lib/a/", Typeflag: tar.TypeDir}}, []string{"symbolic link"}},
		{"below a hard link to a link", []tar.Header{link, hard("usr/lib"), {Name: "usr/hard/x", Size: 1}}, []string{`"usr/hard"`, "symbolic link"}},
		{"below a file", []tar.Header{file, below}, []string{`"usr/lib"`, "is a file"}},
		{"a link over a directory", []tar.Header{dir, link}, []string{"twice", "first as a directory, then as a symbolic link"}},
		{"a link over a directory with content", []tar.Header{below, link}, []string{"twice"}},
		{"a directory over a link", []tar.Header{link, dir}, []string{"twice"}},
		{"a file over a file", []tar.Header{file, file}, []string{"twice"}},
		{"a file over a link", []tar.Header{link, file}, []string{"twice"}},
		{"under another name", []tar.Header{file, {Name: "./usr//lib", Size: 1}}, []string{"twice"}},
		{"a hard link out", []tar.Header{hard("../../etc/shadow")}, []string{"usr/hard", `hard link to "../../etc/shadow"`, `".."`}},
		{"an absolute hard link", []tar.Header{hard("/etc/shadow")}, []string{"absolute"}},
		{"a hard link to what is not there", []tar.Header{hard("etc/shadow")}, []string{`"etc/shadow", which is no file that came before`}},
		{"a hard link to what comes later", []tar.Header{hard("usr/lib"), file}, []string{"came before"}},
		{"a hard link to a directory", []tar.Header{dir, hard("usr/lib")}, []string{"came before"}},
		{"a hard link to the root", []tar.Header{dir, hard(".")}, []string{"came before"}},
		{"a hard link to itself", []tar.Header{hard("usr/hard")}, []string{"came before"}},
		{"a hard link through a link", []tar.Header{link, hard("usr/lib/shadow")}, []string{"came before"}},
		{"a link to nothing", []tar.Header{{Name: "a", Typeflag: tar.TypeSymlink}}, []string{"to nothing"}},
		{"a hard link to nothing", []tar.Header{{Name: "a", Typeflag: tar.TypeLink}}, []string{"to nothing"}},
		{"a long link", []tar.Header{{Name: "a", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("a", 4096)}}, []string{"4096 bytes"}},
		{"a device", []tar.Header{{Name: "a", Typeflag: tar.TypeChar}}, []string{"device node"}},
		{"a disk", []tar.Header{{Name: "a", Typeflag: tar.TypeBlock, Devmajor: 8}}, []string{"device node"}},
		{"a FIFO", []tar.Header{{Name: "a", Typeflag: tar.TypeFifo}}, []string{"FIFO"}},
		{"a type that is reserved", []tar.Header{{Name: "a", Typeflag: tar.TypeCont}}, []string{"tar type '7'"}},
		{"nobody's", []tar.Header{{Name: "a", Uid: 1<<32 - 1}}, []string{"owner"}},
		{"a number too large", []tar.Header{{Name: "a", Gid: 1 << 32}}, []string{"owner"}},
		{"an odd mode", []tar.Header{{Name: "a", Mode: 1 << 20}}, []string{"mode"}},
		{"global records", []tar.Header{{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "../x"}}}, []string{"tar type 'g'"}},
		{"opaque for overlayfs", []tar.Header{withXattr("trusted.overlay.opaque", "y")}, []string{"trusted.overlay.opaque"}},
		{"redirected by overlayfs", []tar.Header{withXattr("trusted.overlay.redirect", "/etc")}, []string{"overlayfs would obey"}},
		{"an ACL", []tar.Header{{Name: "a", PAXRecords: map[string]string{"SCHILY.acl.access": "user::rw-"}}}, []string{"--acls"}},
		{"another xattr", []tar.Header{withXattr("system.x", "y")}, []string{`"system.x"`}},
		{"an xattr without a name", []tar.Header{withXattr("user.", "y")}, []string{`"user."`}},
		{"a long name of an xattr", []tar.Header{withXattr("user."+strings.Repeat("a", 251), "y")}, []string{"a name that Linux does not take"}},
		{"a long xattr", []tar.Header{withXattr("user.a", strings.Repeat("a", 65537))}, []string{"65537 bytes"}},
		{"many xattrs", []tar.Header{manyXattrs()}, []string{"together"}},
	} {
		t.Run(test.name, func(t *testing.T) { refused(t, written(t, tarOf(t, test.headers...)), enough, test.want...) })
	}
}

func withXattr(name, value string) tar.Header {
	return tar.Header{Name: "a", PAXRecords: map[string]string{tarXattr + name: value}}
}

func manyXattrs() tar.Header {
	header := tar.Header{Name: "a", PAXRecords: make(map[string]string)}
	for i := range 300 {
		header.PAXRecords[tarXattr+fmt.Sprintf("user.%0240d", i)] = "y"
	}
	return header
}

func TestHostileCpioIsRefused(t *testing.T) {
	file := record{name: "usr/a", mode: regular, content: "hello", inode: 7, links: 2}
	damage := func(at int, with string) []byte {
		archive := cpioOf(file)
		copy(archive[at:], with)
		return archive
	}
	for _, test := range []struct {
		name  string
		image []byte
		want  []string
	}{
		{"below a link", cpioOf(record{name: "a", mode: symlink, content: "/etc"}, record{name: "a/b", mode: regular}), []string{`"a/b"`, "symbolic link"}},
		{"a socket", cpioOf(record{name: "a", mode: unix.S_IFSOCK | 0o644}), []string{"socket"}},
		{"a device", cpioOf(record{name: "a", mode: unix.S_IFBLK | 0o644}), []string{"device node"}},
		{"no type", cpioOf(record{name: "a", mode: 0o644}), []string{"unknown type"}},
		{"a mode that is none", cpioOf(record{name: "a", mode: 1<<20 | regular}), []string{"mode"}},
		{"a directory with content", cpioOf(record{name: "a", mode: directory, content: "x"}), []string{"with content"}},
		{"a link to nothing", cpioOf(record{name: "a", mode: symlink}), []string{`"a"`}},
		{"a link to a NUL byte", cpioOf(record{name: "a", mode: symlink, content: "a\x00b"}), []string{"NUL"}},
		{"a negative size", cpioOf(record{name: "a", mode: regular, size: "-0000001"}), []string{`"-0000001"`, "no number"}},
		{"a size that is no number", cpioOf(record{name: "a", mode: regular, size: "0x000001"}), []string{`"0x000001"`}},
		{"a size past the end", cpioOf(record{name: "a", mode: regular, size: "FFFFFFFF"}), []string{`"a"`, "limit"}},
		{"a size just past the end", cpioOf(record{name: "a", mode: regular, size: "00001000"}), []string{"truncated"}},
		{"a link with another's content", cpioOf(file, record{name: "usr/b", mode: regular, content: "other", inode: 7, links: 2}), []string{`"usr/b"`, "content of its own"}},
		{"garbage", append(cpioOf(file), "\x00\x00\x00\x00garbage"...), []string{"no padding"}},
		{"garbage that begins like an archive", append(cpioOf(file), "070701"...), []string{"truncated"}},
		{"a compressed archive after it", append(cpioOf(file), gzipped(t, cpioOf(file))...), []string{"no padding"}},
		{"a second archive with a file of the first", append(cpioOf(file), cpioOf(file)...), []string{"twice"}},
		{"no header where one should be", damage(120, "xxxxxxxxxxxxxxxxx"), []string{"no cpio header"}},
		{"a name without an end", damage(94, "00000005"), []string{"its name has no end"}},
		{"old binary cpio", []byte("\xc7\x71" + strings.Repeat("\x00", 200)), []string{"none of the known formats"}},
	} {
		t.Run(test.name, func(t *testing.T) { refused(t, written(t, test.image), enough, test.want...) })
	}
}

func TestConcatenatedCpioArchivesAreOneImage(t *testing.T) {
	first := cpioOf(record{name: "usr", mode: directory}, record{name: "usr/a", mode: regular, inode: 5, links: 2}, record{name: "usr/b", mode: regular, content: "b", inode: 5, links: 2})
	second := cpioOf(record{name: "usr", mode: unix.S_IFDIR | 0o700}, record{name: "usr/c", mode: regular, content: "c", inode: 5, links: 2},
		record{name: "usr/d", mode: regular, content: "d", inode: 5, links: 2, device: 1})
	for name, image := range map[string][]byte{
		"plain":      append(append(bytes.Clone(first), make([]byte, 512)...), second...),
		"compressed": append(gzipped(t, append(bytes.Clone(first), 0, 0, 0, 0)), gzipped(t, second)...),
	} {
		t.Run(name, func(t *testing.T) {
			nodes, err := read(written(t, image), enough)
			if err != nil {
				t.Fatal(err)
			}
			if nodes["usr"].Mode != unix.S_IFDIR|0o700 || nodes["usr/a"].Content != sum([]byte("b")) || nodes["usr/c"].Content != sum([]byte("c")) || nodes["usr/d"].Names != nil {
				t.Errorf("it was read as %v", nodes)
			}
		})
	}
}

func gzipped(t testing.TB, content []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// Every place where an archive can be cut off, or one in 37 of a compressed one; a few of a file system.
func TestTruncatedImagesAreRefused(t *testing.T) {
	dir := t.TempDir()
	for i := range 4 {
		content := make([]byte, 700*i)
		if _, err := rand.Read(content); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range append(formats[1:], compressed()...) {
		t.Run(f.name, func(t *testing.T) {
			whole := readFile(t, f.make(t, dir))
			end, grain, step := len(bytes.TrimRight(whole, "\x00")), 1, 1
			switch {
			case strings.Contains(f.name, "|"):
				step = 37
				end = len(whole)
			case strings.Contains(f.name, "tar"):
				end += -end&511 + 1024
			case !strings.Contains(f.name, "cpio"):
				grain, step = 4096, max(4096, end/16&^4095)
			}
			image := written(t, whole)
			for cut := (end - 1) / grain * grain; cut > 0; cut -= step {
				if err := os.Truncate(image, int64(cut)); err != nil {
					t.Fatal(err)
				}
				refused(t, image, enough)
			}
		})
	}
}

// Of a compressed file, not each bit matters: a gzip header has a name.
func TestDamageOfCompressedImagesChangesNothingOrIsRefused(t *testing.T) {
	dir := example(t)
	for _, f := range compressed() {
		t.Run(f.name, func(t *testing.T) {
			image := f.make(t, dir)
			whole := readFile(t, image)
			want, err := read(image, enough)
			if err != nil {
				t.Fatal(err)
			}
			for at := 20; at < len(whole)-20; at += len(whole) / 20 {
				damaged := bytes.Clone(whole)
				damaged[at] ^= 0x10
				if got, err := read(written(t, damaged), enough); err == nil && !cmp.Equal(got, want) {
					t.Errorf("with byte %d changed, other things were read", at)
				}
			}
			refused(t, written(t, append(whole, "garbage"...)), enough)
		})
	}
}

func TestGarbageAfterTarIsRefused(t *testing.T) {
	archive := tarOf(t, tar.Header{Name: "a", Size: 1})
	if _, err := read(written(t, append(archive, make([]byte, 9000)...)), enough); err != nil {
		t.Errorf("padding: %v", err)
	}
	refused(t, written(t, append(archive, "\x00\x00x"...)), enough, "no padding")
	refused(t, written(t, append(archive, archive...)), enough, "no padding")
}

func TestWhatIsNoImageIsRefused(t *testing.T) {
	const unknown = "none of the known formats"
	for name, content := range map[string]string{"empty": "", "short": "x", "text": strings.Repeat("hello\n", 1000), "zeros": strings.Repeat("\x00", 10240)} {
		t.Run(name, func(t *testing.T) { refused(t, written(t, []byte(content)), enough, unknown) })
	}
	refused(t, written(t, gzipped(t, []byte("hello"))), enough, "neither a tar nor a cpio")
	refused(t, written(t, []byte("hsqs"+strings.Repeat("x", 8000))), enough, "mounting it as squashfs")
	refused(t, "/dev/null", enough, "neither a file nor a directory")
}

func TestLimitsHold(t *testing.T) {
	const bytesLimit, entries = "more than 1048576 bytes", "more than 100 entries"
	limits := Limits{Bytes: 1 << 20, Entries: 100}
	huge := tar.Header{Name: "a", Size: 1<<20 + 1}
	many := make([]tar.Header, 101)
	for i := range many {
		many[i] = tar.Header{Name: fmt.Sprint(i)}
	}
	fat := tar.Header{Name: "a", PAXRecords: map[string]string{}}
	var fats []tar.Header
	for i := range 20 {
		fat.Name = fmt.Sprint(i)
		fats = append(fats, fat)
	}
	fat.PAXRecords[tarXattr+"user.a"] = strings.Repeat("a", 60000)
	for _, test := range []struct {
		name  string
		image []byte
		want  string
	}{
		{"a large file", tarOf(t, huge), bytesLimit},
		{"large files together", tarOf(t, tar.Header{Name: "a", Size: 600 << 10}, tar.Header{Name: "b", Size: 600 << 10}), bytesLimit},
		{"a large file, compressed", gzipped(t, tarOf(t, huge)), bytesLimit},
		{"a size that overflows", sparseTar(t), "limit"},
		{"many entries", tarOf(t, many...), entries},
		{"deep directories", tarOf(t, tar.Header{Name: strings.Repeat("a/", 101)}), entries},
		{"large xattrs", tarOf(t, fats...), bytesLimit},
		{"padding", gzipped(t, append(tarOf(t, tar.Header{Name: "a"}), make([]byte, 100<<20)...)), bytesLimit},
		{"headers", gzipped(t, bytes.Repeat(paxHeader(t), 40<<10)), bytesLimit},
		{"padding of cpio", gzipped(t, append(cpioOf(), make([]byte, 100<<20)...)), bytesLimit},
	} {
		t.Run(test.name, func(t *testing.T) { refused(t, written(t, test.image), limits, test.want) })
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "large"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "large"), 1<<20+1); err != nil {
		t.Fatal(err)
	}
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) { refused(t, f.make(t, dir), limits, "large", bytesLimit) })
	}
}

// sparseTar has a file of 2^62 bytes, all of it a hole.
func sparseTar(t *testing.T) []byte {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: "a", Size: 0, Mode: 0o644, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}
	header := archive.Bytes()
	header[156] = tar.TypeGNUSparse
	copy(header[483:495], "\x80\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00") // the real size, in base 256
	var sum int64
	copy(header[148:156], "        ")
	for _, b := range header[:512] {
		sum += int64(b)
	}
	copy(header[148:156], fmt.Sprintf("%06o\x00 ", sum))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

// paxHeader is a header that is only about the next.
func paxHeader(t *testing.T) []byte {
	archive := tarOf(t, tar.Header{Name: strings.Repeat("é", 40)})
	return archive[:1024]
}

func TestMemoryThatAnImageAsksForIsBounded(t *testing.T) {
	plain := written(t, tarOf(t, tar.Header{Name: "a", Size: 1}))
	t.Run("zstd", func(t *testing.T) {
		packed, err := exec.Command("sh", "-c", `zstd -q -1 --long=29 -c <"$1"`, "sh", plain).Output()
		if err != nil {
			t.Fatal(err)
		}
		refused(t, written(t, packed), enough, "window")
	})
	t.Run("xz", func(t *testing.T) {
		packed, err := exec.Command("xz", "-c", "-T1", plain).Output() // with threads, the sizes are in the block header, too
		if err != nil {
			t.Fatal(err)
		}
		block := packed[12:24] // size, flags, one filter: its number, one byte of properties; padding; CRC32
		if block[0] != 2 || block[2] != 0x21 {
			t.Fatalf("the block header is %x", block)
		}
		block[4] = 40 // a dictionary of 4 GiB
		binary.LittleEndian.PutUint32(block[8:], crc32.ChecksumIEEE(block[:8]))
		refused(t, written(t, packed), enough, "dictionary")
	})
}

func TestSinkAndContextEndReading(t *testing.T) {
	dir := example(t)
	enoughOfIt := errors.New("enough of it")
	for _, f := range append(formats, compressed()...) {
		file, err := os.Open(f.make(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if err := Read(context.Background(), file, enough, func(e Entry) error { return enoughOfIt }); !errors.Is(err, enoughOfIt) {
			t.Errorf("%s: %v", f.name, err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		if err := Read(ctx, file, enough, func(e Entry) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", f.name, err)
		}
	}
}
