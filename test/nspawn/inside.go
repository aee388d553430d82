package nspawn

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// commandLimit is how long a command inside a machine may take.
const commandLimit = 3 * time.Minute

// Result is what a command inside the machine did. Output is without the final newline.
type Result struct {
	Stdout, Stderr string
	Code           int // exit status; -1 if a signal or the time limit ended it
}

// Try runs a command inside the machine.
func (m *Machine) Try(name string, args ...string) Result {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := m.command(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := runUnfreezing(cmd)
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		m.t.Fatalf("%s: run %s: %v", m.name, name, err)
	}
	return Result{
		Stdout: strings.TrimSuffix(stdout.String(), "\n"),
		Stderr: strings.TrimSuffix(stderr.String(), "\n"),
		Code:   cmd.ProcessState.ExitCode(),
	}
}

// Run runs a command inside the machine, which must succeed, and returns its standard output.
func (m *Machine) Run(name string, args ...string) string {
	m.t.Helper()
	result := m.Try(name, args...)
	if result.Code != 0 {
		m.t.Fatalf("%s: %s %s: exit status %d\n%s\n%s", m.name, name, strings.Join(args, " "), result.Code, result.Stdout, result.Stderr)
	}
	return result.Stdout
}

// command is a command inside all namespaces of the machine, as root, in its root directory.
func (m *Machine) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	m.t.Helper()
	if m.pid == 0 {
		m.t.Fatalf("%s is off: cannot run %s", m.name, name)
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target=" + strconv.Itoa(m.pid), "--all", "--", name}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "HOME=/root", "LC_ALL=C.UTF-8", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=",
		"SYSTEMD_BUS_TIMEOUT=" + strconv.Itoa(int(commandLimit.Seconds()))} // of systemctl, busctl, …: 25 seconds by default
	// nsenter runs the command as its child: a signal has to reach both.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// Process is a command that runs inside a machine in the background.
type Process struct {
	t    TB
	cmd  *exec.Cmd
	done chan error

	mu     sync.Mutex
	output bytes.Buffer
}

// Start runs a command inside the machine in the background, until it ends, is stopped, or the test ends.
// It is in no unit of the machine; where this matters, run it by systemd-run.
func (m *Machine) Start(name string, args ...string) *Process {
	m.t.Helper()
	p := &Process{t: m.t, done: make(chan error, 1), cmd: m.command(context.Background(), name, args...)}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	m.check(startUnfreezing(p.cmd))
	go func() { p.done <- p.cmd.Wait() }()
	m.t.Cleanup(func() { p.signal(syscall.SIGKILL) })
	return p
}

// Write collects the output; it serves the process alone.
func (p *Process) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.Write(data)
}

// Output returns what the process has written so far, to standard output and standard error.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// Stop sends SIGTERM and waits for the end. It returns all output.
func (p *Process) Stop() string {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	output, _ := p.Wait()
	return output
}

// Wait waits for the end and returns all output, and an error if the process did not exit with 0.
func (p *Process) Wait() (string, error) {
	p.t.Helper()
	select {
	case err := <-p.done:
		p.done <- err
		return p.Output(), err
	case <-time.After(commandLimit):
		p.t.Fatalf("%s still runs. Its output:\n%s", p.cmd, p.Output())
		return "", nil
	}
}

// signal reaches nsenter and its child; a process that has ended is none.
func (p *Process) signal(sig syscall.Signal) {
	if err := syscall.Kill(-p.cmd.Process.Pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		p.t.Logf("signal %s: %v", p.cmd, err)
	}
}

// Path returns the host's path of a path inside the running machine, through /proc: what the machine's
// mounts show there now, at native speed. Absolute symbolic links inside it lead to the host.
func (m *Machine) Path(path string) string {
	m.t.Helper()
	if m.pid == 0 {
		m.t.Fatalf("%s is off: cannot look at %s", m.name, path)
	}
	return filepath.Join("/proc", strconv.Itoa(m.pid), "root", path)
}

// Read returns the content of a file.
func (m *Machine) Read(path string) string {
	m.t.Helper()
	data, err := os.ReadFile(m.Path(path))
	m.check(err)
	return string(data)
}

// Write makes or replaces the content of a file; a new one is owned by root and has mode 0644.
func (m *Machine) Write(path, content string) {
	m.t.Helper()
	m.check(os.WriteFile(m.Path(path), []byte(content), 0o644))
}

// Exists reports whether there is something at a path; it does not follow a symbolic link there.
func (m *Machine) Exists(path string) bool {
	m.t.Helper()
	_, err := os.Lstat(m.Path(path))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.check(err)
	}
	return err == nil
}

// Snapshot records all that is at and below a path inside the machine.
func (m *Machine) Snapshot(path string) Snapshot {
	m.t.Helper()
	s, err := TakeSnapshot(m.Path(path))
	m.check(err)
	return s
}

// Journal returns the messages of this boot that journalctl's arguments select ("--unit=…", "MESSAGE_ID=…").
func (m *Machine) Journal(args ...string) string {
	m.t.Helper()
	m.Run("journalctl", "--sync")
	return m.Run("journalctl", append([]string{"--boot", "--no-pager", "--quiet"}, args...)...)
}

// Listen returns a listener in the machine's network, which is closed when the test ends: what it accepts, the test serves.
func (m *Machine) Listen(address string) net.Listener {
	m.t.Helper()
	network, err := os.Open(filepath.Join("/proc", strconv.Itoa(m.pid), "ns/net"))
	m.check(err)
	defer network.Close()
	type result struct {
		listener net.Listener
		err      error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this function
		if err := unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		listener, err := net.Listen("tcp", address)
		done <- result{listener, err}
	}()
	r := <-done
	m.check(r.err)
	m.t.Cleanup(func() { r.listener.Close() })
	return r.listener
}

// Mounts returns the machine's mount table.
func (m *Machine) Mounts() []*mountinfo.Info {
	m.t.Helper()
	table, err := os.Open(m.Path("/proc/1/mountinfo"))
	m.check(err)
	defer table.Close()
	mounts, err := mountinfo.GetMountsFromReader(table, nil)
	m.check(err)
	return mounts
}

// MountsAt returns the mounts at one path, the lowest of the stack first.
func (m *Machine) MountsAt(path string) []*mountinfo.Info {
	m.t.Helper()
	var at []*mountinfo.Info
	for _, mount := range m.Mounts() {
		if mount.Mountpoint == path {
			at = append(at, mount)
		}
	}
	return at
}

// BootedCommit returns the commit that ostree admin status marks as booted.
func (m *Machine) BootedCommit() string {
	m.t.Helper()
	for line := range strings.Lines(m.Run("ostree", "admin", "status")) {
		if fields := strings.Fields(line); len(fields) >= 3 && fields[0] == "*" && fields[1] == osName {
			commit, _, _ := strings.Cut(fields[2], ".")
			return commit
		}
	}
	return ""
}
