//go:build nspawn

package nspawn_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/test/nspawn"
)

// etcLab is the directory below /etc in which the defaults of the tests are.
const etcLab = "lab"

// defaultChange is what a new commit does to a path of usr/etc; before makes the path for the old commit.
type defaultChange struct {
	name   string
	before func(tree *nspawn.Tree, path string)
	after  func(tree *nspawn.Tree, path string)
}

// localChange is what an administrator does to a path below /etc, by its host's path.
type localChange struct {
	name string
	do   func(path string) error
}

func oldFile(tree *nspawn.Tree, path string) { tree.Write(path, "old\n", 0o644) }

func oldDirectory(tree *nspawn.Tree, path string) {
	tree.Mkdir(path, 0o755)
	tree.Write(path+"/child", "old\n", 0o644)
	tree.Write(path+"/other", "old\n", 0o644)
}

func nothing(*nspawn.Tree, string) {}

// Whatever happens to a default, combined with whatever happens to it locally.
var (
	fileDefaults = []defaultChange{
		{"same", oldFile, nothing},
		{"content", oldFile, func(tree *nspawn.Tree, path string) { tree.Write(path, "new\n", 0o644) }},
		{"mode", oldFile, func(tree *nspawn.Tree, path string) { tree.Chmod(path, 0o4750) }},
		{"owner", oldFile, func(tree *nspawn.Tree, path string) { tree.Chown(path, 3, 4) }},
		{"xattr", oldFile, func(tree *nspawn.Tree, path string) { tree.Setxattr(path, "user.test", []byte("new")) }},
		{"removed", oldFile, func(tree *nspawn.Tree, path string) { tree.Remove(path) }},
		{"link", oldFile, func(tree *nspawn.Tree, path string) { tree.Symlink("new", path) }},
		{"directory", oldFile, oldDirectory},
	}
	linkDefaults = []defaultChange{
		{"link-retargeted", func(tree *nspawn.Tree, path string) { tree.Symlink("old", path) },
			func(tree *nspawn.Tree, path string) { tree.Symlink("new", path) }},
		{"link-to-file", func(tree *nspawn.Tree, path string) { tree.Symlink("old", path) }, oldFile},
	}
	localFileChanges = []localChange{
		{"untouched", func(string) error { return nil }},
		{"content", func(path string) error { return os.WriteFile(path, []byte("mine\n"), 0o644) }},
		{"mode", func(path string) error { return os.Chmod(path, 0o600) }},
		{"owner", func(path string) error { return os.Lchown(path, 5, 6) }},
		{"xattr", func(path string) error { return unix.Setxattr(path, "user.test", []byte("mine"), 0) }},
		{"deleted", os.Remove},
		{"link", func(path string) error { return replaceByLink(path, "mine") }},
		{"directory", func(path string) error {
			return replaceBy(path, func() error { return makeDirectory(path) })
		}},
	}
	localLinkChanges = []localChange{
		{"untouched", func(string) error { return nil }},
		{"deleted", os.Remove},
		{"link", func(path string) error { return replaceByLink(path, "mine") }},
		{"file", func(path string) error {
			return replaceBy(path, func() error { return os.WriteFile(path, []byte("mine\n"), 0o644) })
		}},
	}

	directoryDefaults = []defaultChange{
		{"dir-same", oldDirectory, nothing},
		{"dir-child-changed", oldDirectory, func(tree *nspawn.Tree, path string) { tree.Write(path+"/child", "new\n", 0o644) }},
		{"dir-child-added", oldDirectory, func(tree *nspawn.Tree, path string) { tree.Write(path+"/new/child", "new\n", 0o600) }},
		{"dir-child-removed", oldDirectory, func(tree *nspawn.Tree, path string) { tree.Remove(path + "/child") }},
		{"dir-mode", oldDirectory, func(tree *nspawn.Tree, path string) { tree.Chmod(path, 0o700) }},
		{"dir-removed", oldDirectory, func(tree *nspawn.Tree, path string) { tree.Remove(path) }},
		{"dir-to-file", oldDirectory, oldFile},
		{"dir-to-link", oldDirectory, func(tree *nspawn.Tree, path string) { tree.Symlink("new", path) }},
	}
	localDirectoryChanges = []localChange{
		{"untouched", func(string) error { return nil }},
		{"child-content", func(path string) error { return os.WriteFile(path+"/child", []byte("mine\n"), 0o644) }},
		{"child-deleted", func(path string) error { return os.Remove(path + "/child") }},
		{"child-retyped", func(path string) error { return replaceByLink(path+"/child", "mine") }},
		{"child-added", func(path string) error { return os.WriteFile(path+"/mine", []byte("mine\n"), 0o600) }},
		{"directory-added", func(path string) error { return makeDirectory(path + "/mine") }},
		{"mode", func(path string) error { return os.Chmod(path, 0o711) }},
		{"mode-and-child", func(path string) error {
			if err := os.Chmod(path, 0o711); err != nil {
				return err
			}
			return os.WriteFile(path+"/mine", nil, 0o644)
		}},
		{"owner-and-child", func(path string) error {
			if err := os.Chown(path, 5, 6); err != nil {
				return err
			}
			return os.WriteFile(path+"/child", []byte("mine\n"), 0o644)
		}},
		{"deleted", os.RemoveAll},
		{"link", func(path string) error { return replaceByLink(path, "mine") }},
	}

	// Only the new commit has these.
	addedDefaults = []defaultChange{
		{"new-file", nothing, oldFile},
		{"new-link", nothing, func(tree *nspawn.Tree, path string) { tree.Symlink("new", path) }},
		{"new-directory", nothing, oldDirectory},
	}
	localAdditions = []localChange{
		{"nothing", func(string) error { return nil }},
		{"directory", makeDirectory},
		{"file", func(path string) error { return os.WriteFile(path, []byte("mine\n"), 0o640) }},
		{"link", func(path string) error { return os.Symlink("mine", path) }},
	}
)

func makeDirectory(path string) error {
	if err := os.Mkdir(path, 0o751); err != nil {
		return err
	}
	if err := unix.Setxattr(path, "user.test", []byte("mine"), 0); err != nil {
		return err
	}
	return os.WriteFile(path+"/mine", []byte("mine\n"), 0o600)
}

func replaceByLink(path, target string) error {
	return replaceBy(path, func() error { return os.Symlink(target, path) })
}

func replaceBy(path string, make func() error) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return make()
}

// etcCase is one change of a default met by one local change, at a path of its own.
type etcCase struct {
	inDefault defaultChange
	local     localChange
}

func (c etcCase) path() string { return etcLab + "/" + c.inDefault.name + "/" + c.local.name }

// etcCases are all combinations that OSTree itself can merge.
func etcCases() []etcCase {
	var cases []etcCase
	for _, group := range []struct {
		defaults []defaultChange
		locals   []localChange
	}{
		{fileDefaults, localFileChanges},
		{linkDefaults, localLinkChanges},
		{directoryDefaults, localDirectoryChanges},
		{addedDefaults, localAdditions},
	} {
		for _, inDefault := range group.defaults {
			for _, local := range group.locals {
				cases = append(cases, etcCase{inDefault, local})
			}
		}
	}
	return slices.DeleteFunc(cases, etcCase.isUnmergeable)
}

// isUnmergeable tells whether `ostree admin deploy` fails, as a live apply does: a file that was changed locally newly defaults to a
// directory, or a directory in which something was changed to something else.
func (c etcCase) isUnmergeable() bool {
	switch isUntouched := c.local.name == "untouched" || c.local.name == "deleted"; c.inDefault.name {
	case "directory", "dir-to-file", "dir-to-link":
		return !isUntouched
	case "new-directory":
		return c.local.name == "file" || c.local.name == "link"
	case "dir-removed":
		return false
	}
	return strings.HasPrefix(c.inDefault.name, "dir-") && c.local.name == "link"
}

// isForgotten tells whether libostree overlooks the local change, and the next boot has the default: nothing but a directory's mode,
// or a file's extended attribute, was changed. A live apply does not touch what the target does not change.
func (c etcCase) isForgotten() bool {
	switch c.inDefault.name {
	case "same":
		return c.local.name == "xattr"
	case "dir-same", "dir-child-changed", "dir-child-added", "dir-child-removed":
		return c.local.name == "mode"
	}
	return false
}

func TestEtcIsWhatADeploymentOfTheCommitHas(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		cases := etcCases()
		v1 := lab.Derive(t, product(t, suite), func(tree *nspawn.Tree) {
			for _, c := range cases {
				tree.Mkdir(filepath.Dir("usr/etc/"+c.path()), 0o755)
			}
			for _, c := range cases {
				c.inDefault.before(tree, "usr/etc/"+c.path())
			}
		})
		m := lab.Machine(t, v1, nspawn.Options{})
		m.Boot()
		v2 := derived(t, m, v1, func(tree *nspawn.Tree) {
			for _, c := range cases {
				c.inDefault.after(tree, "usr/etc/"+c.path())
			}
		})
		for _, c := range cases {
			if err := c.local.do(m.Path("/etc/" + c.path())); err != nil {
				t.Fatal(err)
			}
		}
		before := m.Snapshot("/etc")
		want := etcOfDeployment(t, m, v2)
		for _, c := range cases {
			if c.isForgotten() {
				want[c.path()] = before[c.path()]
			}
		}

		apply(t, m, v2)
		requireTree(t, "/etc after the apply", m.Snapshot("/etc"), want)
		reset(t, m)
		requireTree(t, "/etc after the reset", m.Snapshot("/etc"), before)
	})
}

// etcOfDeployment returns what libostree merges for a commit from /etc as it is now. The deployment is made at once, not
// staged, and removed again.
func etcOfDeployment(t *testing.T, m *nspawn.Machine, commit string) nspawn.Snapshot {
	t.Helper()
	m.Run("ostree", "admin", "deploy", "--os=debian", commit)
	dirs, err := filepath.Glob(filepath.Join(m.Sysroot(), "ostree/deploy/debian/deploy", commit+".*[0-9]"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("deployments of %s: %v (%v)", commit, dirs, err)
	}
	etc := snapshot(t, filepath.Join(dirs[0], "etc"))
	m.Run("ostree", "admin", "undeploy", "0")
	// libostree does not copy this one, so that the next boot does what ConditionNeedsUpdate=/etc is for.
	if stamp, ok := m.Snapshot("/etc")[".updated"]; ok {
		etc[".updated"] = stamp
	}
	return etc
}

func TestSystemUsersArriveBesideLocalOnesAndGoAgain(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, withUsers)
	m.Run("useradd", "--uid=1500", "--create-home", "local")
	m.Run("gpasswd", "--add", "local", "audio")
	before := m.Snapshot("/etc")

	apply(t, m, v2)
	for _, name := range []string{"local", "bypasswd", "bysysusers"} {
		requireUser(t, m, name, true)
	}
	equal(t, "user of the target", m.Run("getent", "passwd", "bypasswd"), "bypasswd:x:777:777:from usr/etc:/var/lib/bypasswd:/usr/sbin/nologin")
	equal(t, "user of a fragment", m.Run("getent", "passwd", "bysysusers"), "bysysusers:x:778:778:from sysusers.d:/var/lib/bysysusers:/usr/sbin/nologin")
	equal(t, "directory of that user", m.Run("stat", "--format=%U:%G %a", "/var/lib/bysysusers"), "bysysusers:bysysusers 750")
	equal(t, "groups of the local user", m.Run("id", "--name", "--groups", "local"), "local audio")
	equal(t, "attributes of shadow", m.Run("stat", "--format=%U:%G %a", "/etc/shadow"), "root:shadow 640")

	t.Run("and back", func(t *testing.T) {
		m := m.For(t)
		reset(t, m)
		requireTree(t, "/etc", m.Snapshot("/etc"), before)
		requireUser(t, m, "local", true)
	})
	t.Run("with a user that was added meanwhile", func(t *testing.T) {
		m := m.For(t)
		apply(t, m, v2)
		m.Run("useradd", "--uid=1501", "later")
		m.Run("usermod", "--comment=changed", "local")
		reset(t, m)
		for name, there := range map[string]bool{"local": true, "later": true, "bypasswd": false, "bysysusers": false} {
			requireUser(t, m, name, there)
		}
		equal(t, "the local user", m.Run("getent", "passwd", "local"), "local:x:1500:1500:changed:/home/local:/bin/sh")
		m.Run("userdel", "later")
	})
	t.Run("clash of ids", func(t *testing.T) {
		m := m.For(t)
		m.Run("useradd", "--uid=777", "squatter")
		before := factsOf(t, m)
		if result := tryApply(m, v2); result.Code == 0 {
			t.Error("it was applied")
		}
		last := lastTransaction(t, m)
		equal(t, "result", last.Result, "refused")
		for _, name := range []string{"bypasswd", "squatter", "777"} {
			if !strings.Contains(last.Reason, name) {
				t.Errorf("the reason does not name %s: %s", name, last.Reason)
			}
		}
		requireSame(t, m, before)
		m.Run("userdel", "squatter")
	})
}

// withUsers adds a system user in each of the ways in which a commit brings one.
func withUsers(tree *nspawn.Tree) {
	for name, line := range map[string]string{
		"passwd":  "bypasswd:x:777:777:from usr/etc:/var/lib/bypasswd:/usr/sbin/nologin",
		"group":   "bypasswd:x:777:",
		"shadow":  "bypasswd:!:20000::::::",
		"gshadow": "bypasswd:!::",
	} {
		editKeepingAttributes(tree, "usr/etc/"+name, func(content string) string { return content + line + "\n" })
	}
	tree.Write("usr/lib/sysusers.d/lab.conf", "u bysysusers 778 \"from sysusers.d\" /var/lib/bysysusers\n", 0o644)
	tree.Write("usr/lib/tmpfiles.d/lab.conf", "d /var/lib/bysysusers 0750 bysysusers bysysusers\n", 0o644)
}

// editKeepingAttributes changes the content of a file that belongs to somebody else than root, or is not for all.
func editKeepingAttributes(tree *nspawn.Tree, path string, edit func(string) string) {
	var st unix.Stat_t
	content := tree.Read(path)
	if err := unix.Lstat(tree.Path(path), &st); err != nil {
		panic(err)
	}
	tree.Write(path, edit(content), st.Mode&0o7777)
	tree.Chown(path, int(st.Uid), int(st.Gid))
}

// requireUser looks a user up as services do, and in the files that belong to it.
func requireUser(t *testing.T, m *nspawn.Machine, name string, there bool) {
	t.Helper()
	equal(t, name+" is a user", m.Try("getent", "passwd", name).Code == 0, there)
	for _, file := range []string{"passwd", "group", "shadow", "gshadow"} {
		entries := strings.Count("\n"+m.Read("/etc/"+file), "\n"+name+":")
		want := 0
		if there {
			want = 1
		}
		equal(t, "entries of "+name+" in "+file, entries, want)
	}
}

func TestLocallyMadeLdSoCacheListsTheLibrariesOfTheTarget(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, _ := productMachine(t, suite, nspawn.Options{})
		v2 := lab.WithProduct(t, lab.Base(t, suite, nspawn.Servers))
		m.Pull(v2)
		m.Run("sh", "-ec", `mkdir /var/lib/mine
			cp -L /usr/lib/x86_64-linux-gnu/libz.so.1 /var/lib/mine/
			echo /var/lib/mine >/etc/ld.so.conf.d/mine.conf
			ldconfig -X`)
		before := m.Snapshot("/etc")
		listed := func(library string) bool { return strings.Contains(m.Run("ldconfig", "-p"), " => "+library+"\n") }
		const mine, theirs = "/var/lib/mine/libz.so.1", "/lib/x86_64-linux-gnu/libpq.so.5"
		equal(t, "own library is listed before", listed(mine), true)
		equal(t, "library of the target is listed before", listed(theirs), false)

		apply(t, m, v2)
		equal(t, "own library is listed", listed(mine), true)
		equal(t, "library of the target is listed", listed(theirs), true)

		reset(t, m)
		requireTree(t, "/etc", withoutLock(m.Snapshot("/etc")), withoutLock(before))
	})
}

// withoutLock leaves the lock of the account files out, which stays once somebody has held it, see lckpwdf(3).
func withoutLock(etc nspawn.Snapshot) nspawn.Snapshot { return etc.Without(".pwd.lock") }

func TestTwoAppliesAndAResetLeaveEverythingAsItWas(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		v1 := lab.Derive(t, product(t, suite), func(tree *nspawn.Tree) {
			tree.Write("usr/etc/lab/one", "1\n", 0o644)
			tree.Write("usr/etc/lab/two", "1\n", 0o600)
			tree.Setxattr("usr/etc/lab/two", "user.test", []byte("1"))
			tree.Write("usr/etc/lab/dir/gone", "1\n", 0o644)
			tree.Symlink("1", "usr/etc/lab/link")
		})
		m := lab.Machine(t, v1, nspawn.Options{})
		m.Boot()
		v2 := derived(t, m, v1, func(tree *nspawn.Tree) {
			withUsers(tree)
			tree.Write("usr/etc/lab/one", "2\n", 0o640)
			tree.Chown("usr/etc/lab/one", 3, 4)
			tree.Setxattr("usr/etc/lab/two", "user.test", []byte("2"))
			tree.Remove("usr/etc/lab/dir")
			tree.Write("usr/etc/lab/new/of/two", "2\n", 0o644)
			tree.Write("usr/share/lab/file", "2\n", 0o644)
		})
		v3 := derived(t, m, v2, func(tree *nspawn.Tree) {
			tree.Write("usr/etc/lab/one", "3\n", 0o644)
			tree.Write("usr/etc/lab/two", "3\n", 0o600)
			tree.Remove("usr/etc/lab/new")
			tree.Write("usr/etc/lab/dir", "a file now\n", 0o644)
			tree.Symlink("3", "usr/etc/lab/link")
			tree.Chmod("usr/etc/lab", 0o711)
			tree.Remove("usr/share/lab")
		})
		m.Run("useradd", "local")
		before, times := factsOf(t, m), timesOfEtc(m)

		for _, commit := range []string{v2, v3} {
			apply(t, m, commit)
			requireUsrIs(t, m, commit)
			equal(t, "mounts on /usr", len(m.MountsAt("/usr")), 2)
			s := status(t, m)
			equal(t, "live commit", s.Live, commit)
			equal(t, "commit under way", s.Target, "")
		}
		equal(t, "/etc/lab/one", m.Read("/etc/lab/one"), "3\n")

		reset(t, m)
		requireSame(t, m, before)
		if diff := lineDiff(times, timesOfEtc(m)); diff != "" {
			t.Errorf("times or inodes of /etc are not as before:\n%s", diff)
		}
	})
}

// timesOfEtc has a line for everything in /etc: its path, when its content changed, and a file's inode.
func timesOfEtc(m *nspawn.Machine) []string {
	return strings.Split(m.Run("find", "/etc", "-type", "d", "-printf", `%p %T+\n`, "-or", "-printf", `%p %T+ %i\n`), "\n")
}

func lastTransaction(t *testing.T, m *nspawn.Machine) transaction {
	t.Helper()
	all := history(t, m)
	if len(all) == 0 {
		t.Fatal("the history is empty")
	}
	return all[len(all)-1]
}

// systemctl isolate stops each unit that the target does not want, unless the unit says otherwise.
func TestIsolatedTargetKeepsWhatIsLive(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := productMachine(t, suite, nspawn.Options{})
		v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/etc/issue", "version 2\n", 0o644) })
		issue := m.Read("/etc/issue")
		apply(t, m, v2)
		for _, target := range []string{"rescue.target", "multi-user.target"} {
			m.Run("systemctl", "isolate", target)
			requireUsrIs(t, m, v2)
			equal(t, "/etc/issue in "+target, m.Read("/etc/issue"), "version 2\n")
			for _, unit := range []string{"liveapply-etc-revert.service", "liveapply-recover.path", "liveapply.target"} {
				equal(t, unit+" in "+target, m.Try("systemctl", "is-active", unit).Stdout, "active")
			}
		}
		requireSays(t, "ostree admin status", m.Run("ostree", "admin", "status"), []string{v2, "(staged)"})
		reset(t, m)
		equal(t, "/etc/issue", m.Read("/etc/issue"), issue)
	})
}
