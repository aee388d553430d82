//go:build nspawn

package nspawn_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/test/nspawn"
)

// helperPath is where meson installs what the units start.
const helperPath = "/usr/libexec/liveapply/liveapply-helper"

// refusal is a commit that must not be applied, and what has to be said about it: what is wrong, and what to do.
type refusal struct {
	commit  string
	options []string // of liveapplyctl apply
	says    []string
}

// requireRefused asks for a commit in every way, and looks for changes.
func requireRefused(t *testing.T, m *nspawn.Machine, before facts, r refusal) {
	t.Helper()
	result := m.Try("liveapplyctl", append(append([]string{"apply"}, r.options...), r.commit)...)
	if result.Code != exitRefused && result.Code != exitFailed { // which is what liveapplyctl finds out by itself
		t.Errorf("exit status of liveapplyctl apply: %d", result.Code)
	}
	requireSays(t, "liveapplyctl apply", result.Stderr, r.says)
	if len(r.options) > 0 {
		requireSame(t, m, before)
		return
	}
	requireSameState(t, before, stateOf(t, m))
	unit := m.Run("systemd-escape", "--template=liveapply@.service", r.commit)
	recorded := len(history(t, m))
	result = m.Try("systemctl", "start", unit)
	if result.Code == 0 {
		t.Errorf("systemctl start %s succeeded", unit)
	}
	requireSays(t, "systemctl status", m.Try("systemctl", "status", "--full", "--no-pager", unit).Stdout, r.says)
	requireSays(t, "the journal", m.Journal("--unit="+unit, "--output=cat"), r.says)
	requireSame(t, m, before)
	if all := history(t, m); len(all) != recorded+1 || all[recorded].Result != "refused" {
		t.Errorf("the history has %d new lines, want one with the result refused: %+v", len(all)-recorded, all[recorded:])
	} else {
		requireSays(t, "the history", all[recorded].Reason, r.says)
	}
	stamped := status(t, m)
	equal(t, "target in the stamp", stamped.Target, "")
	equal(t, "phase in the stamp", stamped.Phase, "")
}

func requireSays(t *testing.T, who, text string, says []string) {
	t.Helper()
	for _, want := range says {
		if !strings.Contains(text, want) {
			t.Errorf("%s does not say %q, but:\n%s", who, want, text)
		}
	}
}

// hideObject renames an object away, and gives back a function that brings it back.
func hideObject(t *testing.T, m *nspawn.Machine, name string) (restore func()) {
	t.Helper()
	path := filepath.Join(m.Repo(), "objects", name[:2], name[2:])
	if err := os.Rename(path, path+".hidden"); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Rename(path+".hidden", path); err != nil {
			t.Fatal(err)
		}
	}
}

// objectsOf returns the checksums of what is at a path of a commit: a file; or the dirtree and the dirmeta of a directory.
func objectsOf(t *testing.T, m *nspawn.Machine, commit, path string) []string {
	t.Helper()
	output, err := exec.Command("ostree", "--repo="+m.Repo(), "ls", "--dironly", "--checksum", commit, path).Output()
	if err != nil {
		t.Fatalf("ostree ls %s %s: %v", commit, path, err)
	}
	// <mode> <uid> <gid> <size> <checksum>... <path>
	fields := strings.Fields(string(output))
	return fields[4 : len(fields)-1]
}

func TestDamagedRepoIsRefused(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	// A new one for each test: what has been looked at is not looked at again.
	target := func(t *testing.T) string {
		return derived(t, m, v1, func(tree *nspawn.Tree) {
			tree.Write("usr/share/refused/dir/file", t.Name(), 0o644)
			tree.Write("usr/share/refused/xx/file", "other", 0o644)
			tree.Chmod("usr/share/refused/dir", 0o2711)
		})
	}
	tests := []struct {
		name    string
		arrange func(t *testing.T, commit string) (refuse string, says []string, restore func())
	}{
		{"unknown commit", func(*testing.T, string) (string, []string, func()) {
			unknown := strings.Repeat("ab", 32)
			return unknown, []string{unknown, "is not in the OSTree repo", "ostree pull"}, func() {}
		}},
		{"unknown ref", func(*testing.T, string) (string, []string, func()) {
			return "no/such-ref", []string{"no/such-ref", "no such ref", "ostree pull"}, func() {}
		}},
		{"partial commit", func(t *testing.T, commit string) (string, []string, func()) {
			mark := filepath.Join(m.Repo(), "state", commit+".commitpartial")
			if err := os.WriteFile(mark, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			return commit, []string{commit, "only in part", "ostree pull"}, func() { os.Remove(mark) }
		}},
		{"flipped bit in a dirtree", func(t *testing.T, commit string) (string, []string, func()) {
			object := objectsOf(t, m, commit, "/usr/share/refused")[0] + ".dirtree"
			flip := func(data []byte) []byte { data[len(data)/2] ^= 4; return data }
			m.ReplaceObject(object, flip)
			return commit, []string{object, "is damaged", "ostree fsck"}, func() { m.ReplaceObject(object, flip) }
		}},
		{"missing dirtree", func(t *testing.T, commit string) (string, []string, func()) {
			object := objectsOf(t, m, commit, "/usr/share/refused/dir")[0] + ".dirtree"
			return commit, []string{object, "missing", "ostree pull"}, hideObject(t, m, object)
		}},
		{"missing dirmeta", func(t *testing.T, commit string) (string, []string, func()) {
			object := objectsOf(t, m, commit, "/usr/share/refused/dir")[1] + ".dirmeta"
			return commit, []string{object, "missing", "ostree pull"}, hideObject(t, m, object)
		}},
		{"missing file", func(t *testing.T, commit string) (string, []string, func()) {
			object := objectsOf(t, m, commit, "/usr/share/refused/dir/file")[0]
			return commit, []string{object, "missing", "ostree pull"}, hideObject(t, m, object+".file")
		}},
		{"changed content, if that is to be verified", func(t *testing.T, commit string) (string, []string, func()) {
			object := objectsOf(t, m, commit, "/usr/share/refused/dir/file")[0] + ".file"
			swap := func(data []byte) []byte { data[0] ^= 32; return data }
			m.ReplaceObject(object, swap)
			m.Run("mkdir", "--parents", "/etc/liveapply/liveapply.conf.d")
			m.Write("/etc/liveapply/liveapply.conf.d/verify.conf", "[Apply]\nVerifyContent=yes\n")
			return commit, []string{object, "/usr/share/refused/dir/file", "is damaged"}, func() {
				m.Run("rm", "/etc/liveapply/liveapply.conf.d/verify.conf")
				m.ReplaceObject(object, swap)
			}
		}},
		{"entry named ..", func(t *testing.T, commit string) (string, []string, func()) {
			return withParentEntry(t, m, commit), []string{`".."`}, func() {}
		}},
		{"archive repo", func(t *testing.T, commit string) (string, []string, func()) {
			return commit, []string{"archive-z2", "only a bare repo"}, setRepoMode(t, m, "archive-z2")
		}},
		{"bare-user repo", func(t *testing.T, commit string) (string, []string, func()) {
			return commit, []string{"bare-user", "only a bare repo"}, setRepoMode(t, m, "bare-user")
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := m.For(t)
			refuse, says, restore := test.arrange(t, target(t))
			defer restore()
			requireRefused(t, m, factsOf(t, m), refusal{commit: refuse, says: says})
		})
	}
	// None of it has lasting effects.
	good := target(t)
	apply(t, m, good)
	requireUsrIs(t, m, good)
}

// setRepoMode changes what the repo says of itself.
func setRepoMode(t *testing.T, m *nspawn.Machine, mode string) (restore func()) {
	t.Helper()
	path := filepath.Join(m.Repo(), "config")
	config, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	set := func(content []byte) {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	set(bytes.Replace(config, []byte("mode=bare\n"), []byte("mode="+mode+"\n"), 1))
	return func() { set(config) }
}

// withParentEntry makes a commit out of one whose /usr/share/refused has the directory xx, which is named ".." in the new one. No tool makes such a
// commit; an object's name is the checksum of its content, so each one from there to the commit is new.
func withParentEntry(t *testing.T, m *nspawn.Machine, commit string) string {
	t.Helper()
	old, edit := "xx\x00", "..\x00"
	for _, dir := range []string{"/usr/share/refused", "/usr/share", "/usr", "/"} {
		object := objectsOf(t, m, commit, dir)[0]
		renamed := copyObject(t, m, object+".dirtree", old, edit)
		old, edit = object, renamed
		if decoded, err := hex.DecodeString(old); err == nil {
			replacement, _ := hex.DecodeString(edit)
			old, edit = string(decoded), string(replacement)
		}
	}
	return copyObject(t, m, commit+".commit", old, edit)
}

// copyObject makes a new object out of another one by replacing a part of it, and returns its checksum.
func copyObject(t *testing.T, m *nspawn.Machine, name, old, edit string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(m.Repo(), "objects", name[:2], name[2:]))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Count(data, []byte(old)) != 1 {
		t.Fatalf("object %s has %q %d times", name, old, bytes.Count(data, []byte(old)))
	}
	data = bytes.Replace(data, []byte(old), []byte(edit), 1)
	checksum := fmt.Sprintf("%x", sha256.Sum256(data))
	path := filepath.Join(m.Repo(), "objects", checksum[:2], checksum[2:]+filepath.Ext(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return checksum
}

func TestTreeThatCannotBeAppliedIsRefused(t *testing.T) {
	t.Parallel()
	v0 := product(t, nspawn.Trixie)
	v1 := lab.Derive(t, v0, func(tree *nspawn.Tree) { tree.Write("usr/share/changed", "old", 0o644) })
	m := lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	m.Write("/etc/locally-changed", "mine")
	before := factsOf(t, m)
	const libc, loader = "usr/lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
	tests := []struct {
		name string
		edit func(*nspawn.Tree)
		says []string
	}{
		{"no true", func(tree *nspawn.Tree) { tree.Remove("usr/bin/true") }, []string{"/usr/bin/true"}},
		{"broken true", func(tree *nspawn.Tree) { tree.Write("usr/bin/true", "\x7fELF", 0o755) }, []string{"cannot run /usr/bin/true"}},
		{"true is false", func(tree *nspawn.Tree) { tree.Remove("usr/bin/true"); tree.Rename("usr/bin/false", "usr/bin/true") }, []string{"/usr/bin/true", "exit status 1"}},
		{"broken C library", func(tree *nspawn.Tree) { tree.Write(libc, "not a library", 0o755) }, []string{"/usr/bin/true", "libc.so.6"}},
		{"no C library", func(tree *nspawn.Tree) { tree.Remove(libc) }, []string{"/usr/bin/true", "libc.so.6"}},
		{"no loader", func(tree *nspawn.Tree) { tree.Remove(loader) }, []string{"/usr/bin/true"}},
		{"another version of systemd's own library", func(tree *nspawn.Tree) {
			const dir = "usr/lib/x86_64-linux-gnu/systemd/"
			tree.Rename(dir+"libsystemd-shared-257.so", dir+"libsystemd-shared-258.so")
		}, []string{"what the running systemd starts programs with", "libsystemd-shared-257.so"}},
		{"no /usr", func(tree *nspawn.Tree) { tree.Remove("usr") }, nil},
		{"another release", func(tree *nspawn.Tree) {
			tree.Write("usr/lib/os-release", "ID=debian\nVERSION_ID=\"99\"\n", 0o644)
		}, []string{"another distribution or release", "VERSION_ID=99", "--allow=force"}},
		{"another distribution", func(tree *nspawn.Tree) {
			tree.Write("usr/lib/os-release", strings.Replace(tree.Read("usr/lib/os-release"), "ID=debian", "ID=other", 1), 0o644)
		}, []string{"another distribution or release", "ID=other", "--allow=force"}},
		{"directory in the place of a locally changed file", func(tree *nspawn.Tree) {
			tree.Write("usr/etc/locally-changed/file", "", 0o644)
		}, []string{"/etc/locally-changed"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := m.For(t)
			requireRefused(t, m, before, refusal{commit: derived(t, m, v1, test.edit), says: test.says})
		})
	}
	t.Run("an older one", func(t *testing.T) {
		m := m.For(t)
		m.Pull(v0)
		requireRefused(t, m, before, refusal{commit: v0, says: []string{v0, "older than the live one", "--allow=force"}})
	})
	t.Run("what is not additive", func(t *testing.T) {
		m := m.For(t)
		changed := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/changed", "new", 0o644) })
		additive := []string{"--allow=additive"}
		says := []string{"Allow=additive", "/usr/share/changed", "--allow=replace"}
		requireRefused(t, m, before, refusal{changed, additive, says})
		removed := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Remove("usr/share/changed") })
		requireRefused(t, m, before, refusal{removed, additive, says})
		m.Run("mkdir", "--parents", "/etc/liveapply")
		m.Write("/etc/liveapply/liveapply.conf", "[Apply]\nAllow=additive\n")
		requireRefused(t, m, factsOf(t, m), refusal{commit: changed, says: says})
		m.Run("liveapplyctl", "apply", "--allow=replace", changed)
		m.Run("liveapplyctl", "reset")
		m.Run("rm", "/etc/liveapply/liveapply.conf")
		added := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/added/file", "new", 0o644) })
		m.Run("liveapplyctl", "apply", "--allow=additive", added)
		requireUsrIs(t, m, added)
		m.Run("liveapplyctl", "reset")
	})
}

func TestForceLiftsTheGuards(t *testing.T) {
	t.Parallel()
	v0 := product(t, nspawn.Trixie)
	v1 := lab.Derive(t, v0, func(tree *nspawn.Tree) { tree.Write("usr/share/changed", "old", 0o644) })
	m := lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	m.Pull(v0)
	other := derived(t, m, v1, func(tree *nspawn.Tree) {
		tree.Write("usr/lib/os-release", "ID=other\nVERSION_ID=99\n", 0o644)
	})
	for _, target := range []string{v0, other, v0} {
		m.Run("liveapplyctl", "apply", "--allow=force", target)
		requireUsrIs(t, m, target)
		requireRefused(t, m, factsOf(t, m), refusal{commit: v1, says: []string{"is the booted one", "liveapplyctl reset"}})
	}
	// It is for one application.
	if result := m.Try("liveapplyctl", "apply", other); result.Code != exitRefused {
		t.Errorf("after an application with --allow=force another one goes without: exit status %d", result.Code)
	}
}

// The second one is refused because of the live tree, and that stays.
func TestRefusalLeavesTheLiveTree(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) {
		tree.Write("usr/share/two", "2", 0o644)
		tree.Write("usr/etc/two", "2", 0o644)
	})
	broken := derived(t, m, v2, func(tree *nspawn.Tree) { tree.Remove("usr/bin/true") })
	apply(t, m, v2)
	requireRefused(t, m, factsOf(t, m), refusal{commit: broken, says: []string{"/usr/bin/true"}})
	requireUsrIs(t, m, v2)
	equal(t, "live", status(t, m).Live, v2)
}

func TestUnlockedUsrIsRefused(t *testing.T) {
	t.Parallel()
	options := map[nspawn.Suite][]string{nspawn.Trixie: {"", "--transient", "--hotfix"}, nspawn.Bookworm: {""}}
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		for _, option := range options[suite] {
			t.Run("unlock"+option, func(t *testing.T) {
				m, v1 := productMachine(t, suite, nspawn.Options{})
				target := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/new", "new", 0o644) })
				m.Run("sh", "-c", "ostree admin unlock "+option)
				if option != "--transient" {
					m.Write("/usr/share/mine", "mine")
				}
				requireRefused(t, m, factsOf(t, m), refusal{commit: target, says: []string{"/usr is unlocked", "ostree admin unlock", "reboot"}})
			})
		}
	})
}

// And the other way round.
func TestAdminUnlockRefusesWhileSomethingIsLive(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	target := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/new", "new", 0o644) })
	apply(t, m, target)
	if status := m.Run("ostree", "admin", "status"); !strings.Contains(status, "Unlocked: transient") {
		t.Errorf("ostree admin status does not say that the deployment is unlocked:\n%s", status)
	}
	if result := m.Try("ostree", "admin", "unlock"); result.Code == 0 {
		t.Error("ostree admin unlock succeeds while a commit is live")
	}
	requireUsrIs(t, m, target)
	reset(t, m)
	if status := m.Run("ostree", "admin", "status"); strings.Contains(status, "Unlocked") {
		t.Errorf("after a reset, ostree admin status says:\n%s", status)
	}
}

// The check comes before the work: there is no half layer to be removed.
func TestTooLittleSpaceIsRefused(t *testing.T) {
	t.Parallel()
	v1 := product(t, nspawn.Trixie)
	directories := func(tree *nspawn.Tree) {
		for i := range 500 {
			tree.Mkdir(fmt.Sprintf("usr/share/directories/%d", i), 0o755)
		}
	}
	many := lab.Derive(t, v1, directories)
	few := lab.Derive(t, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/few", "few", 0o644) })
	m := smallMachine(t, v1, many, few)

	before := factsOf(t, m)
	refused := func(says ...string) {
		t.Helper()
		requireRefused(t, m, before, refusal{commit: many, says: append(says, "/sysroot has", "free", many, "needs")})
		m.Run("liveapplyctl", "apply", "--transient", few) // a deployment needs more
		requireUsrIs(t, m, few)
		reset(t, m)
		requireSame(t, m, before)
	}
	fs := fileSystemOf(t, m)
	m.Run("fallocate", fmt.Sprintf("--length=%d", int64(fs.Bavail)*fs.Bsize-3<<20), "/var/filled")
	refused("KiB", "ostree admin cleanup")
	// Once: what libostree has checked out until then stays, and whether the next one even has room for its layer is a matter of a block.
	requireRefused(t, m, before, refusal{commit: few, options: []string{"--allow=replace"}, says: []string{"staging a deployment", "No space left on device"}})
	m.Run("rm", "/var/filled")

	m.Run("mkdir", "/var/filled")
	m.Run("sh", "-c", fmt.Sprintf("cd /var/filled && seq %d | xargs touch", fileSystemOf(t, m).Ffree-300))
	refused("inodes", "remove files")
	m.Run("rm", "-r", "/var/filled")

	apply(t, m, many)
	requireUsrIs(t, m, many)
}

// smallMachine boots a machine that has a filesystem of its own, with the given commits in its repo.
func smallMachine(t *testing.T, booted string, others ...string) *nspawn.Machine {
	t.Helper()
	m := lab.Machine(t, booted, nspawn.Options{})
	for _, commit := range others {
		m.Pull(commit)
	}
	host := func(name string, args ...string) {
		t.Helper()
		if output, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, output)
		}
	}
	dir := t.TempDir()
	image, mounted := filepath.Join(dir, "image"), filepath.Join(dir, "mounted")
	host("truncate", "--size=512M", image)
	host("mkfs.ext4", "-q", "-m", "0", "-N", "40000", image)
	host("mkdir", mounted)
	host("mount", "-o", "loop", image, mounted)
	host("cp", "-a", m.Sysroot()+"/.", mounted)
	host("mount", "--move", mounted, m.Sysroot())
	// From here on the machine has it; the host's mount would only be in the way.
	defer host("umount", "--lazy", m.Sysroot())
	m.Boot()
	m.Run("journalctl", "--relinquish-var") // the journal would take room there whenever it likes
	return m
}

func fileSystemOf(t *testing.T, m *nspawn.Machine) unix.Statfs_t {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(m.Path("/sysroot"), &fs); err != nil {
		t.Fatal(err)
	}
	return fs
}

func TestOnlyRootCanApply(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	target := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/new", "new", 0o644) })
	before := factsOf(t, m)
	for _, command := range [][]string{
		{helperPath, "prepare", target},
		{helperPath, "reset"},
	} {
		result := m.Try("setpriv", append([]string{"--reuid=nobody", "--regid=nogroup", "--clear-groups"}, command...)...)
		equal(t, fmt.Sprint("exit status of ", command, " as nobody"), result.Code, 1)
		requireSays(t, fmt.Sprint(command), result.Stderr, []string{"only root", "systemctl start"})
	}
	result := m.Try("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "liveapplyctl", "status", "--json")
	equal(t, "exit status of liveapplyctl status as nobody", result.Code, 0)
	requireSame(t, m, before)
}

// A root directory that was not booted: a chroot of the same files.
func TestSystemThatWasNotBootedFromOSTreeIsRefused(t *testing.T) {
	t.Parallel()
	commit := product(t, nspawn.Trixie)
	root := lab.Checkout(t, commit)
	before := snapshot(t, root)
	for _, command := range [][]string{
		{"/usr/bin/liveapplyctl", "apply", commit},
		{"/usr/bin/liveapplyctl", "reset"},
		{helperPath, "prepare", commit},
		{helperPath, "recover"},
	} {
		output, err := exec.Command("chroot", append([]string{root}, command...)...).CombinedOutput()
		if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 {
			t.Errorf("%s: %v, want exit status 1", command, err)
		}
		requireSays(t, fmt.Sprint(command), string(output), []string{"not booted from an OSTree deployment"})
	}
	requireTree(t, "the root directory", snapshot(t, root), before)
}

// The phases that come after prepare fail as its dependencies: one of them starts the rollback, which has nothing to take back.
func TestRefusalIsToldOnce(t *testing.T) {
	t.Parallel()
	m, _ := productMachine(t, nspawn.Trixie, nspawn.Options{})
	cursor := m.Run("journalctl", "--show-cursor", "--lines=0", "--quiet")
	if tryApply(m, strings.Repeat("ab", 32)).Code == 0 {
		t.Fatal("an unknown commit was applied")
	}
	lines := strings.Split(m.Journal("--output=cat", "--after-cursor="+strings.TrimPrefix(strings.TrimSpace(cursor), "-- cursor: ")), "\n")
	count := func(text string) (n int) {
		for _, line := range lines {
			if strings.Contains(line, text) {
				n++
			}
		}
		return n
	}
	equal(t, "starts of a rollback", count("Triggering OnFailure="), 1)
	equal(t, "rollbacks that ran", count("Finished liveapply-rollback@")+count("Starting liveapply-rollback@"), 0)
}

// libostree could not merge this at the shutdown, and the machine would go on in the old tree, of which nobody would be told.
func TestEtcThatOSTreeCannotMergeIsRefusedBeforeItIsStaged(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/two", "2\n", 0o644) })
	m.Run("sh", "-c", "rm -r /etc/systemd/network; echo mine >/etc/systemd/network")
	before := factsOf(t, m)
	result := m.Try("liveapplyctl", "apply", v2)
	equal(t, "exit status", result.Code, exitRefused)
	requireSays(t, "liveapplyctl apply", result.Stderr, []string{"/etc/systemd/network", "libostree could not merge", "--transient"})
	requireSame(t, m, before)
	m.Run("liveapplyctl", "apply", "--transient", v2)
	requireUsrIs(t, m, v2)
}

// /var may be full, or read-only: nothing is told then in the history, and all else goes on.
func TestHistoryThatCannotBeWrittenKeepsNothingFromEnding(t *testing.T) {
	t.Parallel()
	m, v1 := releaseMachine(t, nspawn.Trixie)
	makeTransient(m)
	v2 := derived(t, m, v1, labRelease("2"))
	before := factsOf(t, m)
	m.Run("rm", "-rf", "/var/lib/liveapply/history.jsonl")
	m.Run("mkdir", "-p", "/var/lib/liveapply/history.jsonl") // no file can be written there
	apply(t, m, v2)
	requireLive(t, m, v2)
	if said := m.Journal("--unit=liveapply-record@"+v2, "--output=cat"); !strings.Contains(said, "is not in the history") {
		t.Errorf("the journal says nothing of the history, but:\n%s", said)
	}
	reset(t, m)
	if tryApply(m, strings.Repeat("ab", 32)).Code == 0 {
		t.Error("an unknown commit was applied")
	}
	forgetOutcomes(m)
	m.Run("rmdir", "/var/lib/liveapply/history.jsonl")
	requireSame(t, m, before)
}
