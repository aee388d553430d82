package qemu

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/liveapply/liveapply/test/nspawn"
)

// How long a machine may take to come up, to answer, and to go down. On an emulated processor the first takes about half a minute.
const (
	bootLimit     = 10 * time.Minute
	commandLimit  = 5 * time.Minute
	shutdownLimit = 5 * time.Minute
)

// HostAddress is the host's loopback address, as machines see it.
const HostAddress = "10.0.2.2"

// Machine is a virtual machine with a disk of its own. A failure of a method fails the test that it belongs to.
type Machine struct {
	t       nspawn.TB
	system  System
	dir     string // disk, console, and the socket of the agent
	qemu    *exec.Cmd
	exited  chan struct{} // closed when qemu has ended
	agent   *agent
	initrds []string // what is in the initramfs beside the system's own
}

// Machine makes a machine, and leaves it off. Each boot has the same disk.
func (s System) Machine(t nspawn.TB) *Machine {
	t.Helper()
	dir, err := os.MkdirTemp(s.lab.Dir(), "qemu-")
	if err != nil {
		t.Fatalf("%v", err)
	}
	m := &Machine{t: t, system: s, dir: dir}
	t.Cleanup(m.destroy)
	must(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", s.disk, "-F", "raw", m.path("disk"))
	return m
}

func (m *Machine) path(name string) string { return filepath.Join(m.dir, name) }

// AddToInitramfs has the initramfs of later boots contain the files of a directory, too, as a boot loader can arrange it.
func (m *Machine) AddToInitramfs(dir string) {
	m.t.Helper()
	archive, err := os.CreateTemp(m.dir, "initramfs-")
	m.check(err)
	defer archive.Close()
	pack := exec.Command("sh", "-c", "find . -print0 | cpio --quiet --null --create --format=newc")
	pack.Dir, pack.Stdout, pack.Stderr = dir, archive, os.Stderr
	m.check(pack.Run())
	m.initrds = append(m.initrds, archive.Name())
}

// Boot starts the machine with these words added to the kernel command line, and waits until systemd has finished.
func (m *Machine) Boot(words ...string) {
	m.t.Helper()
	if m.agent != nil {
		m.t.Fatalf("the machine is on already")
	}
	m.check(os.WriteFile(m.path("initramfs"), m.initramfs(), 0o600))
	listener, err := listen(m.path("agent"))
	m.check(err)
	defer listener.Close()
	m.qemu = exec.Command("qemu-system-x86_64", m.arguments(words)...)
	log, err := os.Create(m.path("qemu.log"))
	m.check(err)
	defer log.Close()
	m.qemu.Stdout, m.qemu.Stderr = log, log
	m.check(m.qemu.Start())
	m.exited = make(chan struct{})
	go func(qemu *exec.Cmd, exited chan struct{}) {
		qemu.Wait() // that it has ended says enough
		close(exited)
	}(m.qemu, m.exited)
	m.agent, err = greet(listener, m.exited, bootLimit)
	if err != nil {
		m.t.Fatalf("the machine did not boot: %v. Its console:\n%s", err, m.Console())
	}
	m.Try("systemctl", "is-system-running", "--wait")
}

// initramfs is one archive after the other, which the kernel unpacks one after the other.
func (m *Machine) initramfs() []byte {
	m.t.Helper()
	var all []byte
	for _, path := range append([]string{m.system.initramfs}, m.initrds...) {
		data, err := os.ReadFile(path)
		m.check(err)
		all = append(all, data...)
		all = append(all, make([]byte, -len(all)&3)...) // each begins at a multiple of four
	}
	return all
}

func (m *Machine) arguments(words []string) []string {
	commandLine := append([]string{
		m.system.options, "console=ttyS0", "liveapply.auto=no",
		// What would wait for a person ends the machine.
		"panic=-1", "rd.shell=0", "rd.emergency=poweroff",
	}, words...)
	return []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-accel", "tcg", "-machine", "q35", "-smp", "2", "-m", "1024",
		"-kernel", m.system.kernel, "-initrd", m.path("initramfs"), "-append", strings.Join(commandLine, " "),
		"-serial", "file:" + m.path("console"),
		"-drive", "if=virtio,cache=unsafe,format=qcow2,file=" + m.path("disk"),
		"-device", "virtio-rng-pci",
		"-netdev", "user,id=network", "-device", "virtio-net-pci,netdev=network,romfile=",
		"-chardev", "socket,id=agent,path=" + m.path("agent"),
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
	}
}

// Try runs a command inside the machine.
func (m *Machine) Try(name string, args ...string) nspawn.Result {
	m.t.Helper()
	if m.agent == nil {
		m.t.Fatalf("the machine is off: cannot run %s", name)
	}
	result, err := m.agent.run(nil, name, args...)
	if err != nil {
		m.t.Fatalf("run %s %s in the machine: %v. Its console:\n%s", name, strings.Join(args, " "), err, m.Console())
	}
	return result
}

// Run runs a command inside the machine, which must succeed, and returns its standard output.
func (m *Machine) Run(name string, args ...string) string {
	m.t.Helper()
	result := m.Try(name, args...)
	if result.Code != 0 {
		m.t.Fatalf("%s %s: exit status %d\n%s\n%s", name, strings.Join(args, " "), result.Code, result.Stdout, result.Stderr)
	}
	return result.Stdout
}

// Write makes or replaces a file.
func (m *Machine) Write(path string, content []byte) {
	m.t.Helper()
	result, err := m.agent.run(content, "dd", "status=none", "of="+path)
	m.check(err)
	if result.Code != 0 {
		m.t.Fatalf("write %s: %s", path, result.Stderr)
	}
}

// PowerOff shuts the machine down.
func (m *Machine) PowerOff() {
	m.t.Helper()
	m.Try("systemctl", "--no-block", "poweroff")
	select {
	case <-m.exited:
	case <-time.After(shutdownLimit):
		m.t.Fatalf("the machine did not shut down. Its console:\n%s", m.Console())
	}
	m.agent.close()
	m.agent = nil
}

// PowerCut ends the machine at once. What it has written to its disk stays, and nothing else.
func (m *Machine) PowerCut() {
	m.t.Helper()
	m.check(m.qemu.Process.Kill())
	<-m.exited
	m.agent.close()
	m.agent = nil
}

// Console returns what the present or last boot wrote to the serial console.
func (m *Machine) Console() string {
	data, err := os.ReadFile(m.path("console"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err.Error()
	}
	return string(data)
}

// destroy cuts the power and removes the disk.
func (m *Machine) destroy() {
	if m.t.Failed() {
		m.t.Logf("the console of the machine:\n%s", m.Console())
	}
	if m.exited != nil {
		m.qemu.Process.Kill() // it may have ended
		<-m.exited
	}
	if err := os.RemoveAll(m.dir); err != nil {
		m.t.Fatalf("%v", err)
	}
}

func (m *Machine) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("virtual machine: %v", err)
	}
}
