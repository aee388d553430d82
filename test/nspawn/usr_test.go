//go:build nspawn

package nspawn_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
	"github.com/liveapply/liveapply/test/nspawn"
)

func TestUsrIsTheTargetsTree(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		before, after := ostreetest.Written()
		after["usr"] = ostreetest.Node{Mode: os.ModeDir | 0o751, UID: 3, GID: 4, Xattrs: map[string]string{"user.usr": "itself"}}
		v1 := lab.Derive(t, product(t, suite), func(tree *nspawn.Tree) { put(t, tree, before) })
		v2 := lab.Derive(t, product(t, suite), func(tree *nspawn.Tree) { put(t, tree, after) })
		v3 := lab.Derive(t, v2, func(tree *nspawn.Tree) {
			for _, name := range []string{"usr/many", "usr/names", "usr/deep", "usr/setuid"} {
				tree.Remove(name)
			}
			tree.Write("usr/many", "no longer a directory", 0o644)
		})
		v4 := lab.Derive(t, v1, func(*nspawn.Tree) {}) // as booted
		v5 := lab.Derive(t, v2, func(*nspawn.Tree) {})
		m := lab.Machine(t, v1, nspawn.Options{})
		m.Boot()
		makeTransient(m)
		targets := map[nspawn.Suite][]string{nspawn.Trixie: {v2, v3, v4, v5}, nspawn.Bookworm: {v2, v4}}
		for _, target := range targets[suite] {
			m.Pull(target)
			apply(t, m, target)
			requireUsrIs(t, m, target)
		}
		reset(t, m)
		requireUsrIs(t, m, v1)
	})
}

// The trees come one after the other on the same machine, as updates do.
func TestUsrIsTheTargetsTreeForAnyTree(t *testing.T) {
	t.Parallel()
	if err := flag.Set("rapid.checks", "12"); err != nil {
		t.Fatal(err)
	}
	var trees slots
	base := product(t, nspawn.Trixie)
	commit := func(t *testing.T) string {
		return lab.Derive(t, base, func(tree *nspawn.Tree) { put(t, tree, trees.spec()) })
	}
	booted := rapid.Custom(drawSlots).Example(1)
	trees = booted
	v1 := commit(t)
	m := lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	makeTransient(m)
	rapid.Check(t, func(r *rapid.T) {
		trees = drawNext(r, trees, booted)
		isReset := rapid.IntRange(0, 3).Draw(r, "reset") == 0
		t.Run("", func(t *testing.T) {
			m := m.For(t)
			target := commit(t)
			if target == status(t, m).Booted {
				return
			}
			m.Pull(target)
			apply(t, m, target)
			requireUsrIs(t, m, target)
			if isReset {
				reset(t, m)
				requireUsrIs(t, m, v1)
			}
			if t.Failed() {
				r.Errorf("/usr is not as the target's")
			}
		})
	})
}

// slots are a generated tree in parts, so that two trees can have some of them in common.
type slots [12]ostreetest.Spec

func (s slots) spec() ostreetest.Spec {
	all := ostreetest.Spec{"usr/generated": ostreetest.Dir()}
	for _, part := range s {
		maps.Copy(all, part)
	}
	return all
}

func drawSlots(r *rapid.T) slots {
	var s slots
	for i := range s {
		s[i] = drawSlot(r, i)
	}
	return s
}

// drawNext changes some parts of a tree; a part that the booted tree has may come back.
func drawNext(r *rapid.T, now, booted slots) slots {
	for i := range now {
		switch rapid.IntRange(0, 4).Draw(r, "part") {
		case 0, 1:
			now[i] = drawSlot(r, i)
		case 2:
			now[i] = booted[i]
		}
	}
	return now
}

func drawSlot(r *rapid.T, i int) ostreetest.Spec {
	spec := ostreetest.Spec{}
	drawNode(r, spec, fmt.Sprintf("usr/generated/%d", i), 4)
	return spec
}

// drawNode adds what is at a path, if anything. There are few values of each kind, so that equal ones meet.
func drawNode(r *rapid.T, spec ostreetest.Spec, path string, depth int) {
	node := ostreetest.Node{UID: rapid.IntRange(0, 1).Draw(r, "uid")}
	if rapid.IntRange(0, 4).Draw(r, "xattr") == 0 {
		node.Xattrs = map[string]string{"user.x": "1"}
	}
	switch kind := rapid.IntRange(0, 6).Draw(r, "kind"); {
	case kind == 0:
		return
	case kind == 1:
		node.Mode, node.Xattrs = os.ModeSymlink|0o777, nil
		node.Content = rapid.SampledFrom([]string{"a", "b", "/usr"}).Draw(r, "target")
	case kind <= 3 || depth == 0:
		node.Mode = rapid.SampledFrom([]os.FileMode{0o644, 0o755, 0o755 | os.ModeSetuid}).Draw(r, "mode")
		node.Content = rapid.SampledFrom([]string{"", "1", "2"}).Draw(r, "content")
	default:
		node.Mode = os.ModeDir | rapid.SampledFrom([]os.FileMode{0o755, 0o700, 0o777 | os.ModeSticky}).Draw(r, "mode")
		for _, name := range []string{"a", "b", "a b", "ä\n"} {
			drawNode(r, spec, path+"/"+name, depth-1)
		}
	}
	spec[path] = node
}

func TestModulesOfTheRunningKernelStay(t *testing.T) {
	t.Parallel()
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		t.Fatal(err)
	}
	modules := "usr/lib/modules/" + unix.ByteSliceToString(uname.Release[:])
	const next = "usr/lib/modules/99.1-next"
	v1 := lab.Derive(t, product(t, nspawn.Trixie), func(tree *nspawn.Tree) {
		tree.Write(modules+"/kernel/drivers/one.ko", "one", 0o644)
	})
	v2 := lab.Derive(t, v1, func(tree *nspawn.Tree) {
		tree.Rename(modules, next)
		tree.Write(next+"/kernel/drivers/two.ko", "two", 0o644)
	})
	m := lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	m.Pull(v2)
	// Built anew with the same release, it is not live, but there after a reboot.
	rebuilt := derived(t, m, v1, func(tree *nspawn.Tree) {
		tree.Write(modules+"/kernel/drivers/one.ko", "one, rebuilt", 0o644)
		tree.Write(modules+"/initramfs.img", "rebuilt", 0o644)
	})
	apply(t, m, rebuilt)
	requireTree(t, "/usr", m.Snapshot("/usr"), treeOf(t, v1))
	equal(t, "what a reboot is required for", fmt.Sprint(status(t, m).RebootRequired), "[initramfs kernel]")
	apply(t, m, v2)

	want := treeOf(t, v2)
	booted := treeOf(t, v1)
	kept, _ := filepath.Rel("usr", modules)
	for path, entry := range booted {
		if path == kept || strings.HasPrefix(path, kept+"/") {
			want[path] = entry
		}
	}
	requireTree(t, "/usr", m.Snapshot("/usr"), want)
	if reasons := status(t, m).RebootRequired; !slices.Contains(reasons, "kernel") {
		t.Errorf("a reboot is required for %q, want kernel among it", reasons)
	}
	reset(t, m)
	requireTree(t, "/usr", m.Snapshot("/usr"), booted)
}

// While the machine is switched a hundred times, other processes read what all trees have: a file that changes, one that does not, one in
// a directory that is replaced, one in a directory that changes its mode, and one on another filesystem.
func TestReadersSeeOneTreeOrTheOther(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	version := func(name string) string {
		return derived(t, m, v1, func(tree *nspawn.Tree) {
			tree.Write("usr/share/watched/version", name, 0o644)
			tree.Write("usr/share/watched/same", "same", 0o644)
			tree.Write("usr/share/watched/only-in-"+name, name, 0o644)
			tree.Write("usr/share/watched/replaced/"+name+"/file", name, 0o644)
			tree.Symlink(name, "usr/share/watched/replaced/current")
			tree.Write("usr/share/watched/moded/file", "same", 0o644)
			if name == "a" {
				tree.Chmod("usr/share/watched/moded", 0o700)
			}
			if name == "b" {
				tree.Remove("usr/share/common-licenses")
			}
		})
	}
	commits := map[string]string{"a": version("a"), "b": version("b")}
	makeTransient(m)
	m.Run("mount", "-t", "tmpfs", "tmpfs", "/usr/local")
	m.Write("/usr/local/file", "on another filesystem")
	step := func(number int, before, after string) {
		tellWitnesses(t, m, fmt.Sprintf("%d %s %s", number, before, after))
	}
	apply(t, m, commits["a"])
	step(0, "a", "a")
	witness := installWitness(t, m)
	var readers []*nspawn.Process
	for range 3 {
		reader := m.Start("nice", witness, "watch", witnessStep, "/usr/share/watched/version",
			"/usr/share/watched/same", "/usr/share/watched/replaced/current/file", "/usr/share/watched/moded/file",
			"/usr/bin/ls", "/usr/lib/os-release", "/usr/local/file")
		waitUntilReady(t, reader)
		readers = append(readers, reader)
	}
	now := "a"
	for i := range 100 {
		next := string("ab"[(i+1)%2])
		step(2*i+1, now, next)
		apply(t, m, commits[next])
		now = next
		step(2*i+2, now, now)
	}
	tellWitnesses(t, m, "stop")
	for _, reader := range readers {
		requireSaw(t, reader, 2)
	}
}

func TestMountStackDoesNotGrow(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	before := factsOf(t, m)
	target := v1
	var tables []string
	for i := range 4 {
		target = derived(t, m, target, func(tree *nspawn.Tree) { tree.Write("usr/share/number", fmt.Sprint(i), 0o644) })
		apply(t, m, target)
		equal(t, "mounts on /usr", len(m.MountsAt("/usr")), 2)
		tables = append(tables, strings.ReplaceAll(mountTable(m), target, "COMMIT"))
	}
	for _, table := range tables[1:] {
		if diff := lineDiff(withoutPeers(tables[0]), withoutPeers(table)); diff != "" {
			t.Errorf("the mount table is not as after the first application:\n%s", diff)
		}
	}
	equal(t, "source of the mount on /usr", m.Run("findmnt", "--noheadings", "--first-only", "--direction=backward", "--output=SOURCE", "/usr"), "liveapply:"+target)
	reset(t, m)
	requireSame(t, m, before)
}

// withoutPeers takes the numbers of peer groups out of a mount table, and gives its lines.
func withoutPeers(table string) []string {
	return strings.Split(regexp.MustCompile("(shared|master):[0-9]+").ReplaceAllString(table, "$1"), "\n")
}

// The kernel cannot mount beneath there: what is live goes on top each time, and all of it away at reset.
func TestUsrInThePeerGroupOfItsParent(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := productMachine(t, suite, nspawn.Options{UsrInPeerGroupOfRoot: true})
		m.Run("mount", "-t", "tmpfs", "tmpfs", "/usr/local")
		m.Write("/usr/local/file", "content")
		before := factsOf(t, m)
		target := v1
		for i := range 2 {
			target = derived(t, m, target, func(tree *nspawn.Tree) { tree.Write("usr/share/number", fmt.Sprint(i), 0o644) })
			apply(t, m, target)
			requireTree(t, "/usr", m.Snapshot("/usr").Without("local"), treeOf(t, target).Without("local"))
			equal(t, "/usr/local/file", m.Read("/usr/local/file"), "content")
		}
		reset(t, m)
		requireSame(t, m, before)
	})
}

// Services in mount namespaces of their own are told by propagation.
func TestSandboxedServicesSeeTheNewTree(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%v", shared), func(t *testing.T) {
			m, base := productMachine(t, nspawn.Trixie, nspawn.Options{UsrInPeerGroupOfRoot: shared})
			numbered := func(number string) string {
				return derived(t, m, base, func(tree *nspawn.Tree) { tree.Write("usr/share/version", number+"\n", 0o644) })
			}
			v1, v2 := numbered("1"), numbered("2")
			services := map[string][]string{
				"strict":  {"ProtectSystem=strict"},
				"private": {"PrivateTmp=yes"},
				"both":    {"ProtectSystem=strict", "PrivateTmp=yes", "ProtectHome=yes", "PrivateDevices=yes"},
			}
			apply(t, m, v1)
			for name, properties := range services {
				args := []string{"--unit=" + name, "--property=StandardOutput=truncate:/run/" + name}
				for _, property := range properties {
					args = append(args, "--property="+property)
				}
				m.Run("systemd-run", append(args, "/bin/sh", "-c",
					"while :; do if read version </usr/share/version; then echo $version; else echo none; fi; sleep 0.02; done")...)
			}
			sees := func(name, version string) bool {
				return strings.HasSuffix(strings.TrimSpace(m.Read("/run/"+name)), version)
			}
			for name := range services {
				waitFor(t, name+" to see 1", func() bool { return m.Exists("/run/"+name) && sees(name, "1") })
			}
			apply(t, m, v2)
			for name := range services {
				waitFor(t, name+" to see 2", func() bool { return sees(name, "2") })
			}
			reset(t, m)
			for name := range services {
				waitFor(t, name+" to see the booted tree", func() bool { return sees(name, "none") })
			}
		})
	}
}

// A service that has mounts of its own below /usr, and was started while a tree is live, keeps that tree: the kernel does not take a mount away
// that has others on it. What it sees is whole all the same, for as long as it runs.
func TestServiceWithMountsOfItsOwnBelowUsrKeepsAWholeTree(t *testing.T) {
	t.Parallel()
	m, base := productMachine(t, nspawn.Trixie, nspawn.Options{})
	numbered := func(number string) string {
		return derived(t, m, base, func(tree *nspawn.Tree) {
			for i := range 100 {
				tree.Write(fmt.Sprintf("usr/share/numbered/%d", i), number+"\n", 0o644)
			}
		})
	}
	v1, v2 := numbered("1"), numbered("2")
	apply(t, m, v1)
	m.Run("systemd-run", "--unit=sandboxed", "--service-type=exec", "--property=ProtectKernelModules=yes", "sleep", "infinity")
	seen := func() nspawn.Snapshot {
		pid := m.Run("systemctl", "show", "--property=MainPID", "--value", "sandboxed.service")
		return m.Snapshot("/proc/" + pid + "/root/usr").Without("lib/modules")
	}
	want := treeOf(t, v1).Without("lib/modules")
	requireTree(t, "/usr of the service", seen(), want)
	apply(t, m, v2)
	requireTree(t, "/usr of the service after the next application", seen(), want)
	reset(t, m)
	requireTree(t, "/usr of the service after a reset", seen(), want)
	m.Run("systemctl", "restart", "sandboxed.service")
	requireTree(t, "/usr of the service after a restart", seen(), treeOf(t, base).Without("lib/modules"))
}

func TestProcessesKeepTheTreeTheyRunOn(t *testing.T) {
	t.Parallel()
	m, base := productMachine(t, nspawn.Trixie, nspawn.Options{})
	numbered := func(number string) string {
		return derived(t, m, base, func(tree *nspawn.Tree) {
			tree.Remove("usr/share/common-licenses")
			tree.Write("usr/share/held/version", number, 0o644)
		})
	}
	v1, v2, v3 := numbered("1"), numbered("2"), numbered("3")
	witness := installWitness(t, m)
	apply(t, m, v1)
	program := m.Start("/usr/bin/sleep", "infinity")
	first := m.Start(witness, "hold", "/usr/share/held")
	waitUntilReady(t, first)
	apply(t, m, v2)
	second := m.Start(witness, "hold", "/usr/share/held")
	waitUntilReady(t, second)
	apply(t, m, v3)
	equal(t, "what the first holds", first.Stop(), "ready\nopen 1 mapped 1 directory 1 path 3\n")
	reset(t, m)
	apply(t, m, v3)
	equal(t, "what the second holds", second.Stop(), "ready\nopen 2 mapped 2 directory 2 path 3\n")
	equal(t, "output of the program", program.Stop(), "")
}
