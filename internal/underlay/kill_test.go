package underlay

import (
	stdcmp "cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// call is what a child process is to do. Without a stack it is Detach.
type call struct {
	Usr       Usr
	NoBeneath bool
	Stack     Stack
}

const callVariable = "UNDERLAY_TEST_CALL"

// makeCall does what the environment says, in a child process: it is what TestMain is for there. All
// system calls are made by one thread, so that they can be counted.
func makeCall(text string) int {
	runtime.LockOSThread()
	var c call
	err := json.Unmarshal([]byte(text), &c)
	c.Usr.noBeneath = c.NoBeneath
	switch {
	case err != nil:
	case c.Stack.Source.Live == "":
		err = c.Usr.Detach()
	default:
		_, err = c.Usr.Switch(c.Stack)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// point is a moment in a call: the entry to the nth system call of that name.
type point struct {
	syscall string
	n       int
}

// changing are the system calls by which Switch and Detach change something outside of the process.
var changing = []string{"move_mount", "umount2", "mount_setattr", "mkdirat", "symlinkat", "unlinkat", "renameat"}

// killedAt makes the call in a process that is killed at a point. It returns false if the call does not get there.
func (m *machine) killedAt(p point, c call) bool {
	m.t.Helper()
	c.Usr, c.NoBeneath = m.usr, m.usr.noBeneath
	text, err := json.Marshal(c)
	m.check(err)
	cmd := exec.Command("strace", "-f", "-qqq", "-o", "/dev/null", "-e", "trace="+p.syscall,
		"-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", p.syscall, p.n), "/proc/self/exe")
	cmd.Args[len(cmd.Args)-1], err = os.Executable()
	m.check(err)
	cmd.Env = append(os.Environ(), callVariable+"="+string(text))
	output, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL {
		return true
	}
	if err != nil {
		m.t.Fatalf("%v: %s", err, output)
	}
	return false
}

// scenario is a call that is killed. Before it, a mount below /usr was made and another one unmounted, except if nothing was live.
type scenario struct {
	name      string
	noBeneath bool
	before    func(m *machine) // what was done before
	call      string           // the tree that is switched to, "" for Detach
	writable  bool             // that tree, and the one after it, have an upper directory
	visible   []string         // what may be visible after the kill
}

var scenarios = []scenario{
	{"first switch", false, func(*machine) {}, "new", false, []string{"booted", "new"}},
	{"later switch", false, showOld, "new", false, []string{"old", "new"}},
	{"switch on top", true, showOld, "new", false, []string{"old", "new"}},
	{"detach", false, showOld, "", false, []string{"old", "booted"}},
	{"detach of a stack", true, stackOld, "", false, []string{"old", "older", "booted"}},
	{"detach after a swap was cut short", false, cutShort, "", false, []string{"old", "half", "booted"}},
	{"switch after a swap was cut short", false, cutShort, "new", false, []string{"old", "half", "new"}},
	{"switch to a writable tree", false, showOld, "new", true, []string{"old", "new"}},
	{"switch from a writable tree to another", false, showWritable, "new", true, []string{"old", "new"}},
	{"switch from a writable tree to another on top", true, showWritable, "new", true, []string{"old", "new"}},
	{"detach from a writable tree", false, showWritable, "", true, []string{"old", "booted"}},
	{"switch after a freeze was cut short", false, cutFreezeShort, "new", true, []string{"old", "new"}},
}

func showOld(m *machine) { m.show("old"); m.changeMounts() }

func showWritable(m *machine) {
	_, err := m.usr.Switch(m.writable("old"))
	m.check(err)
	m.changeMounts()
}

func cutFreezeShort(m *machine) {
	showWritable(m)
	now, err := m.usr.look()
	m.check(err)
	m.check(m.usr.freeze(now))
}

func stackOld(m *machine) { m.show("older"); showOld(m) }

// cutShort does the first of the two steps of a swap.
func cutShort(m *machine) {
	m.show("old")
	now, err := m.usr.look()
	m.check(err)
	half, err := m.usr.compose(stackOf("half", m.layer("half"), m.usr.bootedDir()), 0)
	m.check(err)
	defer half.Close()
	m.check(m.usr.assemble(half, now.submounts(now.visible)))
	m.check(m.usr.noteSwap(1))
	m.check(moveMount(half, m.usr.Path, moveMountBeneath))
	m.changeMounts()
	m.shows("old")
}

func (m *machine) changeMounts() {
	m.t.Helper()
	m.tmpfs("lib", "made")
	m.check(unix.Unmount(filepath.Join(m.usr.Path, "with space"), 0))
}

func TestAfterAKillAtAnyPointTheNextCallCleansUp(t *testing.T) {
	for _, s := range scenarios {
		for recovery, l := range map[string]layout{"": ownGroup, "next": parentGroup} {
			t.Run(s.name+", then "+stdcmp.Or(recovery, "detach"), func(t *testing.T) {
				points := 0
				for _, name := range changing {
					for n := 1; s.killAndRecover(newMachine(t, l), point{name, n}, recovery) && !t.Failed(); n++ {
						points++
					}
				}
				if points < 10 {
					t.Errorf("killed at %d points only", points)
				}
			})
		}
	}
}

// killAndRecover has the call killed. Then it switches to the tree recovery, if that is not empty, and detaches. It returns
// false if the call was not killed.
func (s scenario) killAndRecover(m *machine, at point, recovery string) bool {
	t := m.t
	m.usr.noBeneath = s.noBeneath
	m.tmpfs("local", "local")
	m.tmpfs("with space", "space")
	mounts := len(m.table())
	s.before(m)
	submounts := m.inspect().Submounts

	c := call{}
	if s.call != "" {
		c = call{Stack: s.stack(m, s.call)}
	}
	killed := m.killedAt(at, c)
	if now := m.read("version"); !slices.Contains(s.visible, now) {
		t.Errorf("killed at %v: %q is visible", at, now)
	}
	if recovery != "" {
		_, err := m.usr.Switch(s.stack(m, recovery))
		m.check(err)
		m.shows(recovery)
		if s.writable {
			m.canBeWritten(fmt.Sprintf("killed at %v", at))
		}
		if got := m.overlays(); got != 1 && !s.noBeneath {
			t.Errorf("killed at %v: %d overlays of ours after the next switch", at, got)
		}
	}
	m.detach()
	if diff := cmp.Diff(submounts, m.inspect().Submounts); diff != "" {
		t.Errorf("killed at %v: other mount points than before (-before +after):\n%s", at, diff)
	}
	for _, mount := range submounts {
		want := map[string]string{"lib": "made", "local": "local", "with space": "space"}[mount]
		if got := m.read(mount + "/name"); got != want {
			t.Errorf("killed at %v: %s is %q", at, mount, got)
		}
	}
	if got := m.table(); len(got) != mounts { // the one that was made replaces the one that was unmounted
		t.Errorf("killed at %v: %d mounts, before %d:\n%s", at, len(got), mounts, strings.Join(got, "\n"))
	}
	if _, err := os.Lstat(m.usr.Private); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("killed at %v: the private directory is left: %v", at, m.files("root/run"))
	}
	unix.Unmount(m.dir, unix.MNT_DETACH)
	return killed
}

// stack returns a tree of the kind that the scenario is about.
func (s scenario) stack(m *machine, name string) Stack {
	if s.writable {
		return m.writable(name)
	}
	return stackOf(name, m.layer(name))
}

// overlays returns the number of ours at /usr.
func (m *machine) overlays() int {
	m.t.Helper()
	now, err := m.usr.look()
	m.check(err)
	return len(now.ours)
}
