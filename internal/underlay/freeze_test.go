package underlay

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// canBeWritten checks that overlayfs can do in /usr whatever it does with an upper directory and a work directory.
func (m *machine) canBeWritten(when string) {
	m.t.Helper()
	path := func(name string) string { return filepath.Join(m.usr.Path, name) }
	for _, change := range []func() error{
		func() error { return os.WriteFile(path("new"), []byte("new"), 0o644) },
		func() error { return os.Chmod(path("bin/tool"), 0o700) }, // copies it up
		func() error { return os.Chmod(path("bin/tool"), 0o755) },
		func() error { return os.Rename(path("new"), path("bin/tool")) },
		func() error { return os.Remove(path("bin/tool")) }, // leaves a whiteout
		func() error { return os.WriteFile(path("bin/tool"), []byte("booted"), 0o755) },
	} {
		if err := change(); err != nil {
			m.t.Errorf("%s: %v", when, err)
		}
	}
}

// service is a shell in a mount namespace of its own.
type service struct {
	commands io.Writer
	answers  *bufio.Reader
}

func (m *machine) service(propagation string) service {
	m.t.Helper()
	cmd := exec.Command("unshare", "--mount", "--propagation="+propagation, "sh", "-c", `while read -r line; do eval "$line" 2>&1; echo "ended $?"; done`)
	commands, err := cmd.StdinPipe()
	m.check(err)
	answers, err := cmd.StdoutPipe()
	m.check(err)
	m.check(cmd.Start())
	m.t.Cleanup(func() {
		commands.Close()
		m.check(cmd.Wait())
	})
	s := service{commands, bufio.NewReader(answers)}
	if got := s.do("true"); got != "" {
		m.t.Fatal(got)
	}
	return s
}

// do runs a command, and returns what is wrong with it.
func (s service) do(command string) string {
	fmt.Fprintln(s.commands, command)
	said := ""
	for {
		line, err := s.answers.ReadString('\n')
		if err != nil {
			return err.Error()
		}
		if line == "ended 0\n" {
			return said
		}
		if strings.HasPrefix(line, "ended ") {
			return said + line
		}
		said += line
	}
}

func TestWritableTreeIsFollowedByAnotherWithTheSameContent(t *testing.T) {
	forEachLayout(t, func(t *testing.T, m *machine) {
		before := m.table()
		for _, tree := range []string{"one", "two", "three"} {
			old, err := os.Open(m.usr.Path)
			m.check(err)
			defer old.Close()
			_, err = m.usr.Switch(m.writable(tree))
			m.check(err)
			m.shows(tree)
			m.canBeWritten(tree)
			m.check(os.WriteFile(filepath.Join(m.usr.Path, "of-"+tree), []byte(tree), 0o644))
			if tree == "one" {
				continue // the one before is the booted one
			}
			if err := unix.Mkdirat(int(old.Fd()), "late", 0o755); !errors.Is(err, unix.EROFS) {
				t.Errorf("writing to the tree before: %v", err)
			}
		}
		if got := m.read("of-one") + m.read("of-two") + m.read("of-three"); got != "onetwothree" {
			t.Errorf("/usr has %q", got)
		}
		if work, err := os.ReadDir(filepath.Join(m.dir, "scratch/work")); err != nil || len(work) != 1 {
			t.Errorf("the work directory has %v, %v", work, err)
		}
		_, err := m.usr.Switch(stackOf("four", m.layer("four")))
		m.check(err)
		m.shows("four")
		if err := os.WriteFile(filepath.Join(m.usr.Path, "new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("writing to a tree without upper directory: %v", err)
		}
		m.detach()
		m.unchanged(before)
	})
}

func TestTreeWithFilesOpenForWritingStays(t *testing.T) {
	forEachLayout(t, func(t *testing.T, m *machine) {
		_, err := m.usr.Switch(m.writable("one"))
		m.check(err)
		service := m.service("slave")
		path := filepath.Join(m.usr.Path, "log")
		for _, open := range []string{"here", "in another namespace"} {
			end := func() { service.do("exec 7>&-") }
			if open == "here" {
				file, err := os.Create(path)
				m.check(err)
				end = func() { file.Close() }
			} else {
				service.do("exec 7>" + path)
			}
			_, switchErr := m.usr.Switch(m.writable("two"))
			for _, err := range []error{switchErr, m.usr.Detach()} {
				if err == nil || !strings.Contains(err.Error(), "open for writing: "+path+" by process ") {
					t.Errorf("open %s: the error is %v", open, err)
				}
			}
			m.shows("one")
			m.canBeWritten("after a refusal")
			if got := service.do("echo >" + m.usr.Path + "/served"); got != "" {
				t.Errorf("the service cannot write after a refusal: %s", got)
			}
			end()
		}
		_, err = m.usr.Switch(m.writable("two"))
		m.check(err)
		m.shows("two")
		m.detach()
	})
}

// A switch that is cut short before its tree can be written.
func TestTreeThatCannotBeWrittenYetIsUnfinished(t *testing.T) {
	m := newMachine(t, ownGroup)
	m.show("one")
	_, err := m.usr.Switch(m.writable("two"))
	m.check(err)
	if m.inspect().Unfinished {
		t.Error("a writable tree is said to be unfinished")
	}
	m.check(setAttributes(m.usr.Path, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
	if !m.inspect().Unfinished {
		t.Error("nothing says that the tree is unfinished")
	}
	_, err = m.usr.Switch(m.writable("two"))
	m.check(err)
	m.canBeWritten("after the next switch")
	m.detach()
}

func TestFilesInUseThatWereReplacedAreNotInTheWay(t *testing.T) {
	m := newMachine(t, ownGroup)
	_, err := m.usr.Switch(m.writable("one"))
	m.check(err)
	m.check(os.WriteFile(filepath.Join(m.usr.Path, "new"), nil, 0o644))
	for _, name := range []string{"new", "bin/tool", "lib/os-release"} {
		file, err := os.Open(filepath.Join(m.usr.Path, name))
		m.check(err)
		defer file.Close()
	}
	m.canBeWritten("one")
	m.check(os.Remove(filepath.Join(m.usr.Path, "lib/os-release")))
	_, err = m.usr.Switch(m.writable("two"))
	m.check(err)
	m.canBeWritten("two")
	m.detach()
}

func TestWritableTreeStaysWritableAfterAFailure(t *testing.T) {
	forEachLayout(t, func(t *testing.T, m *machine) {
		_, err := m.usr.Switch(m.writable("one"))
		m.check(err)
		before := m.table()
		bad := m.writable("two")
		bad.Layers = append(bad.Layers, m.file("not-a-directory"))
		if _, err := m.usr.Switch(bad); err == nil {
			t.Error("a file was accepted as a layer")
		}
		m.shows("one")
		m.canBeWritten("after an overlay that cannot be made")

		m.check(os.Mkdir(filepath.Join(m.usr.Path, "fresh"), 0o755))
		m.tmpfs("fresh", "fresh")
		m.check(unix.Mknod(filepath.Join(m.layer("two"), "fresh"), unix.S_IFCHR, 0))
		_, switchErr := m.usr.Switch(stackOf("two", m.layer("two")))
		for _, err := range []error{switchErr, m.usr.Detach()} {
			if err == nil || !strings.Contains(err.Error(), "fresh is a mount point") {
				t.Errorf("the error is %v", err)
			}
		}
		m.shows("one")
		m.canBeWritten("after an overlay that lacks a mount point")
		m.check(unix.Unmount(filepath.Join(m.usr.Path, "fresh"), 0))
		m.unchanged(before)
		m.detach()
	})
}

// A namespace that does not follow keeps the old tree.
func TestOldTreeCannotBeWrittenInAnyNamespace(t *testing.T) {
	forEachLayout(t, func(t *testing.T, m *machine) {
		_, err := m.usr.Switch(m.writable("one"))
		m.check(err)
		services := map[string]service{"slave": m.service("slave"), "private": m.service("private")}
		write := "echo >" + m.usr.Path + "/served"
		for name, s := range services {
			if got := s.do(write); got != "" {
				t.Errorf("%s: %s", name, got)
			}
		}
		guarded := m.service("private")
		guarded.do("mount -o remount,bind,ro " + m.usr.Path)
		aside := filepath.Join(m.root, "aside")
		m.mkdir("root/aside")
		m.bind(filepath.Join(m.usr.Path, "lib"), aside)

		busy, err := os.Create(filepath.Join(m.usr.Path, "busy"))
		m.check(err)
		if _, err := m.usr.Switch(m.writable("two")); err == nil {
			t.Error("a file open for writing was not in the way")
		}
		busy.Close()
		if got := guarded.do(write); !strings.Contains(got, "Read-only") {
			t.Errorf("what a service has made read-only is writable after a refusal: %s", got)
		}
		m.check(os.WriteFile(filepath.Join(aside, "new"), nil, 0o644))

		_, err = m.usr.Switch(m.writable("two"))
		m.check(err)
		for name, s := range services {
			if got := s.do(write); !strings.Contains(got, "Read-only") {
				t.Errorf("the %s namespace: %s", name, got)
			}
		}
		for name, version := range map[string]string{"slave": "two", "private": "one"} {
			if got := services[name].do("grep -qx " + version + " " + m.usr.Path + "/version"); got != "" {
				t.Errorf("the %s namespace does not show %s: %s", name, version, got)
			}
		}
		if err := os.WriteFile(filepath.Join(aside, "new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("a bind mount of the old tree: %v", err)
		}
		m.check(unix.Unmount(aside, 0))
		m.detach()
	})
}

// unchanged checks that the mount table is as it was.
func (m *machine) unchanged(before []string) {
	m.t.Helper()
	if got := m.table(); strings.Join(got, "\n") != strings.Join(before, "\n") {
		m.t.Errorf("the mount table differs; before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(got, "\n"))
	}
}
