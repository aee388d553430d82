package underlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// forEachLayout runs a test in all the ways in which /usr can be mounted, on a kernel as it is and as it was.
func forEachLayout(t *testing.T, f func(t *testing.T, m *machine)) {
	for name, l := range layouts {
		t.Run(name, func(t *testing.T) { f(t, newMachine(t, l)) })
		t.Run(name+" on an old kernel", func(t *testing.T) {
			m := newMachine(t, l)
			m.usr.noBeneath, m.usr.noLowerdirAdd = true, true
			f(t, m)
		})
	}
}

func TestSwitchShowsTheTreeAndDetachLeavesNothing(t *testing.T) {
	forEachLayout(t, func(t *testing.T, m *machine) {
		before, files := m.table(), m.files("root/run")
		for range 2 {
			if done := m.show("one"); done.Stacked {
				t.Error("the first tree is stacked")
			}
			if done := m.show("two"); done.Stacked != m.usr.noBeneath {
				t.Errorf("stacked: %v", done.Stacked)
			}
			m.show("three")
			m.detach()
			if diff := cmp.Diff(before, m.table()); diff != "" {
				t.Errorf("the mount table differs afterwards (-before +after):\n%s", diff)
			}
		}
		if err := os.Remove(filepath.Join(m.root, "run/liveapply")); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(files, m.files("root/run")); diff != "" {
			t.Errorf("files are left (-before +after):\n%s", diff)
		}
	})
}

// files lists what is below a directory.
func (m *machine) files(dir string) (paths []string) {
	m.t.Helper()
	m.check(filepath.WalkDir(filepath.Join(m.dir, dir), func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	}))
	return paths
}

func TestDetachWithNothingMountedIsNoError(t *testing.T) {
	m := newMachine(t, ownGroup)
	before := m.table()
	m.detach()
	if diff := cmp.Diff(before, m.table()); diff != "" {
		t.Error(diff)
	}
}

func TestStackDoesNotGrow(t *testing.T) {
	for name, l := range layouts {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, l)
			m.show("first")
			want := len(m.table())
			for i := range 100 {
				m.show(fmt.Sprint(i))
			}
			if got := m.table(); len(got) != want {
				t.Errorf("%d mounts after 100 switches, %d after the first:\n%s", len(got), want, strings.Join(got, "\n"))
			}
			m.detach()
		})
	}
}

func TestUpperLayersComeFirst(t *testing.T) {
	forEachLayout(t, func(t *testing.T, m *machine) {
		layers := []string{m.layer("upper"), m.layer("middle"), m.layer("lower")}
		m.write("layers/lower/only", "lower")
		if _, err := m.usr.Switch(stackOf("upper", layers...)); err != nil {
			t.Fatal(err)
		}
		m.shows("upper")
		if got := m.read("only"); got != "lower" {
			t.Errorf("the file of the lowest layer is %q", got)
		}
		m.detach()
	})
}

func TestLayerPathsOfAnyKind(t *testing.T) {
	names := map[string]string{
		"long":        strings.Repeat("d", 200) + "/" + strings.Repeat("e", 200),
		"separators":  `a:b,c\d`,
		"white space": "a b\tc\nd",
	}
	for name, path := range names {
		t.Run(name, func(t *testing.T) {
			forEachLayout(t, func(t *testing.T, m *machine) {
				m.layer(path)
				if _, err := m.usr.Switch(stackOf(path[:1], filepath.Join(m.dir, "layers", path))); err != nil {
					t.Fatal(err)
				}
				if got := m.read("version"); got != path {
					t.Errorf("/usr shows %q", got)
				}
				m.detach()
			})
		})
	}
}

func TestMountAttributesAreKept(t *testing.T) {
	sets := map[string]uintptr{
		"none":        unix.MS_RELATIME,
		"read-only":   unix.MS_RDONLY | unix.MS_RELATIME,
		"restricted":  unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME,
		"nodiratime":  unix.MS_NODIRATIME | unix.MS_RDONLY | unix.MS_RELATIME,
		"strictatime": unix.MS_STRICTATIME,
		"nosymfollow": unix.MS_NOSYMFOLLOW | unix.MS_RELATIME,
	}
	for name, flags := range sets {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, ownGroup)
			m.check(unix.Mount("", m.usr.Path, "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""))
			want := m.options()
			for _, tree := range []string{"one", "two"} {
				m.show(tree)
				if got := m.options(); got != want {
					t.Errorf("the attributes are %q, want %q", got, want)
				}
			}
			m.detach()
			if got := m.options(); got != want {
				t.Errorf("the attributes are %q after detach, want %q", got, want)
			}
		})
	}
}

func (m *machine) options() string {
	m.t.Helper()
	now, err := m.usr.look()
	m.check(err)
	return now.visible.Options
}

func TestMountsBelowAreCarried(t *testing.T) {
	forEachLayout(t, func(t *testing.T, m *machine) {
		m.tmpfs("local", "local")
		m.check(os.Mkdir(filepath.Join(m.usr.Path, "local/lib"), 0o755))
		m.tmpfs("local/lib", "nested")
		m.tmpfs("with space", "space")
		m.overlay("bin")
		m.bind(m.file("elsewhere"), filepath.Join(m.usr.Path, "lib/os-release"))
		before := m.table()
		carried := func() {
			t.Helper()
			got := []string{m.read("local/name"), m.read("local/lib/name"), m.read("with space/name"), m.read("bin/new"), m.read("lib/os-release")}
			if diff := cmp.Diff([]string{"local", "nested", "space", "bin", "elsewhere"}, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{"bin", "lib/os-release", "local", "with space"}, m.inspect().Submounts); diff != "" {
				t.Error(diff)
			}
		}
		carried()
		for _, tree := range []string{"one", "two", "three"} {
			done := m.show(tree)
			if diff := cmp.Diff([]string{"bin", "lib/os-release", "local", "with space"}, done.Carried); diff != "" {
				t.Error(diff)
			}
			carried()
		}
		m.detach()
		carried()
		if diff := cmp.Diff(before, m.table()); diff != "" {
			t.Errorf("the mount table differs afterwards (-before +after):\n%s", diff)
		}
	})
}

// overlay mounts a writable overlay on a directory below /usr, as ostree-state-overlay does, with a file "new" in it.
func (m *machine) overlay(path string) {
	m.t.Helper()
	m.write("state/"+path+"/upper/new", path)
	m.mkdir("state/" + path + "/work")
	state, target := filepath.Join(m.dir, "state", path), filepath.Join(m.usr.Path, path)
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", target, state, state)
	m.check(unix.Mount("overlay", target, "overlay", 0, options))
}

// file makes a file with its name as content, outside of /usr.
func (m *machine) file(name string) string {
	m.t.Helper()
	m.write("root/"+name, name)
	return filepath.Join(m.root, name)
}

func TestMountsMadeAndRemovedWhileLiveStaySo(t *testing.T) {
	forEachLayout(t, func(t *testing.T, m *machine) {
		m.tmpfs("local", "local")
		m.check(os.Mkdir(filepath.Join(m.usr.Path, "local/lib"), 0o755))
		m.tmpfs("with space", "space")
		m.show("one")
		m.tmpfs("bin", "made")
		m.tmpfs("local/lib", "nested")
		m.check(unix.Unmount(filepath.Join(m.usr.Path, "with space"), 0))
		submounts := func() {
			t.Helper()
			if diff := cmp.Diff([]string{"bin", "local"}, m.inspect().Submounts); diff != "" {
				t.Error(diff)
			}
			got := []string{m.read("bin/name"), m.read("local/name"), m.read("local/lib/name"), m.read("with space/name")}
			if diff := cmp.Diff([]string{"made", "local", "nested", ""}, got); diff != "" {
				t.Error(diff)
			}
		}
		submounts()
		_, err := m.usr.Switch(stackOf("two", m.layer("two")))
		m.check(err)
		submounts()
		m.check(m.usr.Detach())
		submounts()
		for _, line := range m.table() {
			if strings.Contains(line, sourcePrefix) || strings.Contains(line, "/mnt") {
				t.Errorf("left: %s", line)
			}
		}
		m.check(unix.Unmount(filepath.Join(m.usr.Path, "bin"), 0))
		if got := m.read("bin/tool"); got != "booted" {
			t.Error("the mount is there twice")
		}
	})
}

func TestTreeWithoutTheMountPointIsRefused(t *testing.T) {
	for _, kind := range []string{"absent", "file", "link"} {
		t.Run(kind, func(t *testing.T) {
			m := newMachine(t, ownGroup)
			m.tmpfs("local", "local")
			layer := m.layer("one")
			place := filepath.Join(layer, "local")
			switch kind {
			case "absent":
				m.check(unix.Mknod(place, unix.S_IFCHR, 0))
			case "file":
				m.check(os.WriteFile(place, nil, 0o644))
			case "link":
				m.check(os.Symlink("bin", place))
			}
			before := m.table()
			_, err := m.usr.Switch(stackOf("one", layer))
			tryErr := m.usr.Try(t.Context(), stackOf("one", layer), Program{Name: "/bin/true"})
			for _, err := range []error{err, tryErr} {
				if err == nil || !strings.Contains(err.Error(), m.usr.Path+"/local is a mount point") {
					t.Errorf("the error is %v", err)
				}
			}
			m.check(m.usr.Detach())
			if diff := cmp.Diff(before, m.table()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The other way round: the mount point exists in the live tree only.
func TestDetachIsRefusedWhileAMountPointWouldBeLost(t *testing.T) {
	m := newMachine(t, ownGroup)
	m.write("layers/one/fresh/x", "")
	m.show("one")
	m.tmpfs("fresh", "fresh")
	if err := m.usr.Detach(); err == nil || !strings.Contains(err.Error(), m.usr.Path+"/fresh is a mount point") {
		t.Errorf("the error is %v", err)
	}
	m.shows("one")
	if got := m.read("fresh/name"); got != "fresh" {
		t.Error("the mount is gone")
	}
	m.check(unix.Unmount(filepath.Join(m.usr.Path, "fresh"), 0))
	m.detach()
}

func TestOverlaysOfOthersAreRefused(t *testing.T) {
	m := newMachine(t, ownGroup)
	unlock := func(source string) {
		m.mkdir("unlock/upper")
		m.mkdir("unlock/work")
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s/unlock/upper,workdir=%s/unlock/work", m.usr.Path, m.dir, m.dir)
		m.check(unix.Mount(source, m.usr.Path, "overlay", 0, options))
	}
	unlock("overlay")
	if !m.inspect().Unlocked {
		t.Error("Inspect does not say that /usr is unlocked")
	}
	if _, err := m.usr.Switch(stackOf("one", m.layer("one"))); err == nil || !strings.Contains(err.Error(), "unlock") {
		t.Errorf("the error is %v", err)
	}
	m.check(unix.Unmount(m.usr.Path, 0))

	m.show("one")
	unlock("overlay")
	if s := m.inspect(); !s.Unlocked || s.Live != "" {
		t.Errorf("over the live tree: %+v", s)
	}
	if err := m.usr.Detach(); err == nil || !strings.Contains(err.Error(), "over the live tree") {
		t.Errorf("the error is %v", err)
	}
	m.check(unix.Unmount(m.usr.Path, 0))
	unlock("sysext")
	if s := m.inspect(); !s.Extended || s.Unlocked || s.Live != "one" {
		t.Errorf("with extensions over the live tree: %+v", s)
	}
	_, err := m.usr.Switch(stackOf("two", m.layer("two")))
	for _, err := range []error{err, m.usr.Detach(), m.usr.CheckDetach()} {
		if !errors.Is(err, ErrExtended) {
			t.Errorf("the error is %v", err)
		}
	}
	m.check(unix.Unmount(m.usr.Path, 0))
	m.tmpfs("", "tmpfs")
	if _, err := m.usr.Switch(stackOf("two", m.layer("two"))); err == nil || !strings.Contains(err.Error(), "over the live tree") {
		t.Errorf("the error is %v", err)
	}
	m.check(unix.Unmount(m.usr.Path, 0))
	m.detach()
}

// On composefs, / is an overlay. /usr is a directory of it or a bind mount of that, and not unlocked. One more overlay is possible.
func TestOverlayAsRootLeavesRoomForOne(t *testing.T) {
	for _, bound := range []bool{false, true} {
		m := newMachine(t, plain)
		m.mkdir("empty")
		m.check(unix.Mount("composefs", m.root, "overlay", 0, fmt.Sprintf("lowerdir=%s/empty:%s", m.dir, m.root)))
		m.propagation(m.root, unix.MS_SHARED)
		m.check(unix.Mount("tmpfs", filepath.Join(m.root, "run"), "tmpfs", 0, ""))
		if bound {
			m.bind(m.usr.Path, m.usr.Path)
		}
		before := m.table()
		if m.inspect().Unlocked {
			t.Error("Inspect takes the root for an unlocked /usr")
		}
		m.show("one")
		m.show("two")
		m.detach()
		if diff := cmp.Diff(before, m.table()); diff != "" {
			t.Error(diff)
		}
	}
}

func TestStackingDepthIsExplained(t *testing.T) {
	m := newMachine(t, plain)
	for range 2 {
		m.mkdir("empty")
		options := fmt.Sprintf("lowerdir=%s/empty:%s", m.dir, m.usr.Path)
		m.check(unix.Mount("composefs", m.usr.Path, "overlay", 0, options))
	}
	_, err := m.usr.compose(stackOf("one", m.layer("one"), m.usr.Path), 0)
	if err == nil || !strings.Contains(err.Error(), "stacks two of them at most") {
		t.Errorf("the error is %v", err)
	}
}

func TestKernelsReasonIsInTheError(t *testing.T) {
	m := newMachine(t, ownGroup)
	before := m.table()
	file := m.file("not-a-directory")
	_, err := m.usr.Switch(stackOf("one", file))
	if err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("the error is %v", err)
	}
	if _, err := m.usr.Switch(stackOf("one+two", m.layer("one"))); err == nil {
		t.Error("a source that Inspect would not know was accepted")
	}
	if _, err := m.usr.Switch(stackOf("one")); err == nil {
		t.Error("no layers were accepted")
	}
	m.detach()
	if diff := cmp.Diff(before, m.table()); diff != "" {
		t.Error(diff)
	}
}

func TestOldTreeStaysUsableForThoseWhoHaveItOpen(t *testing.T) {
	m := newMachine(t, ownGroup)
	m.show("one")
	dir, err := os.Open(m.usr.Path)
	m.check(err)
	defer dir.Close()
	m.show("two")
	m.detach()
	content := make([]byte, 10)
	fd, err := unix.Openat(int(dir.Fd()), "version", unix.O_RDONLY, 0)
	m.check(err)
	defer unix.Close(fd)
	n, err := unix.Read(fd, content)
	m.check(err)
	if got := string(content[:n]); got != "one" {
		t.Errorf("the old tree shows %q", got)
	}
}

func TestBootedTreeIsFoundAgainWhenThePrivateDirectoryIsLost(t *testing.T) {
	forEachLayout(t, func(t *testing.T, m *machine) {
		before := m.table()
		m.tmpfs("local", "local")
		m.show("one")
		m.show("two")
		m.check(unix.Unmount(m.usr.Private, unix.MNT_DETACH))
		m.check(os.RemoveAll(m.usr.Private))
		m.show("three")
		if got := m.read("local/name"); got != "local" {
			t.Errorf("the mount below is %q", got)
		}
		m.check(unix.Unmount(m.usr.bootedDir(), 0))
		m.tmpfs("../run/liveapply/mnt/booted", "another tree")
		m.show("four")
		m.check(unix.Unmount(m.usr.Private, unix.MNT_DETACH))
		m.check(os.RemoveAll(m.usr.Private))
		m.detach()
		m.check(unix.Unmount(filepath.Join(m.usr.Path, "local"), 0))
		if diff := cmp.Diff(before, m.table()); diff != "" {
			t.Errorf("the mount table differs afterwards (-before +after):\n%s", diff)
		}
	})
}

// Services with ProtectSystem= and the like run in a namespace that is a slave of the host's.
func TestSlaveNamespacesSeeTheSwitch(t *testing.T) {
	for name, l := range layouts {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, l)
			ask, answer, ended := make(chan bool), make(chan string), make(chan error)
			go func() {
				ended <- InMountNamespace(func() error {
					for range ask {
						content, err := os.ReadFile(filepath.Join(m.usr.Path, "version"))
						if err != nil {
							content = []byte(err.Error())
						}
						answer <- string(content)
					}
					return nil
				})
			}()
			sees := func(want string) {
				t.Helper()
				ask <- true
				if got := <-answer; got != want {
					t.Errorf("the service sees %q, want %q", got, want)
				}
			}
			sees("booted")
			for _, tree := range []string{"one", "two", "three"} {
				m.show(tree)
				sees(tree)
			}
			m.detach()
			sees("booted")
			close(ask)
			m.check(<-ended)
		})
	}
}

func TestNamespaceIsThrownAway(t *testing.T) {
	m := newMachine(t, ownGroup)
	before := m.table()
	err := InMountNamespace(func() error {
		m.tmpfs("local", "inside")
		if got := m.read("local/name"); got != "inside" {
			return fmt.Errorf("inside, the file is %q", got)
		}
		if !slices.Contains(m.inspect().Submounts, "local") {
			return fmt.Errorf("Inspect does not see the mount: %+v", m.inspect())
		}
		return nil
	})
	m.check(err)
	if diff := cmp.Diff(before, m.table()); diff != "" {
		t.Error(diff)
	}
}
