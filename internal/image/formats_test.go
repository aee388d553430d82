package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/liveapply/liveapply/internal/nstest"
	"github.com/liveapply/liveapply/internal/xattr"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { nstest.Main(m) }

var enough = Limits{Bytes: 1 << 30, Entries: 10000}

// format makes an image of a directory with the tools that everybody has.
type format struct {
	name     string
	command  string // $1 is the directory, $2 the image
	noXattrs bool   // it has none
	noLinks  bool   // its tool does not keep hard links between symbolic links
}

var formats = []format{
	{name: "directory", command: `cp -a "$1" "$2"`},
	{name: "tar", command: `tar --format=pax --xattrs --xattrs-include='*' -C "$1" -cf "$2" .`},
	{name: "sparse tar", command: `tar --format=pax --sparse --xattrs --xattrs-include='*' -C "$1" -cf "$2" .`},
	{name: "GNU tar", command: `tar --format=gnu --sparse -C "$1" -cf "$2" .`, noXattrs: true},
	{name: "cpio", command: `cd "$1" && find . -print0 | cpio --quiet --null -o -H newc >"$2"`, noXattrs: true},
	{name: "cpio with checksums", command: `cd "$1" && find . -print0 | cpio --quiet --null -o -H crc >"$2"`, noXattrs: true},
	{name: "squashfs", command: `mksquashfs "$1" "$2" -noappend -quiet -no-progress -xattrs`, noLinks: true},
	{name: "erofs", command: `mkfs.erofs --quiet --preserve-mtime "$2" "$1"`},
	{name: "compressed erofs", command: `mkfs.erofs --quiet --preserve-mtime -zlz4hc "$2" "$1"`},
	{name: "ext4", command: `mke2fs -q -t ext4 -d "$1" "$2" 16M`, noLinks: true},
	{name: "ext4 without a journal", command: `mke2fs -q -t ext4 -O ^has_journal -d "$1" "$2" 16M`, noLinks: true},
	{name: "ext4 that was not unmounted", command: `mke2fs -q -t ext4 -d "$1" "$2" 16M && debugfs -w -R "feature needs_recovery" "$2"`, noLinks: true},
	{name: "ext2", command: `mke2fs -q -t ext2 -d "$1" "$2" 16M`, noLinks: true},
}

var compressors = []string{"gzip -c", "xz -c -T1", "xz -c -T2", "xz -c --x86 --lzma2", "zstd -q -c", "zstd -q -c --long=27"}

// compressed are the archives among the formats, with each compressor.
func compressed() (all []format) {
	for _, f := range formats {
		if f.name != "tar" && f.name != "cpio" {
			continue
		}
		for _, compressor := range compressors {
			packed := f
			packed.name += " | " + compressor
			packed.command = strings.Replace(f.command, `"$2"`, `"$2.plain"`, 1) + ` && ` + compressor + ` "$2.plain" >"$2"`
			all = append(all, packed)
		}
	}
	return all
}

func (f format) make(t testing.TB, dir string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "updates.img")
	f.makeAt(t, dir, image)
	return image
}

func (f format) makeAt(t rapid.TB, dir, image string) {
	t.Helper()
	output, err := exec.Command("sh", "-ec", f.command, "sh", dir, image).CombinedOutput()
	if err != nil {
		t.Fatalf("making a %s image: %v\n%s", f.name, err, output)
	}
}

// node is what is at a path of a tree.
type node struct {
	Mode     uint32
	UID, GID uint32
	ModTime  int64
	Xattrs   map[string]string
	Target   string
	Size     int64
	Content  string   // its sha256
	Names    []string // all of a file's, if it has more than one
}

// tree is what Read should tell of a directory, found out in another way.
func tree(t rapid.TB, dir string) map[string]*node {
	t.Helper()
	nodes, names := make(map[string]*node), make(map[inode][]string)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		n := &node{Mode: st.Mode, UID: st.Uid, GID: st.Gid, ModTime: st.Mtim.Sec, Xattrs: make(map[string]string)}
		if err := xattr.Read(path, func(name string, value []byte) { n.Xattrs[name] = string(value) }); err != nil {
			return err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			n.Size, n.Content = st.Size, sum(content)
		case unix.S_IFLNK:
			n.Target, err = os.Readlink(path)
		}
		relative, _ := filepath.Rel(dir, path)
		nodes[relative] = n
		if st.Nlink > 1 && !isDir(st.Mode) {
			id := inode{uint64(st.Dev), st.Ino}
			names[id] = append(names[id], relative)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, all := range names {
		slices.Sort(all)
		for _, name := range all {
			nodes[name].Names = all
		}
	}
	return nodes
}

// read is what Read tells, put together. It fails if an entry comes before what it needs.
func read(image string, limits Limits) (map[string]*node, error) {
	file, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	nodes := make(map[string]*node)
	err = Read(context.Background(), file, limits, func(e Entry) error {
		if parent := filepath.Dir(e.Path); parent != "." && (nodes[parent] == nil || !isDir(nodes[parent].Mode)) {
			return fmt.Errorf("%q came before the directory that it is in", e.Path)
		}
		if e.Link != "" {
			first := nodes[e.Link]
			if first == nil {
				return fmt.Errorf("%q came before %q, which it is a link to", e.Path, e.Link)
			}
			if first.Names == nil {
				first.Names = []string{e.Link}
			}
			first.Names = append(first.Names, e.Path)
			slices.Sort(first.Names)
			nodes[e.Path] = first
			return nil
		}
		n := &node{Mode: e.Mode, UID: e.UID, GID: e.GID, ModTime: e.ModTime.Unix(), Xattrs: e.Xattrs, Target: e.Target, Size: e.Size}
		nodes[e.Path] = n
		if e.Content == nil {
			return nil
		}
		content, err := io.ReadAll(e.Content)
		n.Content = sum(content)
		return err
	})
	return nodes, err
}

func sum(content []byte) string {
	digest := sha256.Sum256(content)
	return hex.EncodeToString(digest[:])
}

func compare(t rapid.TB, f format, dir, image string) {
	t.Helper()
	want := tree(t, dir)
	got, err := read(image, enough)
	if err != nil {
		t.Fatalf("%s: %v", f.name, err)
	}
	options := cmp.Options{cmpopts.EquateEmpty()}
	if f.noXattrs {
		options = append(options, cmpopts.IgnoreFields(node{}, "Xattrs"))
	}
	if diff := cmp.Diff(want, got, options); diff != "" {
		t.Errorf("%s: what was read is not what is in the directory (-want +got):\n%s", f.name, diff)
	}
}

// example has of everything one, that an image can have.
func example(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	command := exec.Command("bash", "-ec", `
		cd "$1"
		mkdir -p usr/lib/x86_64-linux-gnu usr/share/empty lib lib64 bin etc/foo.d run
		echo library >lib/libfoo.so.1; ln -s libfoo.so.1 lib/libfoo.so
		echo loader >lib64/ld-foo.so.2; chmod 755 lib64/ld-foo.so.2
		echo tool >bin/tool; chmod 4755 bin/tool; ln bin/tool bin/other-name; ln bin/tool usr/third-name
		ln -s /etc/foo.conf usr/absolute; ln -s ../../../outside usr/upwards
		truncate -s 3M usr/sparse; printf middle | dd of=usr/sparse bs=1 seek=1500000 conv=notrunc status=none
		: >usr/empty; ln usr/empty usr/empty-too; : >usr/empty-alone
		echo x >"usr/$(printf 'a\nname\twith\303\251\377 and spaces')"
		echo 'a = 1' >etc/foo.conf; chown 12:34 etc/foo.conf; chmod 2770 etc/foo.d; chown :56 etc/foo.d
		setfattr -n user.comment -v "a value" lib/libfoo.so.1
		setfattr -n user.comment -v 0x000aff etc
		setfattr -n trusted.something -v secret bin/tool
		setcap cap_net_raw+ep lib64/ld-foo.so.2
		head -c 300000 /dev/urandom >usr/random
		touch -h -d 2001-02-03T04:05:06Z usr/absolute lib/libfoo.so.1 etc/foo.d
		long=$(printf '%0200d' 7); mkdir -p "usr/$long"; echo far >"usr/$long/$long"; ln -s "$long/$long" usr/far`, "bash", dir)
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return dir
}

func TestWhatIsReadIsWhatTheDirectoryHas(t *testing.T) {
	dir := example(t)
	for _, f := range append(formats, compressed()...) {
		t.Run(f.name, func(t *testing.T) { compare(t, f, dir, f.make(t, dir)) })
	}
}

// Of the attributes, names and links, random trees have what the example has not.
func TestRandomTreesAreReadAsTheyAre(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		scratch, err := os.MkdirTemp("", "image-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(scratch)
		dir := filepath.Join(scratch, "tree")
		f := rapid.SampledFrom(formats).Draw(t, "format")
		randomTree(t, dir, !f.noLinks)
		image := filepath.Join(scratch, "image")
		f.makeAt(t, dir, image)
		compare(t, f, dir, image)
	})
}

func randomTree(t *rapid.T, dir string, linkSymlinks bool) {
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(dir, 0o755))
	dirs, files := []string{dir}, []string{}
	names := rapid.StringOfN(rapid.SampledFrom([]rune("ab.- \n\\\"é")), 1, 20, 200)
	for i := range rapid.IntRange(0, 25).Draw(t, "entries") {
		path := filepath.Join(dirs[rapid.IntRange(0, len(dirs)-1).Draw(t, "in")], fmt.Sprintf("%d%s", i, names.Draw(t, "name")))
		mode := rapid.Uint32Range(0, 0o7777).Draw(t, "mode")
		switch kind := rapid.SampledFrom([]string{"directory", "file", "link", "symlink"}).Draw(t, "kind"); {
		case kind == "directory":
			must(os.Mkdir(path, 0o700))
			dirs = append(dirs, path)
		case kind == "symlink":
			must(os.Symlink(names.Draw(t, "target"), path))
			if linkSymlinks {
				files = append(files, path)
			}
			continue
		case kind == "link" && len(files) > 0:
			must(os.Link(files[rapid.IntRange(0, len(files)-1).Draw(t, "to")], path))
			continue
		default:
			zeros := make([]byte, rapid.IntRange(0, 20000).Draw(t, "zeros"))
			data := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "data")
			must(os.WriteFile(path, slices.Concat(data, zeros, data), 0o600))
			files = append(files, path)
		}
		must(os.Lchown(path, rapid.IntRange(0, 70000).Draw(t, "uid"), rapid.IntRange(0, 70000).Draw(t, "gid")))
		must(unix.Chmod(path, mode))
		for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"user.a", "user.b.c", "trusted.x"}), 0, 3, rapid.ID).Draw(t, "xattrs") {
			must(unix.Setxattr(path, name, rapid.SliceOfN(rapid.Byte(), 1, 50).Draw(t, "value"), 0))
		}
		at := time.Unix(rapid.Int64Range(1, 1<<31-1).Draw(t, "time"), 0)
		must(os.Chtimes(path, at, at))
	}
}

func TestNothingIsLeftMountedOrLooped(t *testing.T) {
	dir := example(t)
	for _, f := range formats {
		image := f.make(t, dir)
		if _, err := read(image, enough); err != nil {
			t.Fatal(err)
		}
		if _, err := read(image, Limits{Bytes: 1 << 30, Entries: 3}); err == nil {
			t.Fatal("three entries were enough")
		}
		before := sum(readFile(t, image))
		// The device is gone when nobody has it open any more; udev opens each that appears, and looks at it.
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			output, err := exec.Command("losetup", "--associated", image).CombinedOutput()
			if err == nil && len(output) == 0 {
				break
			}
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("%s: %v, there is still: %s", f.name, err, output)
			}
		}
		if after := sum(readFile(t, image)); after != before {
			t.Errorf("%s: reading changed the image", f.name)
		}
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	if info, err := os.Stat(path); err != nil || info.IsDir() {
		return nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
