package underlay

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
)

// tryLimit is how long a tried program may take. It is one like /usr/bin/true.
const tryLimit = 30 * time.Second

// nobody is the user and the group that a tried program runs as: the kernel's overflow id, which owns nothing.
const nobody = 65534

// maxOutput is how much of a program's output an error tells.
const maxOutput = 2048

// Program is a program to try.
type Program struct {
	Name string   // its path, or what messages call File
	File *os.File // of another tree, but to run with the loader and the libraries of this one; nil for Name
	Args []string
	Root string // the root directory of the system that Path is in; "" is "/"
}

// Try does what Switch would do, but in a mount namespace of its own, and runs programs in it, without privileges and
// environment. The error tells what the program said and how it ended. So a tree is refused here whose loader
// or C library starts no program, which the kernel cannot compose, or which lacks a mount point in use.
//
// The upper directory of a writable overlay is the topmost layer here, and is not written: it may be in use.
func (u Usr) Try(ctx context.Context, stack Stack, programs ...Program) error {
	if err := stack.check(); err != nil {
		return fmt.Errorf("trying %s: %w", stack.Source, err)
	}
	err := InMountNamespace(func() error {
		if err := u.mountCandidate(stack.readOnly()); err != nil {
			return err
		}
		for _, program := range programs {
			if err := program.run(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("trying %s: %w", stack.Source, err)
	}
	return nil
}

// mountCandidate shows the tree at Path. Nobody looks, so it need not be one step, and the booted tree can be uncovered.
func (u Usr) mountCandidate(stack Stack) error {
	now, err := u.look()
	if err != nil {
		return err
	}
	if err := now.refuseOthers(); err != nil {
		return err
	}
	submounts := now.submounts(now.visible)
	clones, err := u.cloneAll(submounts)
	if err != nil {
		return err
	}
	defer beneath.CloseAll(clones)
	if err := u.uncoverTo(0); err != nil {
		return err
	}
	candidate, err := u.compose(stack.above(u.Path), now.attributes(stack))
	if err != nil {
		return err
	}
	defer candidate.Close()
	points, err := openMountPoints(candidate, u.Path, submounts, clones)
	if err != nil {
		return err
	}
	defer beneath.CloseAll(points)
	if err := moveMount(candidate, u.Path, 0); err != nil {
		return err
	}
	for i, clone := range clones {
		if err := moveMount(clone, filepath.Join(u.Path, submounts[i]), 0); err != nil {
			return err
		}
	}
	return nil
}

// run starts a program from the calling thread, which ends soon after: so it is not only killed with
// this process (PR_SET_PDEATHSIG is about the thread), but can also be denied setuid programs by way of the thread.
func (p Program) run(ctx context.Context) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl no_new_privs: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	var output limited
	cmd := exec.CommandContext(ctx, p.Name, p.Args...)
	if p.File != nil {
		cmd.Path, cmd.ExtraFiles = "/proc/self/fd/3", []*os.File{p.File}
	}
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot:     p.Root,
		Credential: &syscall.Credential{Uid: nobody, Gid: nobody},
		Setsid:     true, // no terminal, and one process group to kill
		Pdeathsig:  unix.SIGKILL,
	}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second // for those of its children that keep the output open
	err := cmd.Run()
	if ctxErr := context.Cause(ctx); err != nil && ctxErr != nil {
		err = fmt.Errorf("%w (%w)", ctxErr, err)
	}
	if err == nil {
		return nil
	}
	said := strings.TrimSpace(output.String())
	if said == "" {
		return fmt.Errorf("the tree cannot run %s: %w", p.Name, err)
	}
	return fmt.Errorf("the tree cannot run %s: %w: it said %q", p.Name, err, said)
}

// limited keeps the beginning of what is written to it, and no more (a bytes.Buffer inside it would be read into as a whole). Children that
// a killed program leaves may still write while it is read.
type limited struct {
	mu   sync.Mutex
	kept bytes.Buffer
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept.Write(p[:min(len(p), maxOutput-l.kept.Len())])
	return len(p), nil
}

func (l *limited) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kept.String()
}
