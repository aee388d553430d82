//go:build nspawn

package nspawn_test

import (
	"os"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// ofLiveapply lists the units of liveapply that are in one of some states.
func ofLiveapply(m *nspawn.Machine, states string) string {
	var names []string
	for line := range strings.Lines(m.Run("systemctl", "list-units", "--all", "--plain", "--no-legend", "--state="+states, "liveapply*")) {
		names = append(names, strings.Fields(line)[0])
	}
	return strings.Join(names, " ")
}

// generated lists what the generators of a boot made for liveapply.
func generated(m *nspawn.Machine) string {
	return m.Run("sh", "-c", "find /run/systemd/generator* -name '*liveapply*' ! -type d | sort | tr '\\n' ' '")
}

// update configures that updates are fetched, in a year.
const update = "[Auto]\nUpdate=yes\nOnCalendar=2099-01-01\n"

func TestWhatRunsAfterABoot(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, _ := automaticMachine(t, suite, "")
		equal(t, "active units", ofLiveapply(m, "active"), "liveapply-staged.path")
		m.Run("mkdir", "-p", "/etc/liveapply/liveapply.conf.d")
		m.Write("/etc/liveapply/liveapply.conf.d/50-test.conf", update+"Window=Sat 02:00 4h\n")
		m.Reboot()
		equal(t, "active units", ofLiveapply(m, "active"), "liveapply-staged.path liveapply-update.timer liveapply-window.timer")
		requireSays(t, "the timer", m.Run("systemctl", "show", "--property=TimersCalendar", "liveapply-update.timer"), []string{"OnCalendar=2099-01-01"})
		requireNoneFailed(t, m)
	})
}

func TestWhatIsMaskedStaysMasked(t *testing.T) {
	t.Parallel()
	m, _ := automaticMachine(t, nspawn.Trixie, update+"Window=Sat 02:00 4h\n")
	m.Run("systemctl", "mask", "liveapply-staged.path", "liveapply-update.timer", "liveapply-window.timer")
	m.Reboot()
	equal(t, "active units", ofLiveapply(m, "active,failed"), "")
	requireNoneFailed(t, m)
}

// What runs is asked for by the configuration, or by systemctl enable. The presets of a first boot ask for nothing.
func TestWhatIsEnabledRuns(t *testing.T) {
	t.Parallel()
	m, _ := automaticMachine(t, nspawn.Trixie, "[Auto]\nApply=no\nOnCalendar=2099-01-01\n")
	equal(t, "active units", ofLiveapply(m, "active"), "")
	m.Run("systemctl", "preset", "liveapply-update.timer", "liveapply-staged.path")
	m.Reboot()
	equal(t, "active units after systemctl preset", ofLiveapply(m, "active"), "")
	m.Run("systemctl", "enable", "liveapply-update.timer")
	m.Reboot()
	equal(t, "active units after systemctl enable", ofLiveapply(m, "active"), "liveapply-update.timer")
	requireSays(t, "the timer", m.Run("systemctl", "show", "--property=TimersCalendar", "liveapply-update.timer"), []string{"OnCalendar=2099-01-01"})
}

func TestNothingRunsIfLiveapplyIsOff(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := automaticMachine(t, suite, update+"Window=Sat 02:00 4h\n", "liveapply=off")
		m.Run("systemctl", "enable", "liveapply-update.timer", "liveapply-staged.path")
		v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/etc/two", "two\n", 0o644) })
		m.Reboot()
		equal(t, "generated", generated(m), "")
		equal(t, "active units", ofLiveapply(m, "active,failed"), "")
		m.Stage(v2)
		m.Run("systemctl", "start", "liveapply-staged.service", "liveapply-update.service") // conditions are no failure
		before := factsOf(t, m)
		result := tryApply(m, v2)
		equal(t, "exit status", result.Code != 0, true)
		requireSays(t, "systemctl start", result.Stderr, []string{"Assertion failed"})
		result = m.Try("liveapplyctl", "apply", v2)
		equal(t, "exit status of liveapplyctl apply", result.Code, exitFailed)
		requireSays(t, "liveapplyctl apply", result.Stderr, []string{"liveapply=off"})
		equal(t, "runs", m.Journal("--output=cat", "_EXE=/usr/libexec/liveapply/liveapply-helper"), "")
		m.Run("systemctl", "reset-failed")
		m.Run("sh", "-c", "rm -f /run/liveapply/request/job/*")
		requireSame(t, m, before)
	})
}

// What a power cut left in /etc is recovered also with a bad configuration; a person can do that where liveapply is off.
func TestPowerCutIsRecoveredWithABadConfiguration(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/etc/two", "two\n", 0o644) })
	makeTransient(m)
	apply(t, m, v2)
	equal(t, "/etc/two exists", m.Exists("/etc/two"), true)
	m.Write("/etc/liveapply/liveapply.conf", "[Auto]\nApply=perhaps\n")
	m.PowerCut()
	m.Boot()
	equal(t, "/etc/two exists after the boot", m.Exists("/etc/two"), false)
	requireNothingLeft(t, m)
	var wanted string
	for _, target := range []string{"default", "rescue"} {
		for _, unit := range []string{"overlays", "recover"} {
			wanted += "/run/systemd/generator/" + target + ".target.wants/liveapply-" + unit + ".service "
		}
	}
	equal(t, "generated", generated(m), wanted)
	// In a container, nobody reads the kernel's log.
	m.Run("mkdir", "/run/out")
	said := m.Run("unshare", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /dev && touch /dev/kmsg && "+
		"/usr/lib/systemd/system-generators/liveapply-generator /run/out /run/out /run/out && cat /dev/kmsg")
	requireSays(t, "the generator", said, []string{"<3>liveapply-generator: ", "Apply=perhaps"})
	equal(t, "made", m.Run("sh", "-c", "ls /run/out/*"), "/run/out/default.target.wants:\nliveapply-overlays.service\n\n/run/out/rescue.target.wants:\nliveapply-overlays.service")
}

func TestPowerCutIsRecoveredByAPersonWhereLiveapplyIsOff(t *testing.T) {
	t.Parallel()
	commit := product(t, nspawn.Trixie)
	m := lab.Machine(t, commit, nspawn.Options{})
	m.Boot()
	v2 := derived(t, m, commit, func(tree *nspawn.Tree) { tree.Write("usr/etc/two", "two\n", 0o644) })
	makeTransient(m)
	apply(t, m, v2)
	m.PowerCut()
	m.SetKernelArgs("liveapply=off")
	m.Boot()
	equal(t, "/etc/two exists after the boot", m.Exists("/etc/two"), true)
	v3 := derived(t, m, commit, labRelease("3"))
	m.Stage(v3)
	m.Reboot()
	equal(t, "booted commit, as what was staged would have kept /etc/two", m.BootedCommit(), commit)
	last := lastTransaction(t, m)
	equal(t, "result in the history", last.Result, "not-finalized")
	equal(t, "target in the history", last.Target, v3)
	m.Run("liveapplyctl", "reset")
	equal(t, "/etc/two exists after a reset", m.Exists("/etc/two"), false)
	requireNothingLeft(t, m)
	m.Stage(v3)
	m.Reboot()
	equal(t, "booted commit", m.BootedCommit(), v3)
	equal(t, "/etc/two exists there", m.Exists("/etc/two"), false)
}

// The generator writes nowhere but into its directory.
func TestGeneratorWritesOnlyIntoItsDirectory(t *testing.T) {
	t.Parallel()
	m, _ := automaticMachine(t, nspawn.Trixie, update+"Window=Sat 02:00 4h\nUpdateCommand=true\n")
	m.Run("mkdir", "/run/normal", "/run/early", "/run/late")
	trace := m.Run("sh", "-c", "strace -f -qq -e trace=%file,%network,write /usr/lib/systemd/system-generators/liveapply-generator /run/normal /run/early /run/late 2>&1")
	for line := range strings.Lines(trace) {
		if strings.Contains(line, "<... ") {
			continue // the end of a call that another thread has interrupted: its arguments are where it begins
		}
		writes := strings.Contains(line, "O_WRONLY") || strings.Contains(line, "O_RDWR") || strings.Contains(line, "O_CREAT") ||
			strings.Contains(line, "mkdir") || strings.Contains(line, "symlink") || strings.Contains(line, "rename") || strings.Contains(line, "unlink")
		if writes && !strings.Contains(line, `"/run/normal`) || strings.Contains(line, "socket(") {
			t.Errorf("the generator does this: %s", line)
		}
	}
	entries, err := os.ReadDir(m.Path("/run/normal"))
	if err != nil || len(entries) < 4 {
		t.Errorf("it made %v, %v", entries, err)
	}
}
