package etcmerge

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/ostree"
)

// The test program is also the program that is killed, or that holds a lock: with an operation in the environment, and what it needs.
const (
	otherOp   = "ETCMERGE_TEST_OP"
	otherEtc  = "ETCMERGE_TEST_ETC"
	otherRoot = "ETCMERGE_TEST_ROOT" // has sys/, and plan.json or trees
)

func TestMain(m *testing.M) {
	op := os.Getenv(otherOp)
	if op == "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // strace counts the calls of each thread
	if err := runOther(op); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func runOther(op string) error {
	root := os.Getenv(otherRoot)
	dirs := Dirs{Etc: os.Getenv(otherEtc), Store: filepath.Join(root, "sys/ostree/store")}
	ctx := context.Background()
	switch op {
	case "apply":
		data, err := os.ReadFile(filepath.Join(root, "plan.json"))
		if err != nil {
			return err
		}
		plan := &Plan{}
		if err := json.Unmarshal(data, plan); err != nil {
			return err
		}
		repo, err := ostree.OpenRepo(filepath.Join(root, "sys/ostree/repo"))
		if err != nil {
			return err
		}
		_, err = Apply(ctx, repo, plan, dirs, nil)
		return err
	case "put":
		data, err := os.ReadFile(filepath.Join(root, "trees"))
		if err != nil {
			return err
		}
		_, err = Put(ctx, dirs, strings.Fields(string(data)))
		return err
	case "commit":
		return Fold(dirs)
	case "rollback":
		_, err := Rollback(ctx, dirs)
		return err
	case "reset":
		_, err := Reset(ctx, dirs)
		return err
	case "lock", "trylock":
		fd, err := unix.Open(filepath.Join(dirs.Etc, ".pwd.lock"), unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		if err := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lock); err != nil {
			return err
		}
		fmt.Println("locked")
		if op == "lock" {
			_, err = io.Copy(io.Discard, os.Stdin)
		}
		return err
	}
	return fmt.Errorf("unknown operation %q", op)
}

// otherCommand is an operation in another process, in front of which a tracer can be put.
func (l *lab) otherCommand(op string, tracer ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	argv := append(tracer, self)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), otherOp+"="+op, otherEtc+"="+l.dirs.Etc, otherRoot+"="+l.root, "GOMAXPROCS=1")
	return cmd
}

// other starts an operation that lasts until the function that it returns is called.
func (l *lab) other(t *testing.T, op string) (release func()) {
	t.Helper()
	cmd := l.otherCommand(op)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("%s: %q, %v", op, line, err)
	}
	return func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", op, err)
		}
	}
}
