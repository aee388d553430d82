// Package ostreetest makes real OSTree repos for tests, with the ostree command. Tests that use it run as
// root.
package ostreetest

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Run runs a command and returns its standard output.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	var stderr strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8") // without a locale, ostree takes only ASCII
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out, stderr.String())
	}
	return string(out)
}

// Repo makes an empty bare repo and returns its path.
func Repo(t testing.TB) string {
	t.Helper()
	repo := filepath.Join(t.TempDir(), "repo")
	Run(t, "ostree", "--repo="+repo, "init", "--mode=bare")
	Run(t, "ostree", "--repo="+repo, "config", "set", "core.fsync", "false")
	return repo
}

// Commit commits a directory to a branch and returns the commit's checksum.
func Commit(t testing.TB, repo, branch, dir string) string {
	t.Helper()
	return strings.TrimSpace(Run(t, "ostree", "--repo="+repo, "commit", "-b", branch, "-s", "commit of "+branch, "--tree=dir="+dir))
}

// Node is a file, a symbolic link or a directory.
type Node struct {
	Mode     os.FileMode // os.ModeDir, os.ModeSymlink or a regular file; permissions, os.ModeSetuid and so on
	UID, GID int
	Content  string // of a regular file; the target of a symbolic link
	Xattrs   map[string]string
}

// File, Dir and Link return nodes that root owns.
func File(content string) Node { return Node{Mode: 0o644, Content: content} }

// Dir returns a directory.
func Dir() Node { return Node{Mode: os.ModeDir | 0o755} }

// Link returns a symbolic link.
func Link(target string) Node { return Node{Mode: os.ModeSymlink | 0o777, Content: target} }

// Spec is a tree: path, without a leading slash, → node. "" is the root; directories that are not named are
// as Dir makes them.
type Spec map[string]Node

// Write makes the tree in a new directory and returns its path.
func (s Spec) Write(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range slices.Sorted(maps.Keys(s)) {
		if err := s[path].write(filepath.Join(root, path)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func (n Node) write(path string) error {
	if err := n.create(path); err != nil {
		return err
	}
	if err := os.Lchown(path, n.UID, n.GID); err != nil {
		return err
	}
	if n.Mode&os.ModeSymlink == 0 {
		if err := os.Chmod(path, n.Mode&^os.ModeDir); err != nil {
			return err
		}
	}
	for name, value := range n.Xattrs {
		if err := unix.Lsetxattr(path, name, []byte(value), 0); err != nil {
			return fmt.Errorf("set xattr %s of %s: %w", name, path, err)
		}
	}
	return nil
}

func (n Node) create(path string) error {
	if n.Mode.IsDir() {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if n.Mode&os.ModeSymlink != 0 {
		return os.Symlink(n.Content, path)
	}
	return os.WriteFile(path, []byte(n.Content), 0o644)
}

// capability is what setcap cap_net_raw+ep writes.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// Written returns two trees that differ in every way that a commit can: an update from the first to the
// second adds, changes and removes what the names say.
func Written() (before, after Spec) {
	before, after = Spec{}, Spec{}
	both := func(path string, was, is Node) { before[path], after[path] = was, is }

	same := func(path string, n Node) { both(path, n, n) }
	same("usr/same/file", File("same"))
	same("usr/same/deep/er/file", File("same"))
	same("usr/same/empty", File(""))
	same("usr/same/link", Link("deep/er/file"))
	same("usr/same/with xattr", Node{Mode: 0o755, Content: "x", Xattrs: map[string]string{"user.z": "1", "user.a": "22", "security.capability": capability}})

	both("usr/content", File("old"), File("new"))
	both("usr/to empty", File("old"), File(""))
	both("usr/mode only", Node{Mode: 0o644, Content: "m"}, Node{Mode: 0o600, Content: "m"})
	both("usr/owner only", Node{Mode: 0o644, Content: "o"}, Node{Mode: 0o644, UID: 1234, GID: 5678, Content: "o"})
	both("usr/setuid", Node{Mode: 0o755, Content: "s"}, Node{Mode: 0o755 | os.ModeSetuid, Content: "s"})
	both("usr/xattr only", File("x"), Node{Mode: 0o644, Content: "x", Xattrs: map[string]string{"user.note": "v"}})
	both("usr/capability", File("c"), Node{Mode: 0o755, Content: "c", Xattrs: map[string]string{"security.capability": capability}})
	both("usr/target", Link("a"), Link("b"))

	both("usr/dir mode", Dir(), Node{Mode: os.ModeDir | 0o700})
	same("usr/dir mode/file", File("f"))
	both("usr/dir owner", Dir(), Node{Mode: os.ModeDir | 0o755, UID: 42, GID: 43})
	both("usr/dir xattr", Dir(), Node{Mode: os.ModeDir | 0o755, Xattrs: map[string]string{"user.dir": "d"}})
	both("usr/dir sticky", Dir(), Node{Mode: os.ModeDir | 0o777 | os.ModeSticky})

	both("usr/file to dir", File("f"), Dir())
	after["usr/file to dir/in/it"] = File("new")
	both("usr/dir to file", Dir(), File("f"))
	delete(before, "usr/dir to file")
	before["usr/dir to file/in/it"] = File("old")
	both("usr/file to link", File("f"), Link("same"))
	both("usr/link to file", Link("same"), File("f"))
	both("usr/link to dir", Link("same"), Dir())
	after["usr/link to dir/file"] = File("new")
	before["usr/dir to link/file"] = File("old")
	after["usr/dir to link"] = Link("same")
	before["usr/nothing shared/a/x"] = File("a")
	before["usr/nothing shared/b"] = File("b")
	after["usr/nothing shared/c/x"] = File("c")
	after["usr/nothing shared/d"] = Link("c")

	before["usr/removed"] = File("r")
	before["usr/removed dir/a/b"] = File("r")
	before["usr/removed dir/empty"] = Dir()
	after["usr/added"] = File("a")
	after["usr/added dir/a/b"] = File("a")
	after["usr/added dir/empty"] = Dir()
	after["usr/added dir/link"] = Link("a/b")

	for _, name := range []string{
		"with space", "'quote' \"quotes\"", "new\nline", "tab\t", "back\\slash", "-dash", "#hash", "%percent", "wh.whiteout", ".hidden", "ünï",
		strings.Repeat("€", 85),
	} {
		both("usr/names/"+name, File("old "+name), File("new "+name))
		after["usr/names/added/"+name+"/file"] = File(name)
	}
	for i := range 5000 {
		both(fmt.Sprintf("usr/many/%d", i), File("m"), File("m"))
	}
	after["usr/many/2500"] = File("changed")
	delete(after, "usr/many/17")
	deep := strings.TrimSuffix(strings.Repeat("d/", 60), "/")
	both("usr/deep/"+deep+"/file", File("old"), File("new"))
	return before, after
}
