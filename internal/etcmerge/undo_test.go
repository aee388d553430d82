package etcmerge

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// everything is a default in three versions in which all that can change does, and what an administrator did to the first.
var everything = struct{ v1, v2, v3, local string }{
	v1: `
		mkdir -p conf gone/s attr todir.d tofile/s kept
		echo a > conf/a; echo a > conf/b; echo a > conf/mode; echo a > conf/mine; ln -s a conf/link
		setfattr -n user.x -v 1 conf/a conf/b; chown 5:6 conf/b; chmod 640 conf/b
		echo a > gone/f; ln -s f gone/l; echo a > gone/s/g; chown 7 gone/s; chmod 2750 gone/s
		echo a > todir; ln -s x linktodir; echo a > tofile/s/f; ln -s y tofile/l; echo a > attr/f; setfattr -n user.d -v 1 attr
		echo a > kept/f; echo a > again
		printf 'root:x:0:0::/root:/bin/sh\ngames:x:5:5::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n' > passwd
		printf 'root:*:1::::::\ngames:*:1::::::\nnobody:*:1::::::\n' > shadow; chmod 640 shadow; chown 0:42 shadow
		printf 'root:x:0:\nwheel:x:10:root\n' > group`,
	v2: `
		echo b > conf/a; echo b > conf/b; chmod 600 conf/mode; echo b > conf/mine; ln -sfn b conf/link; echo b > conf/new
		rm -r gone; rm todir linktodir; mkdir -p todir/x/y linktodir; echo b > todir/x/y/z; echo b > linktodir/f; chmod 700 todir
		rm -r tofile; echo b > tofile; chmod 2711 attr; chown 9:9 attr; setfattr -n user.d -v 2 attr; setfattr -n user.e -v 2 attr
		rm kept/f; mkdir -p new/a/b; echo b > new/a/b/c; ln -s c new/a/b/l; echo b > again
		printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\npostgres:x:998:998::/:/bin/sh\n' > passwd
		printf 'root:*:1::::::\nnobody:*:1::::::\npostgres:!:2::::::\n' > shadow
		printf 'root:x:0:\nwheel:x:10:root\npostgres:x:998:\n' > group; printf 'postgres:100000:65536\n' > subuid`,
	v3: `
		echo c > conf/a; rm conf/b; echo c > conf/new; echo c > conf/newer; rm -r todir; echo c > todir; mkdir -p gone; echo c > gone/f
		chmod 750 attr; setfattr -x user.e attr; rm -r new; rm tofile; mkdir tofile; echo c > tofile/f; echo a > again
		printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\npostgres:x:998:998::/:/bin/bash\nredis:x:997:997::/:/bin/false\n' > passwd
		printf 'root:*:1::::::\nnobody:*:1::::::\npostgres:!:2::::::\nredis:!:3::::::\n' > shadow
		printf 'root:x:0:\nwheel:x:10:root\npostgres:x:998:redis\nredis:x:997:\n' > group`,
	local: `
		touch .pwd.lock; echo l > conf/mine; echo l > kept/l; setfattr -n user.l -v l conf/a kept
		printf 'bob:x:1000:1000::/home/bob:/bin/sh\n' >> passwd; printf 'bob:secret:1::::::\n' >> shadow
		sed -i s/wheel:x:10:root/wheel:x:10:root,bob/ group; echo l > local; mkdir locald; echo l > locald/f
		find . -exec touch -h -d '2020-01-02 03:04:05.678' {} +`,
}

func newEverything(t *testing.T) *lab {
	t.Helper()
	l := newTestLab(t, everything.v1, everything.v2, everything.v3)
	l.local(everything.local)
	return l
}

func TestResetRestoresEveryPathExactly(t *testing.T) {
	l := newEverything(t)
	start := l.etc()
	l.apply(l.plan("v1", "v2"))
	if l.read("conf/a") != "b\n" || l.read("new/a/b/c") != "b\n" {
		t.Error("the plan was not carried out")
	}
	wantPaths(t, "kept", l.reset().Kept)
	wantSame(t, "/etc after reset", start, l.etc())
}

func TestTransactionsAreTakenBackOneByOneOrAllAtOnce(t *testing.T) {
	l := newEverything(t)
	v1 := l.etc()
	l.apply(l.plan("v1", "v2"))
	v2 := l.etc()
	l.commitJournal()
	wantPaths(t, "nothing to roll back", l.rollback().Restored)
	wantSame(t, "/etc after a rollback of nothing", v2, l.etc())

	l.apply(l.plan("v2", "v3"))
	v3 := l.etc()
	if v3["conf/a"].What == v2["conf/a"].What || v3["todir"].What == v2["todir"].What {
		t.Error("v3 was not applied")
	}
	l.rollback()
	wantSame(t, "/etc after rollback", v2, l.etc())

	l.apply(l.plan("v2", "v3"))
	wantSame(t, "/etc with v3 again", contentOnly(v3), contentOnly(l.etc()))
	l.commitJournal()
	l.apply(l.plan("v3", "v2"))
	wantSame(t, "/etc with v2 again", contentOnly(v2), contentOnly(l.etc()))
	l.reset()
	wantSame(t, "/etc after reset", v1, l.etc())
}

func TestResetTakesBackCommittedAndCurrent(t *testing.T) {
	l := newEverything(t)
	start := l.etc()
	l.apply(l.plan("v1", "v2"))
	l.commitJournal()
	l.apply(l.plan("v2", "v3"))
	l.reset()
	wantSame(t, "/etc after reset", start, l.etc())
	if pending, err := Pending(l.dirs); err != nil || pending {
		t.Errorf("Pending: %t, %v", pending, err)
	}
}

func TestManyTransactionsLeaveTheJournalAsItIs(t *testing.T) {
	l := newEverything(t)
	start := l.etc()
	l.apply(l.plan("v1", "v2"))
	l.commitJournal()
	size := func() (int, int) {
		saved, err := os.ReadDir(filepath.Join(l.dirs.Store, savedName))
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(l.dirs.Store, journalName))
		if err != nil {
			t.Fatal(err)
		}
		return len(saved), int(info.Size())
	}
	var files, bytes int
	for i := range 10 {
		for _, step := range [][2]string{{"v2", "v3"}, {"v3", "v2"}} {
			l.apply(l.plan(step[0], step[1]))
			l.commitJournal()
		}
		if i == 0 {
			files, bytes = size()
		}
	}
	if f, b := size(); f > files || b > bytes+500 { // numbers get longer
		t.Errorf("%d saved files and a journal of %d bytes became %d and %d", files, bytes, f, b)
	}
	l.reset()
	wantSame(t, "/etc after reset", start, l.etc())
}

func TestAdministratorsChangesSurvive(t *testing.T) {
	cases := []struct {
		name, admin string
		kept        []string
		want        map[string]string // path to the beginning of What
	}{
		{"edited", "echo l > conf/a", []string{"conf/a"}, map[string]string{"conf/a": `-rw-r--r-- 0:0 "l\n"`}},
		{"edited what came", "echo l > conf/new", []string{"conf", "conf/new"}, map[string]string{"conf/new": `-rw-r--r-- 0:0 "l\n"`}},
		{"mode", "chmod 400 conf/a", []string{"conf/a"}, map[string]string{"conf/a": "-r-------- 0:0 \"b"}},
		{"owner", "chown 77 conf/link -h", []string{"conf/link"}, map[string]string{"conf/link": "Lrwxrwxrwx 77:0 -> b"}},
		{"access control list", "setfattr -n user.acl -v x conf/a", []string{"conf/a"}, map[string]string{"conf/a": "-rw-r--r-- 0:0 \"b"}},
		{"deleted", "rm conf/a", []string{"conf/a"}, map[string]string{"conf/a": ""}},
		{"deleted what came", "rm conf/new", nil, map[string]string{"conf/new": ""}},
		{"retyped", "rm conf/a; mkdir conf/a; echo l > conf/a/l", []string{"conf/a"}, map[string]string{"conf/a/l": "-rw-r--r-- 0:0 \"l"}},
		{"what had gone", "mkdir gone; echo l > gone/f", []string{"gone/f"}, map[string]string{"gone/f": "-rw-r--r-- 0:0 \"l", "gone/s/g": "-rw-r--r-- 0:0 \"a"}},
		{"put into a new directory", "echo l > new/a/l", []string{"new", "new/a"}, map[string]string{"new/a/l": "-rw-r--r-- 0:0 \"l", "new/a/b": ""}},
		{"put into a directory for a file", "echo l > todir/x/l", []string{"todir", "todir/x"}, map[string]string{"todir/x/l": "-rw-r--r-- 0:0 \"l"}},
		{"mode of a new directory", "chmod 711 new/a/b", []string{"new", "new/a", "new/a/b"}, map[string]string{"new/a/b": "drwx--x--x 0:0", "new/a/b/c": ""}},
		{"mode of a directory", "chmod 700 attr", []string{"attr"}, map[string]string{"attr": "dgrwx------ 0:0"}},
		{"xattr of a directory", "setfattr -n user.d -v l attr", []string{"attr"}, map[string]string{"attr": "drwxr-xr-x 0:0"}},
		{"directory moved away", "mv conf conf.l; ln -s /tmp conf", []string{"conf/a", "conf/b", "conf/link", "conf/mode"}, map[string]string{"conf": "Lrwxrwxrwx 0:0 -> /tmp", "conf.l/a": "-rw-r--r-- 0:0 \"b"}},
		{"put back by hand", "rm -r tofile; mkdir tofile", nil, map[string]string{"tofile/s/f": "-rw-r--r-- 0:0 \"a"}},
	}
	l := newEverything(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l.t = t
			start := l.etc()
			l.apply(l.plan("v1", "v2"))
			l.commitJournal()
			l.local(c.admin)
			var kept []string
			for _, path := range l.reset().Kept {
				if path != "conf" {
					kept = append(kept, path)
				}
			}
			var want []string
			for _, path := range c.kept {
				if path != "conf" {
					want = append(want, path)
				}
			}
			wantPaths(t, "kept", kept, want...)
			end := l.etc()
			for path, what := range c.want {
				if got := end[path].What; !strings.HasPrefix(got, what) || what == "" && got != "" {
					t.Errorf("%s is %q, want %q", path, got, what)
				}
			}
			for path, x := range start {
				touched := false
				for _, k := range append([]string{"."}, c.kept...) {
					touched = touched || path == k || strings.HasPrefix(path, k+"/")
				}
				for k := range c.want {
					touched = touched || path == k || strings.HasPrefix(k, path+"/") || strings.HasPrefix(path, k+"/")
				}
				if !touched && end[path] != x {
					t.Errorf("%s is %+v, want %+v", path, end[path], x)
				}
			}
			// The next case needs the start again.
			sh(t, l.root, "rm -rf '"+l.dirs.Etc+"'; cp -a --no-preserve=links sys/ostree/deploy/lab/deploy/*.0/usr/etc '"+l.dirs.Etc+"'")
			l.local(everything.local)
		})
	}
}

func TestDirectoryOfTheTargetInWhichTheAdministratorPutAFile(t *testing.T) {
	l := newTestLab(t, "mkdir d; echo a > d/a; echo a > d/b", "rm -r d; mkdir -p n/e/w; echo b > n/e/w/f; echo b > n/f")
	plan := l.plan("v1", "v2")
	l.local("echo l > d/l") // after the plan was made
	wantPaths(t, "kept by Apply", l.apply(plan).Kept, "d")
	l.local("echo l > n/e/w/l")
	wantPaths(t, "kept by Reset", l.reset().Kept, "n", "n/e", "n/e/w")
	var paths []string
	for path := range l.etc() {
		paths = append(paths, path)
	}
	want := map[string]bool{".": true, "d": true, "d/a": true, "d/b": true, "d/l": true, "n": true, "n/e": true, "n/e/w": true, "n/e/w/l": true}
	for _, path := range paths {
		if !want[path] {
			t.Errorf("%s is there", path)
		}
		delete(want, path)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

func TestWhatChangedSinceThePlanIsKept(t *testing.T) {
	l := newEverything(t)
	plan := l.plan("v1", "v2")
	l.local("echo l > conf/a; rm conf/b; mkdir new; echo l > new/l; echo l > todir; echo l > gone/s/l; chmod 700 attr; rm conf/link; ln -s / conf/link")
	start := l.etc()
	result := l.apply(plan)
	wantPaths(t, "kept", result.Kept, "attr", "conf/a", "conf/b", "conf/link", "gone", "gone/s", "new", "todir", "todir/x", "todir/x/y", "todir/x/y/z")
	l.reset()
	wantSame(t, "/etc after reset", start, l.etc())
}

func TestAdministratorsChangeBetweenTwoTransactionsIsWhatResetGoesBackTo(t *testing.T) {
	l := newTestLab(t, "echo a > f; echo a > g; mkdir d; echo a > d/f", "echo b > f; echo b > g; echo b > d/f", "echo c > f; echo c > g; echo c > d/f")
	l.apply(l.plan("v1", "v2"))
	l.commitJournal()
	l.local("echo l > f; echo l > d/l")
	l.apply(l.plan("v2", "v3"))
	l.commitJournal()
	if l.read("f") != "l\n" || l.read("g") != "c\n" {
		t.Errorf("f is %q and g is %q after v3", l.read("f"), l.read("g"))
	}
	l.reset()
	if l.read("f") != "l\n" || l.read("g") != "a\n" || l.read("d/f") != "a\n" || l.read("d/l") != "l\n" {
		t.Errorf("after reset: %v", l.etc())
	}
}

func TestFileThatAToolWroteTwiceGoesBackToTheFirst(t *testing.T) {
	l := newTestLab(t, "echo a > ld.so.cache; echo a > f", "echo b > f")
	l.local("chmod 600 ld.so.cache; chown 5 ld.so.cache; setfattr -n user.k -v 1 ld.so.cache")
	start := l.etc()
	l.apply(l.plan("v1", "v2"))
	for _, content := range []string{"one", "two"} {
		plan, err := PlanFiles(l.dirs, []NewFile{{Path: "ld.so.cache", Content: []byte(content)}, {Path: "made", Content: []byte(content), Mode: 0o640, GID: 42}, {Path: "made2", Content: []byte(content)}})
		if err != nil {
			t.Fatal(err)
		}
		l.apply(roundTrip(t, plan))
	}
	now := l.etc()
	for path, want := range map[string]thing{
		"ld.so.cache": {What: `-rw------- 5:0 "two"`, Xattrs: `user.k="1" `},
		"made":        {What: `-rw-r----- 0:42 "two"`},
		"made2":       {What: `-rw-r--r-- 0:0 "two"`},
		"f":           {What: "-rw-r--r-- 0:0 \"b\\n\""},
	} {
		if got := contentOnly(now)[path]; got != want {
			t.Errorf("%s is %+v, want %+v", path, got, want)
		}
	}
	plan, err := PlanFiles(l.dirs, []NewFile{{Path: "ld.so.cache", Content: []byte("two")}})
	if err != nil || len(plan.Changes) != 0 {
		t.Errorf("a plan for what is there already: %+v, %v", plan, err)
	}
	l.rollback()
	wantSame(t, "/etc after rollback", start, l.etc())
}

func TestPlanFilesLeavesWhatIsNoFile(t *testing.T) {
	l := newTestLab(t, "mkdir d; ln -s /tmp/x l; ln -s /tmp up", "true")
	start := l.etc()
	plan, err := PlanFiles(l.dirs, []NewFile{{Path: "d", Content: []byte("x")}, {Path: "l", Content: []byte("x")}, {Path: "up/x", Content: []byte("x")}})
	if err != nil {
		t.Fatal(err)
	}
	wantPaths(t, "kept", l.apply(plan).Kept, "up/x")
	wantSame(t, "/etc", start, l.etc())
	for _, path := range []string{"", "/etc/passwd", "../x", "a/../b", ".", "a//b"} {
		if _, err := PlanFiles(l.dirs, []NewFile{{Path: path}}); err == nil {
			t.Errorf("a path %q is taken", path)
		}
	}
}

// Going through a symbolic link is what the plan cannot know about: the directory was one when it was made.
func TestNothingIsWrittenThroughASymlink(t *testing.T) {
	l := newTestLab(t, "mkdir -p d/e; echo a > d/e/f; echo a > d/e/gone", "echo b > d/e/f; rm d/e/gone; echo b > d/e/n; chmod 700 d/e; chmod 711 d")
	outside := t.TempDir()
	sh(t, outside, "mkdir e; echo a > e/f; echo a > e/gone; chmod 755 . e")
	plan := l.plan("v1", "v2")
	before := scan(t, outside)
	l.local("mv d real; ln -s " + outside + " d")
	result := l.apply(plan)
	wantPaths(t, "kept", result.Kept, "d", "d/e", "d/e/f", "d/e/gone", "d/e/n")
	wantSame(t, "what is outside", before, scan(t, outside))
	l.local("rm d; mv real d")
	l.rollback()

	l.apply(l.plan("v1", "v2"))
	l.local("mv d real; ln -s " + outside + " d")
	sh(t, outside, "echo b > e/f; echo b > e/n; chmod 700 e; chmod 711 .; rm e/gone") // just as it was put
	before = scan(t, outside)
	l.reset()
	wantSame(t, "what is outside, after reset", before, scan(t, outside))
}

func TestMountPointsAreLeftAlone(t *testing.T) {
	for _, when := range []string{"before the plan", "before apply", "before reset"} {
		t.Run(when, func(t *testing.T) {
			l := newTestLab(t, "echo a > hostname; mkdir m; echo a > m/f; echo a > f", "echo b > hostname; echo b > m/f; echo b > m/n; echo b > f")
			mount := func(at string) {
				if when != at {
					return
				}
				sh(t, l.root, "echo mounted > file; mkdir dir; echo mounted > dir/f")
				for from, to := range map[string]string{"file": "hostname", "dir": "m"} {
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
			}
			mount("before the plan")
			plan := l.plan("v1", "v2")
			mount("before apply")
			result := l.apply(plan)
			mount("before reset")
			if when == "before the plan" {
				wantPaths(t, "changed", result.Changed, "f")
			} else if when == "before apply" {
				wantPaths(t, "kept", result.Kept, "hostname", "m/f", "m/n")
			}
			mounted := scan(t, l.root)
			result = l.reset()
			if when == "before reset" {
				wantPaths(t, "kept", result.Kept, "hostname", "m/f", "m/n")
			}
			if got := l.read("f"); got != "a\n" {
				t.Errorf("f is %q", got)
			}
			for _, path := range []string{"file", "dir/f", "dir"} {
				if now := scan(t, l.root); now[path] != mounted[path] {
					t.Errorf("%s is %+v", path, now[path])
				}
			}
		})
	}
}

// Through another path to /etc what is mounted there is not seen, but rename(2) knows.
func TestMountPointThatIsNotSeenIsLeftAlone(t *testing.T) {
	l := newTestLab(t, "echo a > hostname; echo a > f", "echo b > hostname; echo b > f")
	view := filepath.Join(l.root, "view")
	sh(t, l.root, "mkdir view; echo mounted > file; mount --bind '"+l.sys+"' view; mount --bind file '"+l.dirs.Etc+"/hostname'")
	mounted := l.dirs.Etc + "/hostname"
	t.Cleanup(func() { sh(t, l.root, "umount -l '"+mounted+"' view") })
	rel, err := filepath.Rel(l.sys, l.dirs.Etc)
	if err != nil {
		t.Fatal(err)
	}
	l.dirs = Dirs{Etc: filepath.Join(view, rel), Store: filepath.Join(view, "ostree/store")}
	result := l.apply(l.plan("v1", "v2"))
	wantPaths(t, "changed", result.Changed, "f")
	wantPaths(t, "kept", result.Kept, "hostname")
	l.reset()
	if l.read("f") != "a\n" || l.read("hostname") != "a\n" {
		t.Errorf("f is %q, hostname %q", l.read("f"), l.read("hostname"))
	}
}

func TestImmutableFilesAreLeftAlone(t *testing.T) {
	l := newTestLab(t, "echo a > f; echo a > g", "echo b > f; echo b > g")
	l.local("chattr +i f")
	t.Cleanup(func() { l.local("chattr -i f g") })
	plan := l.plan("v1", "v2")
	if len(plan.Local) != 1 || plan.Local[0] != (Local{"f", LocalImmutable}) {
		t.Errorf("local: %+v", plan.Local)
	}
	l.local("chattr +i g")
	wantPaths(t, "kept", l.apply(plan).Kept, "g")
}

func TestSpecialFilesAreNeitherOpenedNorReplaced(t *testing.T) {
	l := newTestLab(t, "for f in fifo dev gone; do echo a > $f; done; mkdir d; echo a > d/f", "for f in fifo dev; do echo b > $f; done; rm -r gone d")
	l.local("rm fifo dev gone d/f; mkfifo fifo gone; mknod dev c 1 3; mkfifo d/f d/other")
	start := l.etc()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.apply(l.plan("v1", "v2"))
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("MakePlan or Apply waits for a fifo")
	}
	wantSame(t, "/etc", start, l.etc())
}

func TestEtcOnAnotherFileSystem(t *testing.T) {
	l := newEverything(t)
	tmpfs := filepath.Join(l.root, "etc")
	sh(t, l.root, "mkdir etc; mount -t tmpfs tmpfs etc; cp -a '"+l.dirs.Etc+"/.' etc")
	t.Cleanup(func() { sh(t, l.root, "umount -l etc") })
	l.dirs.Etc = tmpfs
	noInodes := func(things map[string]thing) map[string]thing {
		for path, x := range things {
			x.Inode = 0
			things[path] = x
		}
		return things
	}
	start := noInodes(l.etc())
	l.apply(l.plan("v1", "v2"))
	v2 := noInodes(l.etc())
	for path := range v2 {
		if strings.HasSuffix(path, "~") {
			t.Errorf("%s was left", path)
		}
	}
	l.commitJournal()
	l.apply(l.plan("v2", "v3"))
	l.rollback()
	wantSame(t, "/etc after rollback", v2, noInodes(l.etc()))
	l.apply(l.plan("v2", "v3"))
	l.reset()
	wantSame(t, "/etc after reset", start, noInodes(l.etc()))
}

// A transient /etc is an overlay, on which directories of the lower layer cannot be renamed.
func TestEtcOnAnOverlay(t *testing.T) {
	l := newEverything(t)
	sh(t, l.root, "mkdir etc upper work; mount -t overlay -o 'lowerdir="+l.dirs.Etc+",upperdir=upper,workdir=work' overlay etc")
	t.Cleanup(func() { sh(t, l.root, "umount -l etc") })
	l.dirs.Etc = filepath.Join(l.root, "etc")
	start := contentOnly(l.etc())
	l.apply(l.plan("v1", "v2"))
	v2 := contentOnly(l.etc())
	l.commitJournal()
	l.apply(l.plan("v2", "v3"))
	l.rollback()
	wantSame(t, "/etc after rollback", v2, contentOnly(l.etc()))
	l.apply(l.plan("v2", "v3"))
	l.reset()
	wantSame(t, "/etc after reset", start, contentOnly(l.etc()))
}

func TestStoreIsForRootOnly(t *testing.T) {
	l := newEverything(t)
	l.apply(l.plan("v1", "v2"))
	for path, want := range map[string]os.FileMode{".": 0o700, savedName: 0o700, freshName: 0o700, journalName: 0o600} {
		info, err := os.Stat(filepath.Join(l.dirs.Store, path))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

func TestInterruptedTransactionIsNotPlannedUpon(t *testing.T) {
	l := newEverything(t)
	l.apply(l.plan("v1", "v2"))
	if _, err := l.tryPlan("v1", "v2"); err == nil || !strings.Contains(err.Error(), ErrUnfinished.Error()) {
		t.Errorf("MakePlan within a transaction: %v", err)
	}
}

func TestApplyingTheSamePlanAgainBeginsAgain(t *testing.T) {
	l := newEverything(t)
	start := l.etc()
	plan := l.plan("v1", "v2")
	l.apply(plan)
	v2 := contentOnly(l.etc())
	l.local("echo l > conf/new")
	wantPaths(t, "kept", l.apply(plan).Kept, "conf/new")
	v2["conf/new"] = thing{What: `-rw-r--r-- 0:0 "l\n"`}
	wantSame(t, "/etc applied twice", v2, contentOnly(l.etc()))
	l.local("rm conf/new")
	l.reset()
	wantSame(t, "/etc after reset", without(start, "conf"), without(l.etc(), "conf"))
}

func TestOperationsThatHaveNothingToDo(t *testing.T) {
	l := newTestLab(t, "echo a > f", "true")
	l.apply(l.plan("v1", "v2"))
	l.rollback()
	l.commitJournal()
	l.reset()
	if pending, err := Pending(l.dirs); pending || err != nil {
		t.Errorf("Pending: %t, %v", pending, err)
	}
}

func TestCancelledOperationCanBeTakenBack(t *testing.T) {
	l := newEverything(t)
	start := l.etc()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Apply(ctx, l.repo, l.plan("v1", "v2"), l.dirs, nil); err == nil {
		t.Error("Apply does not look at its context")
	}
	l.reset()
	wantSame(t, "/etc", start, l.etc())
}
