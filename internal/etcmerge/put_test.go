package etcmerge

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/treediff"
)

// newPutLab is a lab without OSTree: an /etc that a script made, of a time long ago.
func newPutLab(t tester, root, script string) *lab {
	t.Helper()
	l := &lab{t: t, root: root, sys: filepath.Join(root, "sys")}
	l.dirs = Dirs{Etc: filepath.Join(l.sys, "etc"), Store: filepath.Join(l.sys, "ostree/store")}
	sh(t, root, "mkdir -p sys/etc sys/ostree")
	l.local(script + "\nfind . -exec touch -h -d '2020-01-02 03:04:05.678' {} +")
	return l
}

func newPutTest(t *testing.T, script string) *lab {
	t.Helper()
	return newPutLab(t, t.TempDir(), script)
}

// putTools are functions for the scripts that make trees.
const putTools = `mask() { for i; do mknod "$i" c 0 0; done; }; opaque() { mkdir -p "$@"; setfattr -n trusted.overlay.opaque -v y "$@"; }
`

// tree makes a tree.
func (l *lab) tree(name, script string) string {
	l.t.Helper()
	dir := filepath.Join(l.root, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		l.t.Fatal(err)
	}
	sh(l.t, dir, putTools+script)
	return dir
}

func (l *lab) put(trees ...string) *Result {
	l.t.Helper()
	result, err := Put(context.Background(), l.dirs, trees)
	if err != nil {
		l.t.Fatal(err)
	}
	return result
}

// what tells what is at paths, in short: a file's content, "-> " and a link's target, "dir", or "".
func (l *lab) what(path string) string {
	l.t.Helper()
	path = filepath.Join(l.dirs.Etc, path)
	info, err := os.Lstat(path)
	switch {
	case os.IsNotExist(err):
		return ""
	case err != nil:
		l.t.Fatal(err)
	case info.IsDir():
		return "dir"
	case info.Mode()&os.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			l.t.Fatal(err)
		}
		return "-> " + target
	case !info.Mode().IsRegular():
		return "other"
	}
	content, err := os.ReadFile(path)
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.TrimSuffix(string(content), "\n")
}

func (l *lab) wantWhat(want map[string]string) {
	l.t.Helper()
	for path, what := range want {
		if got := l.what(path); got != what {
			l.t.Errorf("%s is %q, want %q", path, got, what)
		}
	}
}

// putCases are one Put each: the trees, topmost first, and what is in /etc after it. Without trees all is as before.
var putCases = []struct {
	name, etc string
	trees     []string
	kept      []string
	want      map[string]string
}{
	{name: "files", etc: "echo a > f; echo a > g; mkdir d; ln -s a l",
		trees: []string{"echo t > f; echo t > n; mkdir d; echo t > d/n; ln -s t l; ln -s t d/l"},
		want:  map[string]string{"f": "t", "g": "a", "n": "t", "d/n": "t", "l": "-> t", "d/l": "-> t"}},
	{name: "the topmost wins", etc: "echo a > f; mkdir d; echo a > d/f",
		trees: []string{"echo 1 > f; mkdir d; echo 1 > d/x", "echo 2 > f; mkdir d; echo 2 > d/x; echo 2 > d/f"},
		want:  map[string]string{"f": "1", "d/x": "1", "d/f": "2"}},
	{name: "mask", etc: "echo a > f; mkdir -p d/s/t; echo a > d/f; ln -s x d/s/l; echo a > d/s/t/g; mkdir e; echo a > e/f; chmod 2750 d/s; chown 5:6 d/s",
		trees: []string{"mask f d nothing; mkdir e; mask e/f"},
		want:  map[string]string{"f": "", "d": "", "nothing": "", "e": "dir", "e/f": ""}},
	{name: "a mask hides lower trees", etc: "mkdir d; echo a > d/a; echo a > d/b",
		trees: []string{"mkdir d; echo 1 > d/one", "mask d f", "mkdir d; echo 3 > d/three; echo 3 > f"},
		want:  map[string]string{"d/one": "1", "d/three": "", "d/a": "", "d/b": "", "d": "dir", "f": ""}},
	{name: "a file hides lower trees", etc: "mkdir d; echo a > d/a",
		trees: []string{"mkdir d; echo 1 > d/one", "echo 2 > d", "mkdir d; echo 3 > d/three"},
		want:  map[string]string{"d/one": "1", "d/three": "", "d/a": ""}},
	{name: "above a mask", etc: "echo a > f; echo a > g", trees: []string{"echo 1 > f", "mask f g"}, want: map[string]string{"f": "1", "g": ""}},
	{name: "opaque", etc: "mkdir -p d/s d/gone/x; echo a > d/a; echo a > d/s/a; echo a > d/gone/x/y; echo a > d/f; chmod 711 d",
		trees: []string{"mkdir d; echo 1 > d/one; mkdir d/s", "opaque d; echo 2 > d/two; echo 2 > d/f", "mkdir d; echo 3 > d/three"},
		want:  map[string]string{"d/one": "1", "d/two": "2", "d/f": "2", "d/three": "", "d/a": "", "d/s": "dir", "d/s/a": "", "d/gone": ""}},
	{name: "a new directory", etc: "true", trees: []string{"mkdir -p d/e/f; chmod 2710 d; chown 5:6 d/e; echo t > d/e/g"}, want: map[string]string{"d/e/f": "dir", "d/e/g": "t"}},
	{name: "a directory in place of a file", etc: "echo a > d", trees: []string{"mkdir -p d/e; echo t > d/e/f"}, want: map[string]string{"d/e/f": "t"}},
	{name: "a directory in place of a link", etc: "mkdir real; ln -s real d; ln -s /tmp up", trees: []string{"mkdir d up; echo t > d/f; echo t > up/f; mask up/g"},
		kept: []string{"d", "up"}, want: map[string]string{"d": "-> real", "real/f": "", "up": "-> /tmp"}},
	{name: "a file in place of a directory", etc: "mkdir -p d e; echo a > d/a", trees: []string{"echo t > d; ln -s t e"},
		kept: []string{"d", "e"}, want: map[string]string{"d/a": "a", "e": "dir"}},
	{name: "special files", etc: "mkfifo p; mknod c c 1 3; mkdir d; mkfifo d/p; echo a > d/a; mkfifo q", trees: []string{"echo t > p; mask c d; mkdir q; echo t > q/f"},
		kept: []string{"c", "d", "d/p", "p", "q"}, want: map[string]string{"p": "other", "c": "other", "d/p": "other", "d/a": "", "q": "other"}},
	{name: "links that lead out", etc: "ln -s ../../../../../tmp f", trees: []string{"ln -s ../../../../../.. f; ln -s /proc/self/root g; mkdir d; ln -s . d/l"},
		want: map[string]string{"f": "-> ../../../../../..", "g": "-> /proc/self/root", "d/l": "-> ."}},
	{name: "names", etc: "echo a > 'a b'; mkdir 'd\nl'", trees: []string{"echo t > \"$(printf 'n\\nl')\"; echo t > 'a b'; echo t > -; echo t > '<&>\"$x'; echo t > " + strings.Repeat("ü", 127) + "x"},
		want: map[string]string{"n\nl": "t", "a b": "t", "-": "t", "<&>\"$x": "t", strings.Repeat("ü", 127) + "x": "t"}},
	{name: "names that are not in UTF-8", etc: "mkdir d; echo a > d/a; echo a > d/\"$(printf '\\377')\"", trees: []string{"mask d"},
		kept: []string{"d", "d/\xff"}, want: map[string]string{"d/\xff": "a", "d/a": ""}},
	{name: "order", etc: "mkdir d; echo a > d/a; echo a > d-; echo a > d.x", trees: []string{"mkdir d; for f in d/a d- d.x d0 d/b; do echo t > $f; done"},
		want: map[string]string{"d/a": "t", "d-": "t", "d.x": "t", "d0": "t", "d/b": "t"}},
	{name: "hard links", etc: "echo a > a; ln a b; echo a > c; ln c c2", trees: []string{"echo t > a; ln a x; mkdir d; ln a d/y; mask c"},
		want: map[string]string{"a": "t", "b": "a", "x": "t", "d/y": "t", "c": "", "c2": "a"}},
	{name: "what is there already", etc: "echo t > f; ln -s t l; mkdir d; echo a > d/a", trees: []string{"echo t > f; ln -s t l; mkdir d; mask gone"},
		want: map[string]string{"f": "t", "l": "-> t", "d/a": "a"}},
}

func TestPut(t *testing.T) {
	for _, c := range putCases {
		t.Run(c.name, func(t *testing.T) {
			l := newPutTest(t, c.etc)
			var trees []string
			for i, script := range c.trees {
				trees = append(trees, l.tree(fmt.Sprint("t", i), script))
			}
			start := l.etc()
			wantPaths(t, "kept", l.put(trees...).Kept, c.kept...)
			l.wantWhat(c.want)
			now := l.etc()
			again := l.put(trees...)
			wantPaths(t, "changed by another Put of the same", again.Changed)
			wantPaths(t, "restored by another Put of the same", again.Restored)
			below := func(path string) bool {
				return slices.ContainsFunc(c.kept, func(dir string) bool { return treediff.Below(path, dir) })
			}
			wantPaths(t, "kept by another Put of the same", again.Kept, slices.DeleteFunc(slices.Clone(c.kept), below)...)
			wantSame(t, "/etc after another Put of the same", now, l.etc())
			l.put(l.tree("empty", "true"))
			wantSame(t, "/etc after a Put of nothing", start, l.etc())
			l.put(trees...)
			l.reset()
			wantSame(t, "/etc after reset", start, l.etc())
			l.put(trees...)
			l.put()
			wantSame(t, "/etc after a Put without trees", start, l.etc())
			if _, err := os.Lstat(l.dirs.Store); !os.IsNotExist(err) {
				t.Errorf("the Store is left: %v", err)
			}
		})
	}
}

func TestPutCopiesAttributes(t *testing.T) {
	l := newPutTest(t, "echo a > f; mkdir own; chmod 711 own; setfattr -n user.own -v 1 own")
	tree := l.tree("t", `echo t > f; chmod 4750 f; chown 5:6 f; chmod 4750 f; setfattr -n user.x -v 1 f; setfattr -n trusted.overlay.origin -v z f
		setfattr -n security.capability -v 0sAQAAAgAEAAAAAAAAAAAAAAAAAAA= f; mkdir -p own new; chmod 3700 own new; chown 7:8 own new; setfattr -n user.d -v 2 own new
		ln -s x l; chown -h 9:9 l; setfattr -h -n trusted.t -v 3 l; opaque new; setfattr -n user.acl -v x new`)
	l.put(tree)
	got := contentOnly(l.etc())
	for path, want := range map[string]thing{
		"f":   {What: `urwxr-x--- 5:6 "t\n"`, Xattrs: `security.capability="\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" user.x="1" `},
		"own": {What: "drwx--x--x 0:0", Xattrs: `user.own="1" `},
		"new": {What: "dgtrwx------ 7:8", Xattrs: `user.acl="x" user.d="2" `},
		"l":   {What: "Lrwxrwxrwx 9:9 -> x", Xattrs: `trusted.t="3" `},
	} {
		if got[path] != want {
			t.Errorf("%s is %+v, want %+v", path, got[path], want)
		}
	}
	now := l.etc()
	other := l.tree("t2", "cp -a ../t/. .; chmod 711 new; chown 1 new; setfattr -x user.d new; chmod 600 l f 2>/dev/null || :; setfattr -n user.x -v 2 f")
	wantPaths(t, "changed", l.put(other).Changed, "f", "new")
	l.put(tree)
	wantSame(t, "/etc with the first tree again", contentOnly(now), contentOnly(l.etc()))
}

func TestPutRefusesWhatCannotBePut(t *testing.T) {
	for name, c := range map[string]struct{ script, want string }{
		"account file":    {"echo x > passwd", "passwd"},
		"backup":          {"echo x > gshadow-", "gshadow-: users and groups cannot be changed by a file in place of this one: use sysusers.d(5)"},
		"masked accounts": {"mask subuid", "sysusers.d(5)"},
		"device":          {"mknod d c 1 3", "neither"},
		"fifo":            {"mkdir d; mkfifo d/f", "d/f is neither"},
		"opaque root":     {"opaque .", "opaque"},
		"metacopy":        {"echo > f; setfattr -n trusted.overlay.metacopy f", "another layer"},
		"redirect":        {"mkdir d; setfattr -n trusted.overlay.redirect -v /x d", "another layer"},
		"name":            {"echo > \"$(printf '\\377')\"", "UTF-8"},
		"no tree":         {"rmdir ../t", "t: no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newPutTest(t, "echo a > passwd; echo a > f")
			start := l.etc()
			tree := l.tree("t", "echo t > f; rm f; "+c.script)
			_, err := Put(t.Context(), l.dirs, []string{l.tree("above", "echo t > f"), tree})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Put: %v", err)
			}
			wantSame(t, "/etc", start, l.etc())
			if _, err := os.Lstat(l.dirs.Store); !os.IsNotExist(err) {
				t.Errorf("there is a Store: %v", err)
			}
		})
	}
}

// An entry of a tree that is a link to a directory is not gone through.
func TestPutDoesNotLeaveATree(t *testing.T) {
	l := newPutTest(t, "mkdir d")
	outside := l.tree("outside", "echo secret > f")
	tree := l.tree("t", "ln -s "+outside+" d; ln -s "+outside+" e")
	wantPaths(t, "kept", l.put(tree).Kept, "d")
	l.wantWhat(map[string]string{"d": "dir", "d/f": "", "e": "-> " + outside})
}

func TestPutAfterTheAdministratorsChanges(t *testing.T) {
	const etc = "echo a > f; mkdir d; echo a > d/a; echo a > d/b; echo a > m"
	const tree = "echo 1 > f; echo 1 > n; mkdir -p d new/s; echo 1 > d/f; echo 1 > new/s/f; mask m"
	for _, c := range []struct {
		name, etc, tree, admin, second string // the second tree is the first one, and then this is done in it
		kept, want                     []string
		keptBack, back                 []string // without trees
	}{
		{name: "edited", admin: "echo l > f", second: "true", kept: []string{"f"}, want: []string{"f=l"}, keptBack: []string{"f"}, back: []string{"f=l"}},
		{name: "edited, and the tree's changes", admin: "echo l > f; echo l > n", second: "echo 2 > f; echo 2 > n", kept: []string{"f", "n"}, want: []string{"f=l", "n=l"}, keptBack: []string{"f", "n"}, back: []string{"f=l", "n=l"}},
		{name: "edited, and the tree has it no more", admin: "echo l > f", second: "rm f", kept: []string{"f"}, want: []string{"f=l"}, back: []string{"f=l"}},
		{name: "edited, and put back", admin: "echo l > f; echo 1 > f", second: "true", want: []string{"f=1"}, back: []string{"f=a"}},
		{name: "removed", admin: "rm f n", second: "true", kept: []string{"f", "n"}, want: []string{"f=", "n="}, keptBack: []string{"f"}, back: []string{"f=", "n="}},
		{name: "unmasked", admin: "echo l > m", second: "true", kept: []string{"m"}, want: []string{"m=l"}, keptBack: []string{"m"}, back: []string{"m=l"}},
		{name: "as it was", admin: "echo a > f", second: "echo 2 > f", kept: []string{"f"}, want: []string{"f=a"}, back: []string{"f=a"}},
		{name: "mode of a new directory", admin: "chmod 711 new", second: "echo 2 > new/s/f; chmod 700 new", kept: []string{"new"}, want: []string{"new/s/f=2"}, keptBack: []string{"new"}, back: []string{"new=dir", "new/s="}},
		{name: "a new directory removed", admin: "rm -r new", second: "echo 2 > new/s/f", kept: []string{"new"}, want: []string{"new="}, back: []string{"new="}},
		{name: "a file in a new directory", admin: "echo l > new/s/l", second: "rm -r new", kept: []string{"new", "new/s"}, want: []string{"new/s/l=l", "new/s/f="}, back: []string{"new/s/l=l", "new/s/f="}},
		{name: "a directory removed that was there", admin: "rm -r d", second: "true", kept: []string{"d"}, want: []string{"d="}, back: []string{"d="}},
		{name: "a directory replaced by a link", admin: "mv d e; ln -s e d", second: "echo 2 > d/f", kept: []string{"d"}, want: []string{"d=-> e", "e/f=1"}, back: []string{"d=-> e", "e/f=1"}},
		{name: "something else", admin: "echo l > o; echo l > d/a", second: "echo 2 > f", want: []string{"o=l", "d/a=l", "f=2"}, back: []string{"f=a", "o=l", "d/a=l"}},
		{name: "something else, which the tree replaces then", admin: "echo l > o; echo l > d/a", second: "echo 2 > o; mask d/a", want: []string{"o=2", "d/a="}, back: []string{"o=l", "d/a=l"}},
		{name: "a file in an opaque directory", tree: "opaque d; echo 1 > d/f", admin: "echo l > d/l; mkdir d/s; echo l > d/s/l", second: "echo 2 > d/f",
			kept: []string{"d/l", "d/s"}, want: []string{"d/l=l", "d/s/l=l", "d/f=2", "d/a="}, back: []string{"d/l=l", "d/a=a", "d/f="}},
		{name: "a file in a directory that lower trees have, too", tree: "opaque d; mkdir d/s; echo 1 > d/s/f", etc: "mkdir -p d/s; echo a > d/s/a", admin: "echo l > d/s/l", second: "rm -r d/s",
			kept: []string{"d/s", "d/s/l"}, want: []string{"d/s/l=l", "d/s/f=", "d/s/a="}, back: []string{"d/s/a=a", "d/s/l=l"}},
		{name: "nothing, and a directory goes that was there", tree: "opaque d; mkdir d/s; echo 1 > d/s/f", etc: "mkdir -p d/s; echo a > d/s/a", admin: "true", second: "rm -r d/s",
			want: []string{"d/s=", "d=dir"}, back: []string{"d/s/a=a", "d/s/f="}},
		{name: "a file in a new directory that becomes opaque", admin: "echo l > new/l; echo l > new/s/l", second: "opaque new; mask new/s/l",
			kept: []string{"new/l", "new/s/l"}, want: []string{"new/l=l", "new/s/f=1", "new/s/l=l"}, keptBack: []string{"new", "new/s"}, back: []string{"new/l=l", "new/s/l=l", "new/s/f="}},
		{name: "a file in a new directory that the trees have, too, then", admin: "echo l > new/l", second: "echo 2 > new/l",
			kept: []string{"new/l"}, want: []string{"new/l=l"}, keptBack: []string{"new"}, back: []string{"new/l=l", "new/s="}},
		{name: "a masked directory made again", tree: "mask d", admin: "mkdir d; echo l > d/l", second: "true",
			kept: []string{"d"}, want: []string{"d/l=l", "d/a="}, back: []string{"d/l=l", "d/a=a", "d/b=a"}},
		{name: "what was there already", etc: "echo 1 > f", tree: "echo 1 > f", admin: "echo l > f", second: "true", kept: []string{"f"}, want: []string{"f=l"}, keptBack: []string{"f"}, back: []string{"f=l"}},
		{name: "what was masked and not there", tree: "mask x", admin: "echo l > x", second: "true", kept: []string{"x"}, want: []string{"x=l"}, keptBack: []string{"x"}, back: []string{"x=l"}},
		{name: "what had taken the place of a file", tree: "mkdir f; echo 1 > f/x", admin: "rm -r f", second: "rm -r f; echo 2 > f", kept: []string{"f"}, want: []string{"f="}, keptBack: []string{"f"}, back: []string{"f="}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.tree == "" {
				c.tree = tree
			}
			if c.etc == "" {
				c.etc = etc
			}
			l := newPutTest(t, c.etc)
			l.put(l.tree("t", c.tree))
			l.local(c.admin)
			second := l.put(l.tree("t2", "cp -a ../t/. .; "+c.second))
			wantPaths(t, "kept", second.Kept, c.kept...)
			check := func(want []string) {
				t.Helper()
				for _, w := range want {
					path, what, _ := strings.Cut(w, "=")
					l.wantWhat(map[string]string{path: what})
				}
			}
			check(c.want)
			wantPaths(t, "kept without trees", l.put().Kept, c.keptBack...)
			check(c.back)
		})
	}
}

// However often the trees change: what did not change is not touched, and all goes back to what was there first.
func TestPutTouchesOnlyWhatChanges(t *testing.T) {
	l := newPutTest(t, "for i in 1 2 3 4; do echo a > $i; done; mkdir d; echo a > d/1; echo a > d/2")
	start := l.etc()
	one := l.tree("one", "echo t > 1; echo t > 2; mkdir d n; echo t > d/1; echo t > n/1; mask 4")
	two := l.tree("two", "cp -a ../one/. .; echo u > 2; echo u > 3; rm d/1; echo u > n/2; rm 4")
	l.put(one)
	before := l.etc()
	result := l.put(two)
	wantPaths(t, "changed", result.Changed, "2", "3", "n/2")
	wantPaths(t, "restored", result.Restored, "4", "d/1")
	after := l.etc()
	for path, want := range map[string]thing{"1": before["1"], "n/1": before["n/1"], "4": start["4"], "d/1": start["d/1"], "d": start["d"], "d/2": start["d/2"]} {
		if after[path] != want {
			t.Errorf("%s is %+v, want %+v", path, after[path], want)
		}
	}
	for range 3 {
		l.put(one, two)
		l.put(two, one)
		l.put(two)
		l.put(one)
	}
	saved, err := os.ReadDir(filepath.Join(l.dirs.Store, savedName))
	if err != nil || len(saved) != 4 {
		t.Errorf("saved/ has %d files, %v", len(saved), err)
	}
	l.put()
	wantSame(t, "/etc in the end", start, l.etc())
}

func TestPutLeavesMountPointsAndImmutableFilesAlone(t *testing.T) {
	l := newPutTest(t, "for f in mounted later imm immlater free; do echo a > $f; done; mkdir m immd; echo a > m/f")
	sh(t, l.root, "echo m > file; mkdir dir; echo m > dir/f")
	mount := func(from, to string) {
		t.Helper()
		to = filepath.Join(l.dirs.Etc, to)
		if err := unix.Mount(filepath.Join(l.root, from), to, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(to, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	mount("file", "mounted")
	mount("dir", "m")
	t.Cleanup(func() { l.local("chattr -i imm immlater immd") })
	l.local("chattr +i imm immd")
	tree := l.tree("t", "for f in mounted later imm immlater free; do echo t > $f; done; mkdir m immd; echo t > m/f; echo t > m/n; echo t > immd/f")
	wantPaths(t, "kept", l.put(tree).Kept, "imm", "immd", "m", "mounted")
	l.wantWhat(map[string]string{"mounted": "m", "m/f": "m", "m/n": "", "imm": "a", "immd/f": "", "free": "t", "later": "t"})
	mount("file", "later")
	l.local("chattr +i immlater")
	for _, path := range []string{"file", "dir/f"} {
		if content, err := os.ReadFile(filepath.Join(l.root, path)); err != nil || string(content) != "m\n" {
			t.Errorf("%s has %q, %v", path, content, err)
		}
	}
	wantPaths(t, "kept without trees", l.put().Kept, "immlater", "later")
	l.wantWhat(map[string]string{"free": "a", "immlater": "t", "later": "m"})
}

func TestPutOnOtherFileSystems(t *testing.T) {
	noInodes := func(things map[string]thing) map[string]thing {
		for path, x := range things {
			x.Inode = 0
			things[path] = x
		}
		return things
	}
	for name, mount := range map[string]string{
		"apart":   "mount -t tmpfs tmpfs etc; cp -a sys/etc/. etc",
		"overlay": "mkdir upper work; mount -t overlay -o lowerdir=sys/etc,upperdir=upper,workdir=work overlay etc",
	} {
		t.Run(name, func(t *testing.T) {
			l := newPutTest(t, "echo a > f; mkdir -p d/s; echo a > d/s/f; echo a > file; ln -s x l")
			sh(t, l.root, "mkdir etc; "+mount)
			t.Cleanup(func() { sh(t, l.root, "umount -l etc") })
			l.dirs.Etc = filepath.Join(l.root, "etc")
			start := noInodes(l.etc())
			one := l.tree("one", "echo 1 > f; mask d l; mkdir -p file/s new; echo 1 > file/s/f; echo 1 > new/f")
			two := l.tree("two", "mkdir -p d/s; echo 2 > d/s/f; echo 2 > file; ln -s 2 new")
			for _, trees := range [][]string{{one}, {two}, {one, two}, {two, one}} {
				wantPaths(t, "kept", l.put(trees...).Kept)
			}
			l.wantWhat(map[string]string{"f": "1", "d/s/f": "2", "file": "2", "new": "-> 2", "l": ""})
			for path := range l.etc() {
				if strings.HasSuffix(path, "~") {
					t.Errorf("%s is left", path)
				}
			}
			l.put()
			end := noInodes(l.etc())
			if name == "overlay" {
				start, end = contentOnly(start), contentOnly(end)
			}
			wantSame(t, "/etc in the end", start, end)
		})
	}
}

func TestMessagesOfPutNameItsDirectory(t *testing.T) {
	l := newPutTest(t, "echo a > f")
	tree := l.tree("t", "echo t > f; mkdir d; echo t > d/f")
	l.dirs.Name, l.dirs.Repair = "/run", "Repair it."
	l.put(tree)
	sh(t, l.dirs.Store, "rm saved/*")
	_, err := Put(t.Context(), l.dirs, nil)
	if err == nil || strings.Contains(err.Error(), "/etc") && !strings.Contains(err.Error(), l.root) || !strings.Contains(err.Error(), "/run/f") || !strings.HasSuffix(err.Error(), "Repair it.") {
		t.Errorf("Put: %v", err)
	}
	sh(t, l.root, "mv sys/etc sys/away")
	if _, err = Put(t.Context(), l.dirs, []string{tree}); err == nil || !strings.Contains(err.Error(), "open /run: ") {
		t.Errorf("Put: %v", err)
	}
}

// A live commit's own changes of /etc are made below what overlays put there: that is taken back before, and put again after.
func TestTransactionsBelowAnOverlay(t *testing.T) {
	l := newTestLab(t, "echo a > f; echo a > g; echo a > edited; mkdir d; echo a > d/f; echo a > gone",
		"echo b > f; echo b > g; echo b > edited; echo b > d/f; rm gone; echo b > new")
	start := l.etc()
	tree := l.tree("t", "echo t > f; mkdir d; echo t > d/f; echo t > new; mask g; echo t > edited; echo t > gone")
	put := func(trees ...string) *Result {
		t.Helper()
		dirs := l.dirs
		dirs.Store += "-overlays"
		result, err := Put(t.Context(), dirs, trees)
		if err != nil {
			t.Fatal(err)
		}
		return result
	}
	withTree := map[string]string{"f": "t", "g": "", "d/f": "t", "new": "t", "edited": "t", "gone": "t"}
	put(tree)
	l.wantWhat(withTree)
	put()
	wantSame(t, "/etc without the overlay", start, l.etc())

	plan := l.plan("v1", "v2")
	l.apply(plan)
	v2 := l.etc()
	put(tree)
	l.wantWhat(withTree)
	put()
	wantSame(t, "/etc with v2, without the overlay", v2, l.etc())
	l.rollback()
	wantSame(t, "/etc after rollback", start, l.etc())

	l.apply(plan)
	l.commitJournal()
	put(tree)
	l.local("echo l > edited; echo l > d/l; echo l > g")
	wantPaths(t, "kept of the overlay", put().Kept, "edited", "g")
	wantPaths(t, "kept of v2", l.reset().Kept, "edited", "g")
	l.wantWhat(map[string]string{"f": "a", "d/f": "a", "new": "", "gone": "a", "edited": "l", "g": "l", "d/l": "l"})
	put(tree)
	l.wantWhat(map[string]string{"f": "t", "edited": "t", "g": "", "d/l": "l"})
	put()
	l.wantWhat(map[string]string{"f": "a", "edited": "l", "g": "l", "d/l": "l", "gone": "a", "new": ""})
}
