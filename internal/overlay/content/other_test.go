package content

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/liveapply/liveapply/internal/nstest"
)

// The test program is also the program that is killed: with a change of crashes in the environment, and the directory of a lab.
const (
	otherChange = "OVERLAY_TEST_CHANGE"
	otherDir    = "OVERLAY_TEST_DIR"
)

func TestMain(m *testing.M) {
	name := os.Getenv(otherChange)
	if name == "" {
		nstest.Main(m)
		return
	}
	runtime.LockOSThread() // strace counts the calls of each thread
	l := openLab(nil, os.Getenv(otherDir))
	if err := l.change(name); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// tidyChange is a change that does nothing but tidy.
const tidyChange = "tidy"

func (l *lab) change(name string) error {
	if name == tidyChange {
		return l.store.Tidy(func(string) bool { return false })
	}
	return l.try(crashes(l)[name]...)
}

// otherCommand is a change in another process, in front of which a tracer can be put.
func (l *lab) otherCommand(name string, tracer ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	argv := append(tracer, self)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), otherChange+"="+name, otherDir+"="+l.dir, "GOMAXPROCS=1")
	return cmd
}
