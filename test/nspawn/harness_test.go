//go:build nspawn

package nspawn_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// lab is shared by all tests of the package; TestMain opens it.
var lab *nspawn.Lab

func TestMain(m *testing.M) {
	os.Exit(nspawn.RunAll(m, nspawn.Open, &lab))
}

var suites = []nspawn.Suite{nspawn.Trixie, nspawn.Bookworm}

// machine returns a machine that runs the minimal image of a suite, without the project.
func machine(t *testing.T, suite nspawn.Suite, options nspawn.Options) (m *nspawn.Machine, commit string) {
	t.Helper()
	commit = lab.Base(t, suite, nspawn.Minimal)
	m = lab.Machine(t, commit, options)
	m.Boot()
	return m, commit
}

// eachSuite runs a test on every suite.
func eachSuite(t *testing.T, test func(t *testing.T, suite nspawn.Suite)) {
	for _, suite := range suites {
		t.Run(string(suite), func(t *testing.T) {
			t.Parallel()
			test(t, suite)
		})
	}
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestMachineBootsLikeARealOne(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, commit := machine(t, suite, nspawn.Options{KernelArgs: []string{"test.argument=1"}})
		equal(t, "system state", m.Try("systemctl", "is-system-running").Stdout, "running")
		equal(t, "booted commit", m.BootedCommit(), commit)
		if !m.Exists("/run/ostree-booted") {
			t.Error("there is no /run/ostree-booted")
		}
		for _, cmdline := range []string{"/proc/cmdline", "/proc/1/cmdline"} {
			if !strings.Contains(m.Read(cmdline), "test.argument=1") {
				t.Errorf("%s is %q", cmdline, m.Read(cmdline))
			}
		}
		for path, writable := range map[string]bool{"/usr": false, "/sysroot": false, "/etc": true, "/var": true} {
			equal(t, path+" is writable", m.Try("test", "-w", path).Code == 0, writable)
			equal(t, "mounts at "+path, len(m.MountsAt(path)), 1)
		}
		equal(t, "network interfaces", m.Run("ls", "/sys/class/net"), "lo")
	})
}

func TestUsrShowsTheCommit(t *testing.T) {
	t.Parallel()
	m, commit := machine(t, nspawn.Trixie, nspawn.Options{})
	want := snapshot(t, lab.Checkout(t, commit)+"/usr")
	if len(want) < 5000 {
		t.Fatalf("the commit has only %d paths in /usr", len(want))
	}
	if diff := nspawn.Diff(want, m.Snapshot("/usr")); diff != "" {
		t.Errorf("/usr is not what the commit holds:\n%s", diff)
	}
}

func TestStagedCommitIsBootedNext(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := machine(t, suite, nspawn.Options{})
		v2 := lab.Derive(t, v1, func(tree *nspawn.Tree) {
			tree.Write("usr/share/release", "2\n", 0o644)
			tree.Write("usr/etc/new-default", "2\n", 0o644)
			tree.Write("usr/etc/issue", "two\n", 0o644)
		})
		m.Pull(v2)
		m.Stage(v2)
		m.Write("/etc/local", "mine\n")
		m.Reboot()

		equal(t, "booted commit", m.BootedCommit(), v2)
		equal(t, "/usr/share/release", m.Read("/usr/share/release"), "2\n")
		equal(t, "/etc/new-default", m.Read("/etc/new-default"), "2\n")
		equal(t, "/etc/issue", m.Read("/etc/issue"), "two\n")
		equal(t, "/etc/local", m.Read("/etc/local"), "mine\n")
	})
}

// The image itself works: what a live apply of it fails to bring is then the live apply's fault.
func TestServersServeAfterAReboot(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, _ := machine(t, suite, nspawn.Options{})
		servers := lab.Base(t, suite, nspawn.Servers)
		m.Pull(servers)
		m.Stage(servers)
		m.Reboot()

		equal(t, "system state", m.Try("systemctl", "is-system-running").Stdout, "running")
		if page := m.Run("curl", "--silent", "--fail", "http://localhost/"); !strings.Contains(page, "Welcome to nginx") {
			t.Errorf("nginx serves %q", page)
		}
		m.Run("systemctl", "start", "postgresql")
		equal(t, "answer of PostgreSQL", m.Run("runuser", "-u", "postgres", "--", "psql", "-tAc", "SELECT 6 * 7"), "42")
	})
}

func TestPowerCutKeepsWhatIsOnDisk(t *testing.T) {
	t.Parallel()
	m, v1 := machine(t, nspawn.Trixie, nspawn.Options{})
	v2 := lab.Derive(t, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/release", "2\n", 0o644) })
	m.Pull(v2)
	m.Stage(v2)
	m.Write("/etc/local", "mine\n")
	m.Write("/run/volatile", "gone\n")
	m.PowerCut()
	m.Boot()

	equal(t, "booted commit", m.BootedCommit(), v1)
	equal(t, "/etc/local", m.Read("/etc/local"), "mine\n")
	equal(t, "/run/volatile is there", m.Exists("/run/volatile"), false)
	equal(t, "system state", m.Try("systemctl", "is-system-running").Stdout, "running")
}

func TestPowerOffAndOn(t *testing.T) {
	t.Parallel()
	m, v1 := machine(t, nspawn.Trixie, nspawn.Options{})
	m.PowerOff()
	m.Boot()
	equal(t, "booted commit", m.BootedCommit(), v1)
}

func TestPeerGroupOfUsr(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%v", shared), func(t *testing.T) {
			m, _ := machine(t, nspawn.Trixie, nspawn.Options{UsrInPeerGroupOfRoot: shared})
			root, usr := m.MountsAt("/"), m.MountsAt("/usr")
			if len(root) != 1 || len(usr) != 1 {
				t.Fatalf("%d mounts at / and %d at /usr, want one each", len(root), len(usr))
			}
			equal(t, "/usr is in the peer group of /", usr[0].Optional == root[0].Optional, shared)
			if !strings.HasPrefix(usr[0].Optional, "shared:") {
				t.Errorf("/usr is not shared: %q", usr[0].Optional)
			}
			if !strings.HasPrefix(usr[0].Options, "ro") {
				t.Errorf("/usr is not read-only: %q", usr[0].Options)
			}
		})
	}
}

func TestSysrootIsWritableWhereAskedFor(t *testing.T) {
	t.Parallel()
	m, _ := machine(t, nspawn.Trixie, nspawn.Options{WritableSysroot: true})
	equal(t, "/sysroot is writable", m.Try("test", "-w", "/sysroot").Code == 0, true)
}

func TestDerivedCommitHoldsTheEdits(t *testing.T) {
	t.Parallel()
	v1 := lab.Base(t, nspawn.Trixie, nspawn.Minimal)
	v2 := lab.Derive(t, v1, func(tree *nspawn.Tree) {
		tree.Write("usr/share/new/file with space", "new", 0o4755)
		tree.Symlink("nowhere", "usr/share/link")
		tree.Mkdir("usr/share/empty", 0o2750)
		tree.Setxattr("usr/share/empty", "user.test", []byte("on a directory"))
		tree.Setxattr("usr/bin/true", "user.test", []byte("on a file"))
		tree.Chmod("usr/bin/false", 0o700)
		tree.Chown("usr/share/link", 3, 4)
		tree.Remove("usr/share/common-licenses")
		tree.Rename("usr/bin/cp", "usr/bin/cp2")
	})
	before, after := snapshot(t, lab.Checkout(t, v1)), snapshot(t, lab.Checkout(t, v2))

	// The commit that the edit began with is as it was.
	equal(t, "true in v1", before["usr/bin/true"].Xattrs, "")
	equal(t, "false in v1", before["usr/bin/false"].Mode, 0o100755)

	equal(t, "mode of the new file", after["usr/share/new/file with space"].Mode, 0o104755)
	equal(t, "target of the link", after["usr/share/link"].Target, "nowhere")
	equal(t, "owner of the link", after["usr/share/link"].UID, 3)
	equal(t, "mode of the directory", after["usr/share/empty"].Mode, 0o042750)
	equal(t, "xattr of the directory", after["usr/share/empty"].Xattrs, `user.test="on a directory"`)
	equal(t, "xattr of the file", after["usr/bin/true"].Xattrs, `user.test="on a file"`)
	equal(t, "content of the file with the xattr", after["usr/bin/true"].SHA256, before["usr/bin/true"].SHA256)
	equal(t, "mode of the changed file", after["usr/bin/false"].Mode, 0o100700)
	equal(t, "renamed file", after["usr/bin/cp2"], before["usr/bin/cp"])
	for _, gone := range []string{"usr/share/common-licenses", "usr/bin/cp"} {
		if _, ok := after[gone]; ok {
			t.Errorf("%s is still there", gone)
		}
	}
	rest := []string{"usr/share/new", "usr/share/link", "usr/share/empty", "usr/share/common-licenses",
		"usr/bin/true", "usr/bin/false", "usr/bin/cp", "usr/bin/cp2"}
	if diff := nspawn.Diff(before.Without(rest...), after.Without(rest...)); diff != "" {
		t.Errorf("other paths differ:\n%s", diff)
	}
}

func TestDiffNamesEveryDifference(t *testing.T) {
	t.Parallel()
	file := nspawn.Entry{Mode: 0o100644, SHA256: "aa"}
	got := nspawn.Diff(
		nspawn.Snapshot{"same": file, "changed": file, "missing": file},
		nspawn.Snapshot{"same": file, "changed": nspawn.Entry{Mode: 0o100600, SHA256: "aa"}, "extra": file})
	for _, name := range []string{"changed", "missing", "extra"} {
		if !strings.Contains(got, name) {
			t.Errorf("%q is not in the difference:\n%s", name, got)
		}
	}
	equal(t, "lines about what is the same", strings.Count(got, "same"), 0)
}

func snapshot(t *testing.T, dir string) nspawn.Snapshot {
	t.Helper()
	s, err := nspawn.TakeSnapshot(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A process in the background is what a test watches the machine with while a commit is applied.
func TestProcessInTheBackground(t *testing.T) {
	t.Parallel()
	m, _ := machine(t, nspawn.Trixie, nspawn.Options{})
	p := m.Start("sh", "-c", "trap 'echo stopped; exit' TERM; echo started; sleep infinity & wait")
	waitFor(t, "it to start", func() bool { return p.Output() != "" })
	equal(t, "output", p.Stop(), "started\nstopped\n")
	equal(t, "exit status", m.Try("sh", "-c", "echo out; echo err >&2; exit 3"), nspawn.Result{Stdout: "out", Stderr: "err", Code: 3})
}
