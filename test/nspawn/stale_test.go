//go:build nspawn

package nspawn_test

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// outdated is what liveapplyctl needs-restart --json prints.
type outdated struct {
	Complete bool `json:"complete"`
	Owners   []struct {
		Kind      string  `json:"kind"`
		Unit      string  `json:"unit"`
		User      *uint32 `json:"user"`
		Processes []struct {
			PID   int    `json:"pid"`
			Name  string `json:"name"`
			Files []struct {
				Path   string `json:"path"`
				Reason string `json:"reason"`
			} `json:"files"`
		} `json:"processes"`
	} `json:"owners"`
}

// needsRestart asks liveapplyctl, whose exit status has to fit.
func needsRestart(t *testing.T, m *nspawn.Machine) outdated {
	t.Helper()
	result := m.Try("liveapplyctl", "needs-restart", "--json")
	var found outdated
	decode(t, result.Stdout, &found)
	want := 0
	if len(found.Owners) == 0 {
		want = exitNothing
	}
	equal(t, "exit status of needs-restart: "+result.Stderr, result.Code, want)
	equal(t, "needs-restart looked at all", found.Complete, true)
	return found
}

// lines are "kind unit: reason path", sorted, each once.
func (o outdated) lines() []string {
	lines := []string{}
	for _, owner := range o.Owners {
		for _, process := range owner.Processes {
			for _, file := range process.Files {
				lines = append(lines, fmt.Sprintf("%s %s: %s %s", owner.Kind, owner.Unit, file.Reason, file.Path))
			}
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

func (o outdated) pids() []int {
	var pids []int
	for _, owner := range o.Owners {
		for _, process := range owner.Processes {
			pids = append(pids, process.PID)
		}
	}
	slices.Sort(pids)
	return pids
}

func requireOutdated(t *testing.T, m *nspawn.Machine, when string, want ...string) {
	t.Helper()
	if diff := lineDiff(want, needsRestart(t, m).lines()); diff != "" {
		t.Errorf("%s, needs-restart differs (- missing, + too much):\n%s", when, diff)
	}
}

// changeFile gives a program or library another content that works the same.
func changeFile(tree *nspawn.Tree, path string) {
	tree.Write(path, tree.Read(path)+"changed", 0o755)
}

// Scripts are told from what their interpreter has read, and say when it has.
const (
	shellScript  = "#!/bin/sh\necho ready\nwhile :; do sleep 1000; done\n# %s\n"
	pythonScript = "#!/usr/bin/python3\nimport time\nprint('ready', flush=True)\nwhile True:\n    time.sleep(1000)\n# %s\n"
	perlScript   = "#!/usr/bin/perl\n$0 = 'a title';\n$| = 1;\nprint \"ready\\n\";\nsleep 1000 while 1;\n# %s\n"
)

// staleMachine runs a commit with programs for services, which differ from those of the image in their names.
func staleMachine(t *testing.T) (m *nspawn.Machine, v1 string) {
	t.Helper()
	v1 = lab.Derive(t, lab.WithProduct(t, lab.Base(t, nspawn.Trixie, nspawn.Needrestart)), func(tree *nspawn.Tree) {
		for _, name := range []string{"one", "two", "same"} {
			tree.Write("usr/libexec/demo/"+name, tree.Read("usr/bin/sleep")+name, 0o755)
			tree.Write("usr/libexec/demo/"+name+".sh", fmt.Sprintf(shellScript, name), 0o755)
			tree.Write("usr/libexec/demo/"+name+".py", fmt.Sprintf(pythonScript, name), 0o755)
			tree.Write("usr/libexec/demo/"+name+".pl", fmt.Sprintf(perlScript, name), 0o755)
		}
	})
	m = lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	makeTransient(m)
	return m, v1
}

// demo starts a service of a program in /usr/libexec/demo.
func demo(m *nspawn.Machine, unit, program string, properties ...string) {
	args := []string{"--quiet", "--unit=" + unit}
	for _, property := range properties {
		args = append(args, "--property="+property)
	}
	program = "/usr/libexec/demo/" + program
	if filepath.Ext(program) == "" {
		m.Run("systemd-run", append(args, program, "1000000")...)
		waitUntilSleeps(m, unit)
		return
	}
	says := "/run/said-by-" + unit
	m.Run("systemd-run", append(args, "--property=StandardOutput=truncate:"+says, program)...)
	waitUntilSays(m, says)
}

// waitUntilSays waits until a script has said in a file that its interpreter has read it.
func waitUntilSays(m *nspawn.Machine, path string) {
	m.Run("timeout", "60", "sh", "-c", `until grep -q ready "$0"; do sleep 0.05; done`, path)
}

// waitUntilSleeps waits until a service has started what it is.
func waitUntilSleeps(m *nspawn.Machine, unit string) {
	m.Run("timeout", "60", "sh", "-c", `until p=$(systemctl show --value --property=MainPID "$0"); [ "$p" != 0 ] && [ "$(cat /proc/$p/task/$p/children)$(readlink /proc/$p/exe | grep -v -e systemd -e /dash)" ]; do sleep 0.05; done; sleep 0.2`, unit)
}

// libssl returns the file of a library that nginx uses, and nothing else in the machine.
func libssl(t *testing.T, tree *nspawn.Tree) string {
	t.Helper()
	found, err := filepath.Glob(tree.Path("usr/lib/*/libssl.so.3"))
	if err != nil || len(found) != 1 {
		t.Fatalf("got %q, %v", found, err)
	}
	return strings.TrimPrefix(found[0], tree.Path("")+"/")
}

func TestNeedsRestartFindsWhatRunsOnOldFiles(t *testing.T) {
	t.Parallel()
	m, v1 := staleMachine(t)
	m.Run("systemctl", "start", "nginx")
	demo(m, "plain-one", "one")
	demo(m, "plain-two", "two")
	demo(m, "plain-same", "same")
	demo(m, "strict-one", "one", "ProtectSystem=strict", "PrivateTmp=yes", "PrivateDevices=yes")
	demo(m, "strict-same", "same", "ProtectSystem=strict", "PrivateTmp=yes", "PrivateDevices=yes")
	demo(m, "modules-same", "same", "ProtectKernelModules=yes")
	demo(m, "apart-same", "same", "MountFlags=private")
	demo(m, "sh-one", "one.sh")
	demo(m, "sh-same", "same.sh")
	demo(m, "py-one", "one.py")
	demo(m, "py-same", "same.py")
	demo(m, "title-one", "one.pl")
	demo(m, "title-same", "same.pl")
	m.Run("grep", "--null-data", "^a title$", "/proc/"+m.Run("systemctl", "show", "--value", "--property=MainPID", "title-one")+"/cmdline")
	requireOutdated(t, m, "before anything is applied")

	var ssl string
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) {
		ssl = libssl(t, tree)
		changeFile(tree, ssl)
		for _, file := range []string{"one", "one.sh", "one.py", "one.pl"} {
			changeFile(tree, "usr/libexec/demo/"+file)
		}
	})
	apply(t, m, v2)
	ofBooted := []string{
		"system nginx.service: replaced /" + ssl,
		"system plain-one.service: replaced /usr/libexec/demo/one",
		"system strict-one.service: replaced /usr/libexec/demo/one",
		"system sh-one.service: script /usr/libexec/demo/one.sh",
		"system py-one.service: argument /usr/libexec/demo/one.py",
		"system title-one.service: argument /usr/libexec/demo/one.pl",
		"system apart-same.service: old tree /usr",
	}
	requireOutdated(t, m, "after the first application", ofBooted...)

	// What is started now runs on this tree, also where it keeps the whole of it.
	m.Run("systemctl", "restart", "nginx")
	ofBooted = ofBooted[1:]
	demo(m, "modules-second", "same", "ProtectKernelModules=yes")
	demo(m, "strict-second", "one", "ProtectSystem=strict", "PrivateTmp=yes")
	demo(m, "second", "two")
	demo(m, "sh-second", "one.sh")
	demo(m, "py-second", "one.py")
	demo(m, "py-second-same", "same.py")
	requireOutdated(t, m, "after restarts", ofBooted...)

	v3 := derived(t, m, v2, func(tree *nspawn.Tree) {
		changeFile(tree, "usr/libexec/demo/one")
		tree.Remove("usr/libexec/demo/two")
		changeFile(tree, "usr/libexec/demo/one.sh")
		changeFile(tree, "usr/libexec/demo/one.py")
	})
	apply(t, m, v3)
	ofSecond := []string{
		"system modules-second.service: old tree /usr",
		"system strict-second.service: replaced /usr/libexec/demo/one",
		"system second.service: deleted /usr/libexec/demo/two",
		"system plain-two.service: deleted /usr/libexec/demo/two",
		"system sh-second.service: script /usr/libexec/demo/one.sh",
		"system py-second.service: argument /usr/libexec/demo/one.py",
	}
	requireOutdated(t, m, "after the second application", append(ofSecond, ofBooted...)...)

	// Another tree of the same commit: what was started on it runs on what is live, and the layer of v3 is gone.
	demo(m, "third", "one")
	demo(m, "py-third", "one.py")
	m.Run("liveapplyctl", "rollback", "--quiet")
	ofThird := []string{
		"system third.service: replaced /usr/libexec/demo/one",
		"system py-third.service: argument /usr/libexec/demo/one.py",
	}
	requireOutdated(t, m, "after a rollback", append(ofThird, ofBooted...)...)

	reset(t, m)
	requireOutdated(t, m, "after a reset", append([]string{
		"system nginx.service: replaced /" + ssl,
		"system modules-second.service: old tree /usr",
		"system strict-second.service: replaced /usr/libexec/demo/one",
		"system sh-second.service: script /usr/libexec/demo/one.sh",
		"system py-second.service: argument /usr/libexec/demo/one.py",
	}, ofThird...)...)
	m.Run("systemctl", "stop", "modules-second", "strict-second", "sh-second", "py-second", "third", "py-third", "nginx")
	requireOutdated(t, m, "after what is old was stopped")
}

// A user's processes, and what is none of this system's.
func TestNeedsRestartTellsUnitsSessionsAndContainersApart(t *testing.T) {
	t.Parallel()
	m, v1 := staleMachine(t)
	m.Run("useradd", "--create-home", "tester")
	uid := m.Run("id", "--user", "tester")
	const one = "/usr/libexec/demo/one"
	m.Run("systemctl", "start", "user@"+uid+".service")
	runUser := []string{"-u", "tester", "--", "env", "XDG_RUNTIME_DIR=/run/user/" + uid, "systemd-run", "--quiet", "--user"}
	m.Run("runuser", append(runUser, "--unit=of-user", one, "1000000")...)
	says := "/run/user/" + uid + "/said-by-py-of-user"
	m.Run("runuser", append(runUser, "--unit=py-of-user", "--property=StandardOutput=truncate:"+says, one+".py")...)
	waitUntilSays(m, says)
	m.Start("runuser", "--login", "tester", "--command", one+" 1000000")
	waitUntilReady(t, m.Start("runuser", "--login", "tester", "--command", one+".py"))
	waitUntilReady(t, m.Start("runuser", "--login", "tester", "--command", one+".sh"))
	demo(m, "system", "one")
	demo(m, "own-pids", "one", "PrivatePIDs=yes")
	m.Run("mkdir", "--parents", "/run/root/usr", "/run/root/proc")
	m.Run("sh", "-c", "ln -s usr/lib usr/lib64 usr/bin usr/sbin /run/root/")
	demo(m, "other-root", "one", "RootDirectory=/run/root", "BindReadOnlyPaths=/usr", "MountAPIVFS=yes")
	demo(m, "container", "one", "Slice=machine.slice", "PrivatePIDs=yes")
	m.Run("timeout", "60", "sh", "-c", "until [ $(pgrep --count --uid tester ^one) -ge 5 ]; do sleep 0.1; done")
	requireOutdated(t, m, "before anything is applied")

	apply(t, m, derived(t, m, v1, func(tree *nspawn.Tree) {
		for _, file := range []string{"one", "one.sh", "one.py"} {
			changeFile(tree, "usr/libexec/demo/"+file)
		}
	}))
	found := needsRestart(t, m)
	var lines []string
	for _, line := range found.lines() {
		if strings.HasPrefix(line, "session ") {
			line = "session " + line[strings.Index(line, ": ")+2:]
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	equal(t, "what is old", strings.Join(lines, "\n"), strings.Join([]string{
		"session replaced " + one, "session script " + one + ".sh",
		"system own-pids.service: replaced " + one, "system system.service: replaced " + one,
		"user of-user.service: replaced " + one, "user py-of-user.service: argument " + one + ".py",
	}, "\n"))
	for _, owner := range found.Owners {
		if owner.Kind != "system" && (owner.User == nil || strconv.Itoa(int(*owner.User)) != uid) || owner.Kind == "system" && owner.User != nil {
			t.Errorf("the user of %s is %v, want %s for those of a user", owner.Unit, owner.User, uid)
		}
	}

	// The user finds the own ones, and hears that there may be others.
	result := m.Try("runuser", "-u", "tester", "--", "liveapplyctl", "needs-restart", "--json")
	var own outdated
	decode(t, result.Stdout, &own)
	equal(t, "exit status", result.Code, 0)
	equal(t, "complete", own.Complete, false)
	requireSays(t, "liveapplyctl", result.Stderr, []string{"may be others"})
	if text := fmt.Sprint(own.lines()); !strings.Contains(text, "user of-user.service: replaced") || strings.Contains(text, "system.service") {
		t.Errorf("the user is told of %s", text)
	}
	requireSays(t, "liveapplyctl needs-restart", m.Run("liveapplyctl", "needs-restart"),
		[]string{"UNIT", "PROCESSES", "WHY", "system.service", "of-user.service (user " + uid + ")", one})
}

func TestNeedsRestartReportsEveryProcessIfLibcChanged(t *testing.T) {
	t.Parallel()
	m, v1 := staleMachine(t)
	demo(m, "strict-same", "same", "ProtectSystem=strict", "PrivateTmp=yes")
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/two", "2", 0o644) })
	v3 := derived(t, m, v2, func(tree *nspawn.Tree) {
		libc, err := filepath.Glob(tree.Path("usr/lib/*/libc.so.6"))
		if err != nil || len(libc) != 1 {
			t.Fatalf("got %q, %v", libc, err)
		}
		changeFile(tree, strings.TrimPrefix(libc[0], tree.Path("")+"/"))
	})
	apply(t, m, v2)
	requireOutdated(t, m, "after an application that changes no library")
	demo(m, "second", "same")
	awaitEnd(m) // also of what looks at what runs now
	apply(t, m, v3)
	waitFor(t, "the journal to tell of services", func() bool {
		told := m.Journal("--unit=liveapply-needs-restart.service", "--output=cat")
		return strings.Contains(told, "Nothing runs on old files.") && strings.Contains(told, "systemd-logind.service") && strings.Contains(told, "libc.so.6")
	})
	demo(m, "third", "same")
	var all []int // but those that the test starts, and what has been started since
	for _, pid := range strings.Fields(m.Run("sh", "-c", `grep --files-with-matches libc.so.6 /proc/[0-9]*/maps 2>/dev/null | cut -d/ -f3`)) {
		number, err := strconv.Atoi(pid)
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(m.Try("systemctl", "show", "--value", "--property=MainPID", "third").Stdout) != pid && m.Exists("/proc/"+pid) {
			all = append(all, number)
		}
	}
	slices.Sort(all)
	equal(t, "processes", fmt.Sprint(needsRestart(t, m).pids()), fmt.Sprint(all))
	if len(all) < 6 {
		t.Errorf("there are only the processes %v", all)
	}
}

// servicesOf returns the services of the system that needs-restart has found.
func servicesOf(o outdated) []string {
	services := []string{}
	for _, owner := range o.Owners {
		if owner.Kind == "system" && strings.HasSuffix(owner.Unit, ".service") {
			services = append(services, owner.Unit)
		}
	}
	slices.Sort(services)
	return services
}

// needrestart returns the services that Debian's needrestart finds. Of scripts, it compares the time of the last change of the inode with that
// when the process was started, in seconds.
func needrestart(m *nspawn.Machine) []string {
	services := []string{}
	for line := range strings.Lines(m.Run("needrestart", "-b", "-l", "-r", "l", "-t", "0")) {
		if service, ok := strings.CutPrefix(strings.TrimSpace(line), "NEEDRESTART-SVC: "); ok {
			services = append(services, service)
		}
	}
	slices.Sort(services)
	return services
}

func without(all, some []string) []string {
	rest := []string{}
	for _, one := range all {
		if !slices.Contains(some, one) {
			rest = append(rest, one)
		}
	}
	return rest
}

// startDemos starts services of which the names of those that are going to be old end in one, and nginx.
func startDemos(m *nspawn.Machine) {
	m.Run("systemctl", "restart", "nginx")
	for _, program := range []string{"one", "same", "one.py", "same.py", "one.sh", "same.sh"} {
		demo(m, strings.ReplaceAll(program, ".", "-"), program)
	}
	demo(m, "strict-one", "one", "ProtectSystem=strict", "PrivateTmp=yes")
	m.Run("sleep", "2") // what changes from now on does so in a later second, see needrestart
}

var oldDemos = []string{"nginx.service", "one-py.service", "one-sh.service", "one.service", "strict-one.service"}

// needrestart finds mapped files that the kernel calls deleted. After a live application, none is: the old file is still in its tree, of which
// the kernel tells the path. So it finds scripts of Python alone, by their times; also one that is the same in both trees, because another
// deployment or commit with the same file is one more hard link to it, which changes the inode.
func TestNeedsRestartFindsAllThatNeedrestartFindsAfterAnApplication(t *testing.T) {
	t.Parallel()
	m, v1 := staleMachine(t)
	startDemos(m)
	apply(t, m, derived(t, m, v1, func(tree *nspawn.Tree) {
		changeFile(tree, libssl(t, tree))
		for _, file := range []string{"one", "one.sh", "one.py"} {
			changeFile(tree, "usr/libexec/demo/"+file)
		}
	}))
	theirs, found := needrestart(m), needsRestart(t, m)
	equal(t, "found", fmt.Sprint(servicesOf(found)), fmt.Sprint(oldDemos))
	equal(t, "found by needrestart alone", fmt.Sprint(without(theirs, oldDemos)), "[same-py.service]")
	equal(t, "found by both", fmt.Sprint(without(theirs, []string{"same-py.service"})), "[one-py.service]")
	for _, pid := range found.pids() {
		if deleted := regexp.MustCompile(`/.*\(deleted\)`).FindAllString(m.Read(fmt.Sprintf("/proc/%d/maps", pid)), -1); len(without(deleted, []string{"/dev/zero (deleted)"})) > 0 {
			t.Errorf("process %d maps deleted files, which needrestart should have found: %q", pid, deleted)
		}
	}
}

// On a /usr that is changed in place, as a package manager does, both find the same, but for scripts of the shell, which needrestart does
// not know. Nothing else runs at the same time: it might change the inodes that machines have in common.
func TestNeedsRestartFindsWhatNeedrestartFindsOnAUsrThatIsChangedInPlace(t *testing.T) {
	m, _ := staleMachine(t)
	m.Run("ostree", "admin", "unlock")
	startDemos(m)
	requireOutdated(t, m, "before anything changes")
	m.Run("sh", "-ec", `for file in /usr/lib/*/libssl.so.3 /usr/libexec/demo/one /usr/libexec/demo/one.sh /usr/libexec/demo/one.py; do
		cp -a "$file" "$file.new"
		echo "# changed" >>"$file.new"
		mv "$file.new" "$file"
	done`)
	theirs, ours := needrestart(m), servicesOf(needsRestart(t, m))
	equal(t, "found by needrestart alone", fmt.Sprint(without(theirs, ours)), "[one-py.service]") // the interpreter has closed it, and no tree is known
	equal(t, "not found by needrestart", fmt.Sprint(without(ours, theirs)), "[one-sh.service]")
	equal(t, "found by both", fmt.Sprint(without(ours, []string{"one-sh.service"})), "[nginx.service one.service strict-one.service]")
}

// It may still run when the next commit is applied.
func TestEachApplicationIsToldOfInTheJournal(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := productMachine(t, suite, nspawn.Options{})
		makeTransient(m)
		v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/two", "2", 0o644) })
		v3 := derived(t, m, v2, func(tree *nspawn.Tree) { changeFile(tree, "usr/bin/dbus-daemon") })
		const unit = "liveapply-needs-restart.service"
		told := func() string { return m.Journal("--unit="+unit, "--output=cat") }
		awaitTold := func(what string) {
			waitFor(t, "the journal to tell of "+what, func() bool { return strings.Contains(told(), what) })
		}
		dropIn(m, unit, "ExecStart=/bin/sleep infinity")
		apply(t, m, v2)
		awaitTold("Nothing runs on old files.")
		apply(t, m, v3)
		awaitTold("/usr/bin/dbus-daemon")
		reset(t, m)
		equal(t, "what tells is", m.Try("systemctl", "is-active", unit).Stdout, "inactive")
	})
}
