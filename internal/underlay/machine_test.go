package underlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/nstest"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(callVariable); text != "" {
		os.Exit(makeCall(text))
	}
	nstest.Main(m)
}

// layout is how /usr is mounted.
type layout int

const (
	ownGroup    layout = iota // a mount of its own, as ostree-prepare-root makes it
	parentGroup               // in the peer group of the mount above it, as in systemd-nspawn
	plain                     // a directory of the mount above it, as on composefs
)

var layouts = map[string]layout{"own peer group": ownGroup, "peer group of its parent": parentGroup, "no mount point": plain}

// machine is a directory that plays /.
type machine struct {
	t    *testing.T
	dir  string // of everything
	root string // a shared mount; usr in it is /usr
	usr  Usr
}

// newMachine makes a machine whose /usr has a file "version" that says "booted", a file "bin/tool", and directories.
func newMachine(t *testing.T, l layout) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir()}
	m.check(os.Chmod(filepath.Dir(m.dir), 0o755)) // programs that are tried run as nobody
	m.root = filepath.Join(m.dir, "root")
	m.usr = Usr{Path: filepath.Join(m.root, "usr"), Private: filepath.Join(m.root, "run/liveapply/mnt")}
	m.write("root/usr/version", "booted")
	m.write("root/usr/bin/tool", "booted")
	m.write("root/usr/lib/os-release", "booted")
	m.mkdir("root/usr/local")
	m.mkdir("root/usr/with space")
	m.mkdir("root/run")
	m.bind(m.dir, m.dir)
	t.Cleanup(func() { unix.Unmount(m.dir, unix.MNT_DETACH) })
	m.bind(m.root, m.root)
	m.propagation(m.root, unix.MS_SHARED)
	if l == plain {
		return m
	}
	m.bind(m.usr.Path, m.usr.Path)
	if l == ownGroup {
		m.propagation(m.usr.Path, unix.MS_PRIVATE)
		m.propagation(m.usr.Path, unix.MS_SHARED)
	}
	return m
}

func (m *machine) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) mkdir(path string) {
	m.t.Helper()
	m.check(os.MkdirAll(filepath.Join(m.dir, path), 0o755))
}

func (m *machine) write(path, content string) {
	m.t.Helper()
	m.mkdir(filepath.Dir(path))
	m.check(os.WriteFile(filepath.Join(m.dir, path), []byte(content), 0o755))
}

func (m *machine) bind(from, to string) {
	m.t.Helper()
	m.check(unix.Mount(from, to, "", unix.MS_BIND, ""))
}

func (m *machine) propagation(path string, flag uintptr) {
	m.t.Helper()
	m.check(unix.Mount("", path, "", flag, ""))
}

// tmpfs mounts a tmpfs below /usr that has a file "name" with its name.
func (m *machine) tmpfs(path, name string) {
	m.t.Helper()
	target := filepath.Join(m.usr.Path, path)
	m.check(unix.Mount(name, target, "tmpfs", 0, ""))
	m.check(os.WriteFile(filepath.Join(target, "name"), []byte(name), 0o644))
}

// layer makes a layer in which the file "version" has the layer's name.
func (m *machine) layer(name string) string {
	m.t.Helper()
	m.write("layers/"+name+"/version", name)
	return filepath.Join(m.dir, "layers", name)
}

// stackOf is a stack of layers, and nothing else.
func stackOf(live string, layers ...string) Stack {
	return Stack{Source: Source{Live: live}, Layers: layers}
}

// show switches to a tree with a layer of that name.
func (m *machine) show(name string) Switched {
	m.t.Helper()
	done, err := m.usr.Switch(stackOf(name, m.layer(name)))
	m.check(err)
	m.shows(name)
	return done
}

func (m *machine) detach() {
	m.t.Helper()
	m.check(m.usr.Detach())
	m.shows("booted")
}

// shows checks that /usr is a tree, whole, and that Inspect says so.
func (m *machine) shows(name string) {
	m.t.Helper()
	if got := m.read("version"); got != name {
		m.t.Errorf("/usr shows %q, want %q", got, name)
	}
	if got := m.read("bin/tool"); got != "booted" {
		m.t.Errorf("/usr/bin/tool is %q, want that of the booted tree", got)
	}
	live := name
	if name == "booted" {
		live = ""
	}
	if got := m.inspect().Live; got != live {
		m.t.Errorf("Inspect says %q is live, want %q", got, live)
	}
}

// read reads a file below /usr; "" if there is none.
func (m *machine) read(path string) string {
	m.t.Helper()
	content, err := os.ReadFile(filepath.Join(m.usr.Path, path))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Fatal(err)
	}
	return string(content)
}

func (m *machine) inspect() State {
	m.t.Helper()
	s, err := m.usr.Inspect()
	m.check(err)
	return s
}

// table returns the mount table of this machine: a line per mount, without the numbers of mounts and peer groups.
func (m *machine) table() []string {
	m.t.Helper()
	mounts, err := mountsIn(ownMounts, nil)
	m.check(err)
	var lines []string
	for _, mount := range mounts {
		if !strings.HasPrefix(mount.Mountpoint, m.dir) {
			continue
		}
		kind := strings.TrimRight(mount.Optional, "0123456789")
		lines = append(lines, fmt.Sprintf("%s %s %s %s %s", mount.Mountpoint, mount.Root, mount.Source, mount.Options, kind))
	}
	return lines
}
