package layer

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
	"github.com/liveapply/liveapply/internal/treediff"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// acl is an entry in the form of system.posix_acl_*: user 7 may read and write, beside rwxr-x---.
const acl = "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x06\x00\x07\x00\x00\x00" +
	"\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"

// written are the trees of package ostreetest, and what else a layer could get wrong.
func written() (before, after ostreetest.Spec) {
	before, after = ostreetest.Written()
	withACL := map[string]string{"system.posix_acl_access": acl, "system.posix_acl_default": acl, "security.note": "s", "trusted.note": "t"}
	after["usr"] = ostreetest.Node{Mode: os.ModeDir | 0o751, UID: 3, GID: 4, Xattrs: map[string]string{"user.root": "r"}}
	after["usr/dir with acl"] = ostreetest.Node{Mode: os.ModeDir | 0o770, Xattrs: withACL}
	after["usr/dir with acl/sub"] = ostreetest.Dir()
	after["usr/dir with acl/file"] = ostreetest.Node{Mode: 0o640, Content: "x"}
	before["usr/dir to acl/same"], after["usr/dir to acl/same"] = ostreetest.File("same"), ostreetest.File("same")
	after["usr/dir to acl"] = ostreetest.Node{Mode: os.ModeDir | 0o770, Xattrs: withACL}
	after["usr/setgid"] = ostreetest.Node{Mode: os.ModeDir | os.ModeSetgid | 0o775, GID: 50}
	after["usr/setgid/sub/sub"] = ostreetest.Dir()
	after["usr/link of somebody"] = ostreetest.Node{Mode: os.ModeSymlink | 0o777, Content: "nowhere", UID: 8, GID: 9, Xattrs: map[string]string{"trusted.link": "l"}}
	for i := range 300 {
		before[fmt.Sprintf("usr/all replaced/%d", i)] = ostreetest.File("old")
		before[fmt.Sprintf("usr/all replaced/sub/%d", i)] = ostreetest.File("old")
		after[fmt.Sprintf("usr/all replaced/new%d", i)] = ostreetest.File("new")
		before[fmt.Sprintf("usr/one remains/%d", i)] = ostreetest.File("old")
	}
	before["usr/one remains/z"], after["usr/one remains/z"] = ostreetest.File("z"), ostreetest.File("z")
	before["usr/directory remains/z/same"], after["usr/directory remains/z/same"] = ostreetest.File("z"), ostreetest.File("z")
	for i := range 2 * worthReading {
		before[fmt.Sprintf("usr/directory remains/%d", i)] = ostreetest.File("old")
	}
	after["usr/directory remains/z"] = ostreetest.Node{Mode: os.ModeDir | 0o700}
	return before, after
}

func TestTreeSeenThroughTheLayerIsTheNewOne(t *testing.T) {
	before, after := written()
	forwards := newUpdate(t, before, after)
	for _, u := range []*update{forwards, forwards.backwards()} {
		layer, stats := u.build()
		if stats.Copies != 0 || stats.CopiedBytes != 0 {
			t.Errorf("%d files, %d bytes were copied", stats.Copies, stats.CopiedBytes)
		}
		u.showsNew(layer)
	}
}

// showsNew checks that the layer above the old tree is the new tree.
func (u *update) showsNew(layer string) {
	u.t.Helper()
	if diff := differences(u.t, everything(u.t, u.checkout(u.new)), everything(u.t, u.mount(layer))); diff != "" {
		u.t.Error(diff)
	}
}

func TestAnyTreeSeenThroughTheLayerIsTheNewOne(t *testing.T) {
	if err := flag.Set("rapid.checks", "20"); err != nil { // of 30 trees each
		t.Fatal(err)
	}
	rapid.Check(t, func(r *rapid.T) {
		before, after := ostreetest.Spec{}, ostreetest.Spec{}
		for i := range 30 {
			draw(r, fmt.Sprintf("usr/%d", i), 4, before, after)
		}
		t.Run("", func(t *testing.T) {
			u := newUpdate(t, before, after)
			if len(u.changes) == 0 {
				return
			}
			layer, _ := u.build()
			if diff := differences(t, everything(t, u.checkout(u.new)), everything(t, u.mount(layer))); diff != "" {
				r.Errorf("%s", diff)
			}
		})
	})
}

// draw adds what two trees have at a path. That is often the same.
func draw(r *rapid.T, path string, depth int, before, after ostreetest.Spec) {
	was, is := drawNode(r, path, depth), drawNode(r, path, depth)
	if rapid.IntRange(0, 2).Draw(r, "same") > 0 {
		is = was
	}
	inBefore, inAfter := ostreetest.Spec{}, ostreetest.Spec{}
	if was != nil && was.Mode.IsDir() || is != nil && is.Mode.IsDir() {
		for _, name := range []string{"a", "b", "a b", "ä\n"}[:rapid.IntRange(0, 4).Draw(r, "entries")] {
			draw(r, path+"/"+name, depth-1, inBefore, inAfter)
		}
	}
	if was != nil {
		before[path] = *was
		if was.Mode.IsDir() {
			maps.Copy(before, inBefore)
		}
	}
	if is != nil {
		after[path] = *is
		if is.Mode.IsDir() {
			maps.Copy(after, inAfter)
		}
	}
}

// drawNode returns nil for nothing.
func drawNode(r *rapid.T, path string, depth int) *ostreetest.Node {
	node := ostreetest.Node{UID: rapid.IntRange(0, 1).Draw(r, "uid")}
	switch kind := rapid.IntRange(0, 6).Draw(r, path); {
	case kind == 0:
		return nil
	case kind == 1:
		node.Mode, node.Content = os.ModeSymlink|0o777, rapid.SampledFrom([]string{"a", "b", "/usr"}).Draw(r, "target")
		return &node
	case kind <= 3 || depth == 0:
		node.Mode, node.Content = 0o644, rapid.SampledFrom([]string{"", "1", "2"}).Draw(r, "content")
	default:
		node.Mode = os.ModeDir | rapid.SampledFrom([]os.FileMode{0o755, 0o700, 0o777 | os.ModeSticky}).Draw(r, "mode")
	}
	if rapid.IntRange(0, 4).Draw(r, "xattr") == 0 {
		node.Xattrs = map[string]string{"user.x": "1"}
	}
	return &node
}

// small is an update with a bit of everything that a layer has.
func small(t testing.TB) *update {
	capability := map[string]string{"security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00" + strings.Repeat("\x00", 12), "user.x": "y"}
	return newUpdate(t,
		ostreetest.Spec{"usr/removed": ostreetest.File("r"), "usr/removed too": ostreetest.File("r"), "usr/changed": ostreetest.File("old")},
		ostreetest.Spec{
			"usr/changed": ostreetest.File("new"), "usr/dir/link": {Mode: os.ModeSymlink | 0o777, Content: "t", UID: 7, GID: 8},
			"usr/dir/tool": {Mode: os.ModeSetuid | 0o755, UID: 5, GID: 6, Content: strings.Repeat("content", 1000), Xattrs: capability},
		})
}

func TestFilesAreLinksToTheObjects(t *testing.T) {
	u := small(t)
	layer, stats := u.build()
	if diff := cmp.Diff(Stats{Links: 3, Directories: 2, Whiteouts: 2}, stats); diff != "" {
		t.Error(diff)
	}
	for _, change := range u.changes {
		if change.New.Kind != ostree.KindFile {
			continue
		}
		object, linked := inode(t, filepath.Join(u.repo.Path(), u.repo.FilePath(change.New.Checksum))), inode(t, filepath.Join(layer, change.Path))
		if object != linked {
			t.Errorf("%s is inode %d, the object %d", change.Path, linked, object)
		}
	}
	if a, b := inode(t, filepath.Join(layer, "removed")), inode(t, filepath.Join(layer, "removed too")); a != b {
		t.Error("the whiteouts are two inodes")
	}
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestFilesAreCopiedToAnotherFilesystem(t *testing.T) {
	u := small(t)
	elsewhere := t.TempDir()
	u.check(unix.Mount("tmpfs", elsewhere, "tmpfs", 0, ""))
	t.Cleanup(func() { unix.Unmount(elsewhere, unix.MNT_DETACH) })
	layer := filepath.Join(elsewhere, "layer")
	stats, err := Build(t.Context(), u.repo, u.changes, layer, &Progress{})
	u.check(err)
	if diff := cmp.Diff(Stats{Copies: 3, CopiedBytes: 7003, Directories: 2, Whiteouts: 2}, stats); diff != "" {
		t.Error(diff)
	}
	u.showsNew(layer)
}

// On ext4, an inode has at most 65,000 links. Where there is no such limit, all files are links.
func TestFilesAreCopiedWhenTheObjectHasAllLinksThatItCanHave(t *testing.T) {
	after := ostreetest.Spec{}
	for i := range 50 {
		after[fmt.Sprintf("usr/dir/%d", i)] = ostreetest.File("the same")
	}
	u := newUpdate(t, ostreetest.Spec{"usr": ostreetest.Dir()}, after)
	scratch := t.TempDir()
	object := filepath.Join(u.repo.Path(), u.repo.FilePath(u.changes[2].New.Checksum))
	limited := false
	for i := 0; i < 65000 && !limited; i++ {
		err := unix.Link(object, fmt.Sprint(scratch, "/", i))
		limited = errors.Is(err, unix.EMLINK)
		if err != nil && !limited {
			t.Fatal(err)
		}
	}
	if limited { // some links are left
		for i := range 20 {
			u.check(os.Remove(fmt.Sprint(scratch, "/", i)))
		}
	}
	layer, stats := u.build()
	if limited && (stats.Links == 0 || stats.Copies == 0) || !limited && stats.Copies > 0 {
		t.Errorf("%d links and %d copies; limited: %v", stats.Links, stats.Copies, limited)
	}
	u.showsNew(layer)
}

func TestDirectoryThatSharesNothingIsOpaqueAndHasNoWhiteouts(t *testing.T) {
	before, after := ostreetest.Spec{}, ostreetest.Spec{}
	for i := range worthReading {
		before[fmt.Sprintf("usr/replaced/%d", i)] = ostreetest.File("old")
		after[fmt.Sprintf("usr/replaced/new%d", i)] = ostreetest.File("new")
		before[fmt.Sprintf("usr/with rest/%d", i)] = ostreetest.File("old")
	}
	before["usr/with rest/z"], after["usr/with rest/z"] = ostreetest.File("z"), ostreetest.File("z")
	before["usr/file"], after["usr/file/in"] = ostreetest.File("f"), ostreetest.File("in")
	u := newUpdate(t, before, after)
	layer, stats := u.build()
	if stats.Whiteouts != worthReading {
		t.Errorf("%d whiteouts", stats.Whiteouts)
	}
	for path, want := range map[string]bool{"replaced": true, "file": true, "with rest": false, "": false} {
		all, err := xattrs(filepath.Join(layer, path))
		u.check(err)
		if got := slices.Contains(all, `trusted.overlay.opaque="y"`); got != want {
			t.Errorf("%q is opaque: %v", path, got)
		}
	}
}

func TestXattrsThatOverlayfsActsOnAreRefused(t *testing.T) {
	for _, name := range []string{"trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.overlay.overlay.x"} {
		xattr := map[string]string{name: "y"}
		for kind, node := range map[string]ostreetest.Node{
			"file": {Mode: 0o644, Xattrs: xattr}, "link": {Mode: os.ModeSymlink | 0o777, Content: "x", Xattrs: xattr},
			"directory": {Mode: os.ModeDir | 0o755, Xattrs: xattr},
		} {
			t.Run(name+" on a "+kind, func(t *testing.T) {
				u := newUpdate(t, ostreetest.Spec{"usr": ostreetest.Dir()}, ostreetest.Spec{"usr/sub/x": node, "usr/z": ostreetest.File("z")})
				u.refused(name, "/sub/x")
			})
		}
	}
	t.Run("among many", func(t *testing.T) {
		xattr := map[string]string{"trusted.overlay.z": "y"} // the ostree command leaves empty ones out
		for i := range 50 {
			xattr[fmt.Sprintf("user.%020d", i)] = "v"
		}
		u := newUpdate(t, ostreetest.Spec{"usr": ostreetest.Dir()}, ostreetest.Spec{"usr/x": {Mode: 0o644, Xattrs: xattr}})
		u.refused("trusted.overlay.z", "/x")
	})
}

// refused checks that Build fails, for a reason in which the words occur, and leaves nothing.
func (u *update) refused(words ...string) {
	u.t.Helper()
	u.refusedIn(u.t.Context(), words...)
}

func (u *update) refusedIn(ctx context.Context, words ...string) {
	u.t.Helper()
	dir := u.beside("layer", u.new)
	_, err := Build(ctx, u.repo, u.changes, dir, &Progress{})
	if err == nil {
		u.t.Fatal("no error")
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			u.t.Errorf("the error is %q, without %q", err, word)
		}
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		u.t.Errorf("something is left: %v", err)
	}
}

func TestMissingObjectIsNamed(t *testing.T) {
	u := small(t)
	object := u.changes[len(u.changes)-1]
	for _, change := range u.changes {
		if change.Path == "dir/tool" {
			object = change
		}
	}
	u.check(os.Remove(filepath.Join(u.repo.Path(), u.repo.FilePath(object.New.Checksum))))
	u.refused(object.New.Checksum.String(), "/dir/tool", "missing", u.repo.Path(), "ostree fsck", "ostree pull")
}

func TestEndedContextLeavesAllOrNothing(t *testing.T) {
	after := ostreetest.Spec{}
	for i := range 1000 {
		after[fmt.Sprintf("usr/%d/%d", i%70, i)] = ostreetest.File("")
	}
	u := newUpdate(t, ostreetest.Spec{"usr": ostreetest.Dir()}, after)
	dir := u.beside("layer", u.new)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := Build(ctx, u.repo, u.changes, dir, &Progress{})
		ended <- err
	}()
	for { // until it is under way
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			break
		}
	}
	cancel()
	err := <-ended
	files, globErr := filepath.Glob(filepath.Join(dir, "*/*"))
	u.check(globErr)
	if err == nil && len(files) != 1000 || err != nil && (len(files) != 0 || !errors.Is(err, context.Canceled)) {
		t.Errorf("%d files are there, and the error is %v", len(files), err)
	}
	u.check(beneath.Remove(dir))
	u.refusedIn(ctx, "context canceled")
}

func TestExistingDirectoryIsLeftAlone(t *testing.T) {
	u := small(t)
	dir := t.TempDir()
	u.check(os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	if _, err := Build(t.Context(), u.repo, u.changes, dir, &Progress{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("the error is %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "file")); err != nil {
		t.Error(err)
	}
}

func TestChangesMustStartWithTheRoot(t *testing.T) {
	u := small(t)
	for _, changes := range [][]treediff.Change{nil, u.changes[1:], {{Old: u.changes[0].Old}}} {
		if _, err := Build(t.Context(), u.repo, changes, filepath.Join(t.TempDir(), "layer"), &Progress{}); err == nil {
			t.Errorf("no error for %v", changes)
		}
	}
}

func TestAccessControlListsAreNotInherited(t *testing.T) {
	u := small(t)
	want := everything(t, u.checkout(u.new))
	u.check(unix.Setxattr(filepath.Dir(u.repo.Path()), "system.posix_acl_default", []byte(acl), 0))
	layer, _ := u.build()
	if diff := differences(t, want, everything(t, u.mount(layer))); diff != "" {
		t.Error(diff)
	}
}

func TestWhiteoutsDoWithoutLinks(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	elsewhere, err := unix.Open("/proc/version", unix.O_PATH, 0) // it cannot be linked to from another filesystem
	if err != nil {
		t.Fatal(err)
	}
	w := whiteout{fd: elsewhere}
	for _, name := range []string{"a", "b"} {
		if err := w.make(fd, name); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil || st.Mode != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("%s is %o %d, %v", name, st.Mode, st.Rdev, err)
		}
	}
	w.close()
}

// The estimate is one for ext4. Others do without blocks for directories, or take larger ones.
func TestNeedIsEnough(t *testing.T) {
	dir := t.TempDir()
	image, mounted := filepath.Join(dir, "image"), filepath.Join(dir, "mounted")
	ostreetest.Run(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", image, "64M")
	ostreetest.Run(t, "mkdir", mounted)
	ostreetest.Run(t, "mount", "-o", "loop", image, mounted)
	t.Cleanup(func() { unix.Unmount(mounted, unix.MNT_DETACH) })
	t.Setenv("TMPDIR", mounted)
	t.Run("on ext4", needIsEnough)
}

func needIsEnough(t *testing.T) {
	after := ostreetest.Spec{"usr/xattr": {Mode: os.ModeDir | 0o755, Xattrs: map[string]string{"user.big": strings.Repeat("x", 2000)}}}
	for i := range 1000 {
		after[fmt.Sprintf("usr/big/%s%d", strings.Repeat("n", 200), i)] = ostreetest.File("")
		after[fmt.Sprintf("usr/more/%d/%d", i%20, i)] = ostreetest.File("")
	}
	u := newUpdate(t, tree("removed", "removed too"), after)
	layer, _ := u.build()
	var used Size
	seen := map[uint64]bool{}
	u.check(filepath.WalkDir(layer, func(path string, entry fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if (entry.IsDir() || st.Mode&unix.S_IFMT == unix.S_IFCHR) && !seen[st.Ino] {
			seen[st.Ino] = true
			used.Inodes++
			used.Bytes += st.Blocks * 512
		}
		return err
	}))
	need := Need(u.changes)
	if need.Inodes < used.Inodes || need.Bytes < used.Bytes {
		t.Errorf("it needed %+v, the estimate is %+v", used, need)
	}
	if need.Inodes > 2*used.Inodes || need.Bytes > 4*used.Bytes {
		t.Errorf("it needed %+v, the estimate is far too high: %+v", used, need)
	}
}
