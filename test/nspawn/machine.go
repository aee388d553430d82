package nspawn

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// osName is the stateroot of every machine.
const osName = "debian"

// How long the machine may take to come up or to go down. Both take about a second; but systemd itself waits for a unit that does not stop for a minute
// and a half, and whoever stages a deployment or goes down waits until the disk has all that every machine has written.
const (
	bootLimit     = 3 * time.Minute
	shutdownLimit = 3 * time.Minute
)

// rebootStatus is how systemd-nspawn --keep-unit exits when the machine asks for a reboot.
const rebootStatus = 133

// Options say what a machine has beyond the usual.
type Options struct {
	// KernelArgs are added to the kernel command line of every boot.
	KernelArgs []string
	// WritableSysroot leaves /sysroot writable, as OSTree does unless it is told otherwise. Most
	// distributions tell it otherwise, and so do these machines by default.
	WritableSysroot bool
	// UsrInPeerGroupOfRoot puts /usr into the mount peer group of its parent: what is mounted on /usr
	// then propagates onto itself, and MOVE_MOUNT_BENEATH is EINVAL. systemd-nspawn with --bind=+/usr
	// makes such a machine; ostree-prepare-root makes a group of its own, the default here.
	UsrInPeerGroupOfRoot bool
	// Automatic has the machine apply what is staged without being asked. Otherwise liveapply.auto=no is on the kernel command line: most tests stage
	// deployments to see what a person makes of them.
	Automatic bool
	// NspawnArgs are further arguments for systemd-nspawn, for example --bind=…
	NspawnArgs []string
}

// Machine is a sysroot and, while it is on, the container that runs from it. A failure of a method fails
// the test that the machine belongs to; see [Machine.For].
type Machine struct {
	t TB
	*machine
}

// machine is what every Machine of the same sysroot shares.
type machine struct {
	lab     *Lab
	name    string
	dir     string // <run>/<name>: sysroot/ and a console-N file per boot
	plain   bool   // not of OSTree: sysroot/ is its root
	options Options

	boots   int
	nspawn  *exec.Cmd
	exited  chan struct{} // closed when nspawn has ended
	console string        // path of this boot's console
	pid     int           // the host's number of the machine's process 1; 0 while it is off
}

// Machine makes a machine with one deployment, of the given commit, and leaves it off.
func (l *Lab) Machine(t TB, commit string, options Options) *Machine {
	t.Helper()
	m := l.newMachine(t, options)
	must(t, "ostree", "admin", "init-fs", "--modern", m.Sysroot())
	m.configure("sysroot.bootloader", "none")
	m.configure("sysroot.readonly", strconv.FormatBool(!options.WritableSysroot))
	must(t, "ostree", "admin", "--sysroot="+m.Sysroot(), "os-init", osName)
	ref := m.Pull(commit)
	// Without a sync of all that the host has, which libostree 2022.7 waits for.
	must(t, "env", "OSTREE_SYSROOT_OPTS=skip-sync", "ostree", "admin", "--sysroot="+m.Sysroot(), "deploy", "--os="+osName, "--karg=rw", ref)
	return m
}

// PlainMachine makes a machine without OSTree, of what a commit has, and leaves it off: its root is a directory like any other, its
// /usr can be written to, and /etc is where Debian has it.
func (l *Lab) PlainMachine(t TB, commit string, options Options) *Machine {
	t.Helper()
	m := l.newMachine(t, options)
	m.plain = true
	must(t, "ostree", "--repo="+l.repo(), "checkout", "--force-copy", "--union", commit, m.Sysroot())
	at := func(path string) string { return filepath.Join(m.Sysroot(), path) }
	m.check(os.Rename(at("usr/etc"), at("etc")))
	for _, path := range []string{"ostree", "sysroot"} {
		m.check(os.Remove(at(path)))
	}
	for _, path := range []string{"home", "srv", "opt", "mnt", "media", "root"} {
		m.check(os.Remove(at(path))) // a link into /var
		m.check(os.Mkdir(at(path), 0o755))
	}
	return m
}

func (l *Lab) newMachine(t TB, options Options) *Machine {
	t.Helper()
	l.mu.Lock()
	l.machines++
	name := l.prefix() + strconv.Itoa(l.machines)
	l.mu.Unlock()

	m := &Machine{t, &machine{lab: l, name: name, dir: filepath.Join(l.run, name), options: options}}
	t.Cleanup(m.destroy)
	m.check(os.MkdirAll(m.Sysroot(), 0o755))
	return m
}

func (m *Machine) configure(key, value string) {
	m.t.Helper()
	must(m.t, "ostree", "--repo="+m.Repo(), "config", "set", key, value)
}

// For returns the same machine for a subtest: failures of its methods are then the subtest's.
func (m *Machine) For(t TB) *Machine { return &Machine{t, m.machine} }

// Sysroot is the host's path of the physical root.
func (m *Machine) Sysroot() string { return filepath.Join(m.dir, "sysroot") }

// SetKernelArgs replaces those of [Options] from the next boot on.
func (m *Machine) SetKernelArgs(args ...string) { m.options.KernelArgs = args }

// Repo is the host's path of the machine's repo. It shares its objects with other repos by hard links, so
// a test that damages one replaces or removes the file; see [Machine.ReplaceObject].
func (m *Machine) Repo() string { return filepath.Join(m.Sysroot(), "ostree", "repo") }

// Pull brings a commit into the machine's repo, whether the machine is on or off, under a ref of its own,
// which it returns.
func (m *Machine) Pull(commit string) (ref string) {
	m.t.Helper()
	must(m.t, "ostree", "--repo="+m.Repo(), "pull-local", m.lab.repo(), commit)
	ref = "test/" + commit[:12]
	must(m.t, "ostree", "--repo="+m.Repo(), "refs", "--force", "--create="+ref, commit)
	return ref
}

// ReplaceObject puts a changed copy in the place of an object ("<checksum>.dirtree", "….file").
func (m *Machine) ReplaceObject(name string, edit func([]byte) []byte) {
	m.t.Helper()
	path := filepath.Join(m.Repo(), "objects", name[:2], name[2:])
	data, err := os.ReadFile(path)
	m.check(err)
	must(m.t, "cp", "-a", path, path+".edited")
	m.check(os.WriteFile(path+".edited", edit(data), 0o644))
	m.check(os.Rename(path+".edited", path))
}

// Stage stages the deployment of a commit that was pulled: it is finalized when the machine goes down, by a service that systemd
// starts when it sees the deployment.
func (m *Machine) Stage(commit string) {
	m.t.Helper()
	m.Run("ostree", "admin", "deploy", "--stage", "--os="+osName, "test/"+commit[:12])
	m.Run("sh", "-c", "until systemctl is-active --quiet ostree-finalize-staged.service; do sleep 0.01; done")
}

// Boot starts the deployment that a boot loader would start, and waits until systemd has finished.
func (m *Machine) Boot() {
	m.t.Helper()
	if m.pid != 0 {
		m.t.Fatalf("%s is on already", m.name)
	}
	m.start()
	for deadline := time.Now().Add(bootLimit); ; time.Sleep(20 * time.Millisecond) {
		if m.pid == 0 {
			m.pid = firstProcess(m.cgroup())
		}
		if m.pid != 0 {
			// It waits as soon as there is somebody to ask.
			switch state := m.Try("systemctl", "is-system-running", "--wait").Stdout; state {
			case "running":
				return
			case "degraded":
				m.t.Logf("%s is degraded: %s", m.name, m.Try("systemctl", "--failed", "--plain", "--no-legend").Stdout)
				return
			}
		}
		if m.hasExited() || time.Now().After(deadline) {
			m.pid = 0
			m.t.Fatalf("%s did not boot. Its console:\n%s", m.name, m.Console())
		}
	}
}

// start runs the script boot in a mount namespace of its own.
func (m *Machine) start() {
	m.t.Helper()
	kernelArgs := m.nextKernelArgs()
	m.boots++
	m.console = filepath.Join(m.dir, "console-"+strconv.Itoa(m.boots))
	console, err := os.Create(m.console)
	m.check(err)
	defer console.Close()

	args := []string{"--mount", "--propagation=private", "--", m.lab.script("boot"),
		m.name, m.Sysroot(), m.bootedUsr(kernelArgs), strings.Join(kernelArgs, " ")}
	m.nspawn = exec.Command("unshare", append(args, m.options.NspawnArgs...)...)
	m.nspawn.Stdout, m.nspawn.Stderr = console, console
	m.nspawn.Env = append(os.Environ(), "USR_IN_PEER_GROUP_OF_ROOT="+strconv.FormatBool(m.options.UsrInPeerGroupOfRoot))
	m.check(startUnfreezing(m.nspawn))

	m.exited = make(chan struct{})
	go func(nspawn *exec.Cmd, exited chan struct{}) {
		nspawn.Wait() // the status is read from ProcessState
		close(exited)
	}(m.nspawn, m.exited)
}

// nextKernelArgs returns the kernel command line of the next boot.
func (m *Machine) nextKernelArgs() []string {
	m.t.Helper()
	if m.plain {
		return append([]string{"rw"}, m.options.KernelArgs...)
	}
	args := strings.Fields(m.BootEntry()["options"])
	if !m.options.Automatic {
		args = append(args, "liveapply.auto=no")
	}
	return append(args, m.options.KernelArgs...)
}

// BootEntry returns the boot loader entry that comes first: the one with the highest version (the Boot Loader Specification, which
// OSTree follows). Its keys are "linux", "initrd", "options", ….
func (m *Machine) BootEntry() map[string]string {
	m.t.Helper()
	entries, err := filepath.Glob(filepath.Join(m.Sysroot(), "boot/loader/entries/*.conf"))
	m.check(err)
	highest := 0
	var first map[string]string
	for _, entry := range entries {
		data, err := os.ReadFile(entry)
		m.check(err)
		fields := map[string]string{}
		for line := range strings.Lines(string(data)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			fields[key] = value
		}
		version, err := strconv.Atoi(fields["version"])
		m.check(err)
		if version > highest {
			highest, first = version, fields
		}
	}
	if first == nil {
		m.t.Fatalf("%s has no boot loader entry", m.name)
	}
	return first
}

// bootedUsr returns the /usr of the deployment that the kernel argument ostree= names.
func (m *Machine) bootedUsr(kernelArgs []string) string {
	m.t.Helper()
	if m.plain {
		return ""
	}
	i := slices.IndexFunc(kernelArgs, func(arg string) bool { return strings.HasPrefix(arg, "ostree=") })
	if i < 0 {
		m.t.Fatalf("no ostree= in the kernel command line %q", kernelArgs)
	}
	deployment, err := filepath.EvalSymlinks(filepath.Join(m.Sysroot(), strings.TrimPrefix(kernelArgs[i], "ostree=")))
	m.check(err)
	return filepath.Join(deployment, "usr")
}

// Reboot shuts the machine down, which finalizes a staged deployment, and boots it again.
func (m *Machine) Reboot() {
	m.t.Helper()
	m.shutDown("reboot", rebootStatus)
	m.Boot()
}

// PowerOff shuts the machine down.
func (m *Machine) PowerOff() {
	m.t.Helper()
	m.shutDown("poweroff", 0)
}

func (m *Machine) shutDown(verb string, status int) {
	m.t.Helper()
	// The machine may be down before systemctl can report success.
	asked := m.Try("systemctl", "--no-block", verb)
	select {
	case <-m.exited:
	case <-time.After(shutdownLimit):
		m.t.Fatalf("%s did not shut down (systemctl %s: %s). Its console:\n%s", m.name, verb, asked.Stderr, m.Console())
	}
	m.pid = 0
	if got := m.nspawn.ProcessState.ExitCode(); got != status {
		m.t.Fatalf("%s: systemd-nspawn exited with %d after systemctl %s, want %d. Console:\n%s", m.name, got, verb, status, m.Console())
	}
	m.check(killCgroup(m.cgroup()))
}

// PowerCut ends every process of the machine at once, without warning. /run is gone; what had been
// written to /etc, /var and the repo is as it was at that instant.
func (m *Machine) PowerCut() {
	m.t.Helper()
	m.check(killCgroup(m.cgroup()))
	<-m.exited
	m.pid = 0
}

func (m *Machine) cgroup() string { return filepath.Join(m.lab.cgroups, m.name) }

func (m *Machine) hasExited() bool {
	select {
	case <-m.exited:
		return true
	default:
		return false
	}
}

// Console returns what the present or last boot wrote to the console.
func (m *Machine) Console() string {
	data, err := os.ReadFile(m.console)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err.Error()
	}
	return string(data)
}

// destroy cuts the power and removes the sysroot. If the test failed, the end of the journal is shown.
func (m *Machine) destroy() {
	if m.t.Failed() && m.pid != 0 && !m.hasExited() {
		m.t.Logf("the last journal lines of %s:\n%s", m.name, m.Try("journalctl", "--boot", "--lines=60", "--no-pager", "--output=short-monotonic").Stdout)
		m.t.Logf("what finalized staged deployments there, in all boots:\n%s", m.Try("journalctl", "--unit=ostree-finalize-staged.service", "--lines=20", "--no-pager").Stdout)
	}
	if m.exited != nil {
		m.PowerCut()
	}
	if err := removeMachine(m.dir); err != nil {
		m.t.Fatalf("%v", err)
	}
}

func (m *Machine) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%s: %v", m.name, err)
	}
}
