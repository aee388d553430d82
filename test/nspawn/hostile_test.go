//go:build nspawn

package nspawn_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/test/nspawn"
)

// canary is a directory outside /usr and /etc with files of all names that the cases below write.
const canary = "/var/canary"

func putCanaries(m *nspawn.Machine) {
	for _, dir := range []string{canary, canary + "/sub", "/root/sub", "/root/sub/sub"} {
		m.Run("mkdir", dir)
		for _, name := range []string{"child", "other", "new"} {
			m.Write(dir+"/"+name, "canary\n")
		}
	}
}

// elsewhere records what is neither /usr nor /etc, nor liveapply's own, nor what services write at any time. Those that write at a certain time, as at
// midnight into /var/backups, do not from now on.
func elsewhere(m *nspawn.Machine) nspawn.Snapshot {
	m.Run("systemctl", "stop", "*.timer")
	all := nspawn.Snapshot{}
	for _, dir := range []string{"/var", "/boot", "/sysroot/boot"} {
		for path, entry := range m.Snapshot(dir) {
			all[filepath.Join(dir, path)] = entry
		}
	}
	const deployments = "/sysroot/ostree/deploy/debian/deploy"
	for _, dir := range []string{"/", "/sysroot", "/sysroot/ostree", deployments, filepath.Join(deployments, m.BootedCommit()+".0")} {
		for _, name := range strings.Fields(m.Run("ls", "-A", dir)) {
			all[filepath.Join(dir, name)] = nspawn.Entry{}
		}
	}
	return all.Without("/var/log", "/var/lib/systemd", "/var/lib/liveapply")
}

// hostility is something in a tree, or in /etc, that leads out of it. All of it is at a path of its own.
type hostility struct {
	name   string
	before func(tree *nspawn.Tree, path string)               // in the booted commit
	local  func(t *testing.T, m *nspawn.Machine, path string) // what the administrator does, if anything
	after  func(tree *nspawn.Tree, path string)               // in the target
	says   []string                                           // why it is refused; it is applied if empty
}

func (h hostility) path() string { return "hostile/" + strings.ReplaceAll(h.name, " ", "-") }

func symlinkTo(target string) func(*nspawn.Tree, string) {
	return func(tree *nspawn.Tree, path string) { tree.Symlink(target, path) }
}

// fullDirectory has the names that the canaries have.
func fullDirectory(tree *nspawn.Tree, path string) {
	for _, dir := range []string{path, path + "/sub"} {
		for _, name := range []string{"child", "new"} {
			tree.Write(dir+"/"+name, "from the target\n", 0o640)
		}
	}
}

func twoDirectories(tree *nspawn.Tree, path string) {
	for _, dir := range []string{path, path + "/sub"} {
		for _, name := range []string{"child", "other"} {
			tree.Write(dir+"/"+name, "old\n", 0o644)
		}
	}
}

// changedDirectories changes a child, adds one, and removes one, in twoDirectories.
func changedDirectories(tree *nspawn.Tree, path string) {
	fullDirectory(tree, path)
	tree.Remove(path + "/other")
	tree.Remove(path + "/sub/other")
}

// becomesDirectory takes the link away first, so as not to write through it.
func becomesDirectory(tree *nspawn.Tree, path string) {
	tree.Remove(path)
	fullDirectory(tree, path)
}

// replacedByLink is an administrator's link in the place of a directory.
func replacedByLink(target string) func(*testing.T, *nspawn.Machine, string) {
	return func(_ *testing.T, m *nspawn.Machine, path string) {
		m.Run("rm", "-r", path)
		m.Run("ln", "-s", target, path)
	}
}

// replacedByNodes puts a fifo, a device and a socket where defaults are, and where new ones arrive.
func replacedByNodes(t *testing.T, m *nspawn.Machine, path string) {
	t.Helper()
	m.Run("sh", "-ec", "cd "+path+"; rm child other sub/child; mkfifo child new; mknod other c 1 3; mknod sub/child b 7 99; mknod sub/fifo p")
	dir, err := os.Open(m.Path(path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// The name of a socket has 107 bytes.
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/sub/new", dir.Fd())}); err != nil {
		t.Fatal(err)
	}
}

// longName is the longest name that a file can have.
var longName = strings.Repeat("n", 255)

// deepPath is as long as a path may be where it is longest: below a layer, below /proc.
func deepPath(name string) string { return strings.Repeat("/"+name, 3500/(len(name)+1)) }

var hostilities = []hostility{
	{name: "directory becomes link out", before: twoDirectories, after: symlinkTo(canary)},
	{name: "directory becomes link up", before: twoDirectories, after: symlinkTo("../../../../.." + canary)},
	{name: "directory becomes link to root", before: twoDirectories, after: symlinkTo("/")},
	{name: "file in directory becomes link out", before: twoDirectories,
		after: func(tree *nspawn.Tree, path string) { tree.Symlink(canary+"/child", path+"/child") }},
	{name: "link out becomes directory", before: symlinkTo(canary), after: becomesDirectory},
	{name: "link up becomes directory", before: symlinkTo("../../.." + canary), after: becomesDirectory},
	{name: "link to file becomes file", before: symlinkTo(canary + "/child"),
		after: func(tree *nspawn.Tree, path string) { tree.Write(path, "from the target\n", 0o600) }},
	{name: "links to links", before: symlinkTo("links-to-links"), after: becomesDirectory},

	{name: "local link out", before: twoDirectories, local: replacedByLink(canary), after: changedDirectories, says: []string{"local-link-out"}},
	{name: "local link up", before: twoDirectories, local: replacedByLink("../.." + canary), after: changedDirectories, says: []string{"local-link-up"}},
	{name: "local link to root", local: replacedByLink("/"), says: []string{"local-link-to-root"},
		before: func(tree *nspawn.Tree, path string) { twoDirectories(tree, path+canary) },
		after:  func(tree *nspawn.Tree, path string) { changedDirectories(tree, path+canary) }},
	{name: "local link to a directory in etc", before: twoDirectories, local: replacedByLink("links-to-links"), after: changedDirectories,
		says: []string{"local-link-to-a-directory-in-etc"}},
	{name: "local link to itself", before: twoDirectories, local: replacedByLink("local-link-to-itself"), after: changedDirectories,
		says: []string{"local-link-to-itself"}},
	{name: "local link to nothing", before: twoDirectories, local: replacedByLink("nothing"), after: changedDirectories, says: []string{"local-link-to-nothing"}},
	{name: "local link below", before: twoDirectories, after: changedDirectories, says: []string{"local-link-below/sub"},
		local: func(t *testing.T, m *nspawn.Machine, path string) { replacedByLink(canary)(t, m, path+"/sub") }},

	{name: "local fifos and devices", before: twoDirectories, local: replacedByNodes, after: changedDirectories},
	{name: "long names", before: twoDirectories, after: func(tree *nspawn.Tree, path string) {
		tree.Write(path+"/"+longName, "new\n", 0o644)
		tree.Symlink(canary, path+"/sub/"+longName)
		tree.Write(path+"/dir/"+longName+"/"+longName, "new\n", 0o644)
	}},
	{name: "deep", before: func(tree *nspawn.Tree, path string) { tree.Write(path+deepPath(longName)+"/child", "old\n", 0o644) },
		after: func(tree *nspawn.Tree, path string) {
			tree.Write(path+deepPath(longName)+"/child", "new\n", 0o644)
			tree.Write(path+deepPath("deeper")+"/child", "new\n", 0o644)
		}},
}

// Whatever is in the commit or in /etc, nothing but /usr and /etc changes. (libostree itself commits no fifos and no devices.)
func TestNothingOutsideOfUsrAndEtcIsTouched(t *testing.T) {
	t.Parallel()
	v1 := lab.Derive(t, product(t, nspawn.Trixie), func(tree *nspawn.Tree) {
		for _, h := range hostilities {
			h.before(tree, "usr/etc/"+h.path())
			h.before(tree, "usr/share/"+h.path())
		}
	})
	m := lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	makeTransient(m) // libostree refuses at shutdown what it cannot merge, and a deployment is elsewhere
	putCanaries(m)
	for _, h := range hostilities {
		if h.local != nil {
			h.local(t, m, "/etc/"+h.path())
		}
	}
	before, outside := factsOf(t, m), elsewhere(m)
	target := func(t *testing.T, m *nspawn.Machine, hostilities ...hostility) string {
		return derived(t, m, v1, func(tree *nspawn.Tree) {
			for _, h := range hostilities {
				h.after(tree, "usr/etc/"+h.path())
				h.after(tree, "usr/share/"+h.path())
			}
		})
	}
	var harmless []hostility
	for _, h := range hostilities {
		if h.says == nil {
			harmless = append(harmless, h)
			continue
		}
		t.Run(h.name, func(t *testing.T) {
			m := m.For(t)
			result := m.Try("liveapplyctl", "apply", target(t, m, h))
			equal(t, "exit status", result.Code, exitRefused)
			requireSays(t, "liveapplyctl", result.Stderr, h.says)
			requireTree(t, "the rest of the system", elsewhere(m), outside)
			requireSame(t, m, before)
		})
	}
	t.Run("what goes", func(t *testing.T) {
		m := m.For(t)
		v2 := target(t, m, harmless...)
		apply(t, m, v2)
		requireUsrIs(t, m, v2)
		requireTree(t, "the rest of the system", elsewhere(m), outside)
		for _, h := range harmless {
			if h.local == nil {
				requireTree(t, "/etc/"+h.path(), m.Snapshot("/etc/"+h.path()), m.Snapshot("/usr/etc/"+h.path()))
			}
		}
		reset(t, m)
		requireTree(t, "the rest of the system", elsewhere(m), outside)
		requireSame(t, m, before)
	})
}

// A directory that becomes a link out of /etc when the phase etc is about to work in it, or when its changes are taken back.
func TestDirectoryThatBecomesALinkMeanwhile(t *testing.T) {
	t.Parallel()
	v1 := lab.Derive(t, product(t, nspawn.Trixie), func(tree *nspawn.Tree) { twoDirectories(tree, "usr/etc/hostile/link") })
	m := lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	makeTransient(m)
	putCanaries(m)
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) { changedDirectories(tree, "usr/etc/hostile/link") })
	const path = "/etc/hostile/link"
	restore := func(m *nspawn.Machine) { m.Run("sh", "-c", "rm -r "+path+"; cp -a /usr"+path+" "+path) }
	outside := elsewhere(m)

	t.Run("after prepare", func(t *testing.T) {
		m := m.For(t)
		holdAfter(t, m, "prepare", v2)
		replacedByLink(canary)(t, m, path)
		m.Write("/run/go", "")
		awaitEnd(m)
		removeDropIns(m)
		equal(t, "the link", m.Run("readlink", path), canary)
		requireTree(t, "the rest of the system", elsewhere(m), outside)
		reset(t, m)
		equal(t, "the link", m.Run("readlink", path), canary)
		requireTree(t, "the rest of the system", elsewhere(m), outside)
		restore(m)
	})
	for _, target := range []string{canary, "/root", "../../../var/canary", "link"} {
		t.Run("while live, to "+target, func(t *testing.T) {
			m := m.For(t)
			apply(t, m, v2)
			replacedByLink(target)(t, m, path)
			reset(t, m)
			equal(t, "the link", m.Run("readlink", path), target)
			requireTree(t, "the rest of the system", elsewhere(m), outside)
			requireNothingLeft(t, m)
			restore(m)
		})
	}
}

// mostMemory is what a phase may take for a hundred thousand changes, in MiB.
const mostMemory = 128

// A tenth of the changes are in /etc. In CI it is a fifth of them all.
func TestHundredThousandChanges(t *testing.T) {
	t.Parallel()
	changes := sampled(20_000, 100_000)
	v1 := product(t, nspawn.Trixie)
	many := func(tree *nspawn.Tree, dir string, n int) {
		for i := range n {
			path := fmt.Sprintf("%s/%d/%d", dir, i/1000, i)
			if i%1000 == 0 {
				tree.Mkdir(filepath.Dir(path), 0o755)
			}
			// Not more contents than an inode can have links.
			if err := os.WriteFile(tree.Path(path), []byte(strconv.Itoa(i%7)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	m := lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	makeTransient(m)
	putCanaries(m)
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) {
		many(tree, "usr/share/many", changes-changes/10)
		many(tree, "usr/etc/many", changes/10)
	})
	before, outside := factsOf(t, m), elsewhere(m)
	for _, phase := range []string{"prepare", "etc"} {
		measureMemory(m, phase)
	}
	apply(t, m, v2)
	removeDropIns(m)
	for _, phase := range []string{"prepare", "etc"} {
		requireLittleMemory(t, m, phase, changes)
	}
	requireUsrIs(t, m, v2)
	equal(t, "files in /etc/many", len(below(t, m, "/etc/many")), changes/10)
	reset(t, m)
	requireTree(t, "the rest of the system", elsewhere(m), outside)
	requireSame(t, m, before)
}

// measureMemory has a phase leave the most memory that it had, which the kernel tells as long as it is there: strace holds it back when it
// exits.
func measureMemory(m *nspawn.Machine, phase string) {
	m.Write("/run/measure", `strace -f --seccomp-bpf -o /dev/null -e trace=exit_group -e inject=exit_group:delay_enter=200ms "$2" "$1" "$3" &
until pid=$(pgrep --parent $! liveapply); do sleep 0.01; done
while grep VmHWM /proc/$pid/status >/run/peak-$1.new; do mv /run/peak-$1.new /run/peak-$1; sleep 0.02; done
wait $!
`)
	dropIn(m, "liveapply-"+phase+"@.service", "SystemCallFilter=\nExecStart=\nExecStart=/bin/sh /run/measure "+phase+" "+helper+" %I")
}

func requireLittleMemory(t *testing.T, m *nspawn.Machine, phase string, changes int) {
	t.Helper()
	var kib int
	if _, err := fmt.Sscanf(m.Read("/run/peak-"+phase), "VmHWM: %d kB", &kib); err != nil {
		t.Fatal(err)
	}
	t.Logf("the phase %s took %d MiB for %d changes", phase, kib>>10, changes)
	if kib>>10 > mostMemory {
		t.Errorf("the phase %s took %d MiB, want no more than %d", phase, kib>>10, mostMemory)
	}
}
