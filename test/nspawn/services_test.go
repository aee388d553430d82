//go:build nspawn

package nspawn_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// withServices has a service of each kind that is handled in a way of its own.
func withServices(version string) func(*nspawn.Tree) {
	return func(tree *nspawn.Tree) {
		run := "#!/bin/sh\necho " + version + " >/run/$1.version\nexec sleep infinity\n"
		tree.Write("usr/lib/lab/run", run, 0o755)
		unit := func(name, unit, service string) {
			tree.Write("usr/lib/systemd/system/"+name, "[Unit]\nDescription=Lab "+version+"\n"+unit+"\n[Service]\nExecStart=/usr/lib/lab/run %n\n"+service, 0o644)
		}
		unit("lab-plain.service", "", "")
		unit("lab-ignored.service", "X-LiveApply=ignore", "")
		unit("lab-reloaded.service", "X-LiveApply=reload", "ExecReload=sh -c 'echo reloaded "+version+" >/run/lab-reloaded.service.version'\n")
		unit("lab-once.service", "", "Type=oneshot\nRemainAfterExit=yes\nExecStart=\nExecStart=sh -c 'echo "+version+" >/run/lab-once.service.version'\n")
		unit("lab-instance@.service", "", "")
		tree.Write("usr/lib/systemd/system/lab-configured.service", "[Service]\nExecStart=/usr/lib/lab/run %n\nConfigurationDirectory=lab-configured\n"+
			"ExecReload=sh -c 'cat /etc/lab-configured/file >/run/lab-configured.service.version'\n", 0o644)
		tree.Write("usr/etc/lab-configured/file", "configuration "+version+"\n", 0o644)
	}
}

var labServices = []string{"lab-plain", "lab-ignored", "lab-reloaded", "lab-once", "lab-instance@1", "lab-instance@2", "lab-configured"}

// seen tells which version each service has seen last.
func seen(m *nspawn.Machine) map[string]string {
	versions := map[string]string{}
	for _, name := range labServices {
		versions[name] = m.Read("/run/" + name + ".service.version")
	}
	return versions
}

func requireSeen(t *testing.T, m *nspawn.Machine, want map[string]string) {
	t.Helper()
	for name, got := range seen(m) {
		equal(t, "what "+name+" has seen", strings.TrimSpace(got), want[name])
	}
}

// servicesMachine boots a machine whose services run, and makes the next version.
func servicesMachine(t *testing.T) (m *nspawn.Machine, v1, v2 string) {
	t.Helper()
	v1 = lab.Derive(t, product(t, nspawn.Trixie), withServices("1"))
	m = lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	m.Run("mkdir", "-p", "/etc/liveapply")
	for _, name := range labServices {
		m.Run("systemctl", "start", name)
	}
	waitFor(t, "the services", func() bool {
		return !slices.ContainsFunc(labServices, func(name string) bool { return !m.Exists("/run/" + name + ".service.version") })
	})
	v2 = derived(t, m, v1, func(tree *nspawn.Tree) {
		withServices("2")(tree)
		tree.Write("usr/lib/systemd/system/lab-new.service", "[Service]\nExecStart=/usr/lib/lab/run %n\n", 0o644)
		tree.Symlink("../lab-new.service", "usr/lib/systemd/system/multi-user.target.wants/lab-new.service")
	})
	return m, v1, v2
}

// configure writes liveapply.conf.
func configure(m *nspawn.Machine, lines ...string) {
	m.Write("/etc/liveapply/liveapply.conf", "[Apply]\nTransient=yes\n"+strings.Join(lines, "\n")+"\n")
}

func TestServicesAreRestartedAsTheConfigurationSays(t *testing.T) {
	t.Parallel()
	m, _, v2 := servicesMachine(t)
	old := map[string]string{"lab-plain": "1", "lab-ignored": "1", "lab-reloaded": "1", "lab-once": "1", "lab-instance@1": "1", "lab-instance@2": "1", "lab-configured": "1"}
	new := map[string]string{"lab-plain": "2", "lab-ignored": "1", "lab-reloaded": "reloaded 2", "lab-once": "1", "lab-instance@1": "2", "lab-instance@2": "2", "lab-configured": "configuration 2"}
	restart := func() {
		for _, name := range labServices {
			m.Run("systemctl", "restart", name)
		}
		waitFor(t, "the services", func() bool { return fmt.Sprint(seen(m)) == fmt.Sprint(withNewlines(old)) })
	}
	for _, c := range []struct {
		name  string
		lines []string
		want  map[string]string
		isNew bool // the new service is started
	}{
		{"none", nil, old, false},
		{"changed", []string{"RestartServices=changed", "HealthTimeout=1s"}, new, false},
		{"rolling", []string{"RestartServices=rolling", "HealthTimeout=300ms", "StartNewServices=yes"}, new, true},
		{"by patterns", []string{"RestartServices=changed", "HealthTimeout=1s", "IgnoreUnits=lab-plain* lab-conf*", "RestartUnits=lab-ignored.service lab-once.service"},
			map[string]string{"lab-plain": "1", "lab-ignored": "2", "lab-reloaded": "reloaded 2", "lab-once": "2", "lab-instance@1": "2", "lab-instance@2": "2", "lab-configured": "1"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := m.For(t)
			configure(m, c.lines...)
			restart()
			apply(t, m, v2)
			waitFor(t, "the services", func() bool { return fmt.Sprint(seen(m)) == fmt.Sprint(withNewlines(c.want)) })
			requireSeen(t, m, c.want)
			equal(t, "the new service is active", m.Try("systemctl", "is-active", "lab-new.service").Code == 0, c.isNew)
			if c.isNew {
				m.Run("systemctl", "stop", "lab-new.service")
			}
			reset(t, m)
		})
	}
}

func withNewlines(versions map[string]string) map[string]string {
	lines := map[string]string{}
	for name, version := range versions {
		lines[name] = version + "\n"
	}
	return lines
}

func TestServiceThatFailsTakesTheCommitBack(t *testing.T) {
	t.Parallel()
	m, v1, _ := servicesMachine(t)
	configure(m, "RestartServices=changed", "HealthTimeout=30s") // it ends with the first failure
	m.Run("systemctl", "restart", "lab-plain")
	before := factsOf(t, m)
	for _, c := range []struct{ name, program, says string }{
		{"at once", "exit 1", "lab-plain.service has failed"},
		{"after a while", "sleep 2; exit 1", "lab-plain.service has failed"},
		{"and systemd restarts it", "sleep 1; exit 1", "lab-plain.service has "},
		{"as it cannot start", "#", "lab-plain.service"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := m.For(t)
			bad := derived(t, m, v1, func(tree *nspawn.Tree) {
				withServices("2")(tree)
				service := "[Service]\nExecStart=sh -c '" + c.program + "'\n"
				if strings.Contains(c.name, "restarts") {
					service += "Restart=always\n"
				}
				if c.program == "#" {
					service = "[Service]\nType=notify\nTimeoutStartSec=1s\nExecStart=/usr/lib/lab/run %n\n"
				}
				tree.Write("usr/lib/systemd/system/lab-plain.service", service, 0o644)
			})
			equal(t, "exit status", tryApply(m, bad).Code, 1)
			equal(t, "live", status(t, m).Live, v1)
			equal(t, "lab-plain is", m.Run("systemctl", "is-active", "lab-plain"), "active")
			waitFor(t, "the services", func() bool {
				return m.Read("/run/lab-plain.service.version") == "1\n" && m.Read("/run/lab-instance@1.service.version") == "1\n"
			})
			all := history(t, m)
			last := all[len(all)-1]
			equal(t, "result", last.Result, "rolled-back")
			requireSays(t, "the history", last.Reason, []string{c.says})
			requireSays(t, "status", m.Run("liveapplyctl", "status"), []string{"lab-plain.service"})
			m.Run("systemctl", "reset-failed")
			requireSame(t, m, before)
		})
	}
}

func TestRollingRestartEndsWithTheFirstServiceThatFails(t *testing.T) {
	t.Parallel()
	m, v1, _ := servicesMachine(t)
	configure(m, "RestartServices=rolling", "HealthTimeout=10s") // of those before the failure, each waits as long
	bad := derived(t, m, v1, func(tree *nspawn.Tree) {
		withServices("2")(tree)
		tree.Write("usr/lib/systemd/system/lab-instance@.service", "[Service]\nExecStart=false\n", 0o644)
	})
	began := func(name string) string {
		return m.Run("systemctl", "show", "--value", "--property=InvocationID", name)
	}
	before := map[string]string{}
	for _, name := range labServices {
		before[name] = began(name)
	}
	equal(t, "exit status", tryApply(m, bad).Code, 1)
	equal(t, "live", status(t, m).Live, v1)
	all := history(t, m)
	requireSays(t, "the history", all[len(all)-1].Reason, []string{"lab-instance@1.service"})
	// They are taken by their names: one was reloaded before, one failed, and the others were not yet touched.
	equal(t, "what lab-configured has seen", m.Read("/run/lab-configured.service.version"), "configuration 1\n")
	for name, touched := range map[string]bool{"lab-configured": false, "lab-instance@1": true, "lab-instance@2": false, "lab-plain": false, "lab-reloaded": false} {
		equal(t, name+" is", m.Run("systemctl", "is-active", name), "active")
		equal(t, name+" was started again", began(name) != before[name], touched)
	}
}

func TestServicesAreTakenBackWhenTheirPhaseIsKilled(t *testing.T) {
	t.Parallel()
	m, v1, v2 := servicesMachine(t)
	configure(m, "RestartServices=changed", "StartNewServices=yes", "HealthTimeout=1min")
	before := factsOf(t, m)
	reloaded := m.Run("systemctl", "show", "--value", "--property=InvocationID", "lab-reloaded")
	m.Run("liveapplyctl", "apply", "--no-wait", v2)
	waitFor(t, "the services to be watched", func() bool { return strings.Contains(statusText(m, phaseUnit("services", v2)), "watching") })
	waitFor(t, "the service to be restarted", func() bool { return m.Read("/run/lab-plain.service.version") == "2\n" })
	equal(t, "the new service is", m.Run("systemctl", "is-active", "lab-new.service"), "active")
	m.Run("systemctl", "kill", "--signal=SIGKILL", phaseUnit("services", v2))
	awaitEnd(m)
	equal(t, "live", status(t, m).Live, v1)
	waitFor(t, "the service to be restarted", func() bool { return m.Read("/run/lab-plain.service.version") == "1\n" })
	waitFor(t, "the service to be reloaded", func() bool { return m.Read("/run/lab-reloaded.service.version") == "reloaded 1\n" })
	equal(t, "lab-reloaded runs as", m.Run("systemctl", "show", "--value", "--property=InvocationID", "lab-reloaded"), reloaded)
	equal(t, "exit status of is-active for the new service", m.Try("systemctl", "is-active", "lab-new.service").Code, 4) // there is no such unit
	all := history(t, m)
	requireSays(t, "the history", all[len(all)-1].Reason, []string{"the phase services was killed"})
	m.Run("systemctl", "reset-failed")
	requireSame(t, m, before)
}

func TestSystemdItselfIsExecutedAgain(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	before := factsOf(t, m)
	m.Run("mkdir", "-p", "/etc/liveapply")
	configure(m, "RestartServices=changed", "HealthTimeout=1s")
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) {
		const program = "usr/lib/systemd/systemd"
		tree.Write(program, tree.Read(program)+"another build", 0o755)
	})
	inodes := func() string {
		return m.Run("stat", "--dereference", "--format=%i", "/usr/lib/systemd/systemd", "/proc/1/exe")
	}
	old := inodes()
	awaitSameProgram := func() {
		waitFor(t, "systemd to execute itself again", func() bool {
			found := strings.Fields(inodes())
			return found[0] == found[1] && m.Try("systemctl", "show-environment").Code == 0 // it answers again
		})
	}
	apply(t, m, v2)
	awaitSameProgram()
	if inodes() == old {
		t.Error("the program is the same one")
	}
	equal(t, "what is outdated", m.Try("liveapplyctl", "needs-restart").Code, exitNothing)
	equal(t, "failed units", m.Run("systemctl", "--failed", "--plain", "--no-legend"), "")
	reset(t, m)
	awaitSameProgram()
	equal(t, "the programs after the reset", inodes(), old)
	m.Run("rm", "-r", "/etc/liveapply")
	requireSame(t, m, before)
}

func TestHealthCheckThatFailsTakesTheCommitBack(t *testing.T) {
	t.Parallel()
	m, v1, v2 := servicesMachine(t)
	configure(m)
	before := factsOf(t, m)
	m.Run("mkdir", "-p", "/etc/liveapply/health.d", "/etc/greenboot/check/required.d")
	check := func(path, script string) {
		m.Write(path, "#!/bin/sh\n"+script+"\n")
		m.Run("chmod", "755", path)
	}
	check("/etc/liveapply/health.d/10 fine", "exit 0")
	check("/etc/greenboot/check/required.d/release", `test "$(cat /usr/lib/systemd/system/lab-plain.service | grep -c 'Lab 1')" = 1`)
	equal(t, "exit status", tryApply(m, v2).Code, 1)
	equal(t, "live", status(t, m).Live, v1)
	all := history(t, m)
	requireSays(t, "the history", all[len(all)-1].Reason, []string{"health check /etc/greenboot/check/required.d/release failed", "journalctl"})

	check("/etc/greenboot/check/required.d/release", "exit 0")
	apply(t, m, v2)
	requireLive(t, m, v2)
	reset(t, m)

	m.Run("chmod", "777", "/etc/liveapply/health.d/10 fine")
	equal(t, "exit status", tryApply(m, v2).Code, 1)
	all = history(t, m)
	requireSays(t, "the history", all[len(all)-1].Reason, []string{"10 fine can be changed by others"})
	m.Run("rm", "-r", "/etc/liveapply/health.d", "/etc/greenboot")
	requireSame(t, m, before)

	for _, line := range []string{"HealthTimeout=soon", "HealthTimeout=infinity"} {
		configure(m, "RestartServices=changed", line)
		equal(t, "exit status", tryApply(m, v2).Code, 1)
		all = history(t, m)
		equal(t, "result with a bad configuration", all[len(all)-1].Result, "refused")
		requireSays(t, "the history", all[len(all)-1].Reason, []string{line + " in liveapply.conf"})
	}
	configure(m)
	requireSame(t, m, before)
}

// A service that fails when it is stopped, in the way to its next start, is well when it runs again.
func TestServiceThatFailsWhenItIsStoppedIsNoReason(t *testing.T) {
	t.Parallel()
	resisting := func(version string) func(*nspawn.Tree) {
		return func(tree *nspawn.Tree) {
			tree.Write("usr/lib/systemd/system/lab-resisting.service", "[Service]\nExecStart=sh -c 'trap \"exit 3\" TERM; echo "+version+" >/run/resisting; while :; do sleep 0.1; done'\nExecStopPost=/bin/false\n", 0o644)
		}
	}
	v1 := lab.Derive(t, product(t, nspawn.Trixie), resisting("1"))
	m := lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	m.Run("mkdir", "-p", "/etc/liveapply")
	v2 := derived(t, m, v1, resisting("2"))
	for _, how := range []string{"changed", "rolling"} {
		configure(m, "RestartServices="+how, "HealthTimeout=300ms")
		m.Run("systemctl", "restart", "lab-resisting")
		apply(t, m, v2)
		waitFor(t, "the new version", func() bool { return m.Read("/run/resisting") == "2\n" })
		reset(t, m)
		m.Try("systemctl", "reset-failed", "lab-resisting")
	}
}

// withSocket has a socket at a place of its version, and a service for it.
func withSocket(version string) func(*nspawn.Tree) {
	return func(tree *nspawn.Tree) {
		tree.Write("usr/lib/systemd/system/lab-listening.socket", "[Socket]\nListenStream=/run/lab-listening-"+version+"\nRemoveOnStop=yes\n", 0o644)
		tree.Write("usr/lib/systemd/system/lab-listening.service", "[Service]\nExecStart=sh -c 'echo $LISTEN_FDS >/run/lab-listened; exec sleep infinity'\n", 0o644)
		tree.Write("usr/lib/systemd/system/lab-periodic.timer", "[Timer]\nOnActiveSec="+version+"d\n", 0o644)
		tree.Write("usr/lib/systemd/system/lab-periodic.service", "[Service]\nExecStart=true\n", 0o644)
	}
}

// A socket whose unit changed listens where it says, whether something runs for it or not, when a commit was applied, taken back, and reset.
func TestSocketsListenWhereTheirUnitsSay(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		v1 := lab.Derive(t, product(t, suite), withSocket("1"))
		m := lab.Machine(t, v1, nspawn.Options{})
		m.Boot()
		m.Run("mkdir", "-p", "/etc/liveapply")
		v2 := derived(t, m, v1, withSocket("2"))
		listens := func(when, version string) {
			t.Helper()
			equal(t, "sockets "+when, strings.Join(strings.Fields(m.Run("sh", "-c", "ss -xlH | grep -o '/run/lab-listening-.'")), " "), "/run/lab-listening-"+version)
			equal(t, "the socket "+when, m.Run("systemctl", "is-active", "lab-listening.socket"), "active")
		}
		due := func() string {
			return m.Run("systemctl", "show", "--value", "--property=NextElapseUSecMonotonic", "lab-periodic.timer")
		}
		m.Run("systemctl", "start", "lab-periodic.timer")
		for _, running := range []bool{false, true} {
			for _, how := range []string{"none", "changed"} {
				if running && how == "none" {
					continue // what runs has the socket, and is left alone
				}
				configure(m, "RestartServices="+how, "HealthTimeout=100ms")
				m.Run("systemctl", "restart", "lab-listening.socket")
				if running {
					m.Run("systemctl", "start", "lab-listening.service")
				}
				listens("before", "1")
				before := due()
				apply(t, m, v2)
				listens("with the commit, "+how, "2")
				equal(t, "the timer is due at another time, "+how, due() != before, true) // reading its unit again does that
				equal(t, "the service runs", m.Try("systemctl", "is-active", "lab-listening.service").Stdout == "active", running)
				if running {
					equal(t, "sockets that the service has got", m.Read("/run/lab-listened"), "1\n")
				}
				m.Run("liveapplyctl", "reset")
				listens("after a reset, "+how, "1")

				dropIn(m, "liveapply-services@.service", "ExecStartPost=/bin/false")
				equal(t, "exit status", tryApply(m, v2).Code, 1)
				removeDropIns(m)
				listens("after a rollback, "+how, "1")
				equal(t, "the service runs after a rollback", m.Try("systemctl", "is-active", "lab-listening.service").Stdout == "active", running)
				m.Run("sh", "-c", "systemctl stop lab-listening.service; systemctl reset-failed 'liveapply*'")
			}
		}
	})
}

// What a service has read comes back with a reset, as it came with the commit.
func TestServicesFollowAReset(t *testing.T) {
	t.Parallel()
	m, _, v2 := servicesMachine(t)
	configure(m, "RestartServices=changed", "HealthTimeout=100ms", "StartNewServices=yes")
	apply(t, m, v2)
	waitFor(t, "the services", func() bool {
		return m.Read("/run/lab-configured.service.version") == "configuration 2\n" && m.Read("/run/lab-plain.service.version") == "2\n"
	})
	equal(t, "the new service", m.Run("systemctl", "is-active", "lab-new.service"), "active")
	reset(t, m)
	waitFor(t, "the services after a reset", func() bool {
		return m.Read("/run/lab-configured.service.version") == "configuration 1\n" && m.Read("/run/lab-plain.service.version") == "1\n"
	})
	equal(t, "the new service after a reset", m.Try("systemctl", "is-active", "lab-new.service").Stdout, "inactive")
}

// A service whose unit goes is stopped as its unit says, while systemd knows that, and runs again where the unit is there again.
func TestServiceThatGoesIsStoppedAsItsUnitSays(t *testing.T) {
	t.Parallel()
	v1 := lab.Derive(t, product(t, nspawn.Trixie), func(tree *nspawn.Tree) {
		tree.Write("usr/lib/systemd/system/lab-going.service", "[Service]\nExecStart=sleep infinity\nExecStop=sh -c 'echo well >>/run/lab-stopped'\n", 0o644)
	})
	m := lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	m.Run("mkdir", "-p", "/etc/liveapply")
	configure(m, "RestartServices=changed", "HealthTimeout=100ms")
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Remove("usr/lib/systemd/system/lab-going.service") })
	v3 := derived(t, m, v1, labRelease("3"))
	active := func() string { return m.Try("systemctl", "is-active", "lab-going.service").Stdout }
	stopped := func() int { return strings.Count(m.Try("cat", "/run/lab-stopped").Stdout, "well") }
	m.Run("systemctl", "start", "lab-going.service")

	dropIn(m, "liveapply-services@.service", "ExecStartPost=/bin/false")
	equal(t, "exit status", tryApply(m, v2).Code, 1)
	removeDropIns(m)
	m.Run("systemctl", "reset-failed", "liveapply*")
	equal(t, "times that it was stopped", stopped(), 1)
	equal(t, "after a rollback, it is", active(), "active")
	for i, back := range []func(){func() { reset(t, m) }, func() { apply(t, m, v3) }} {
		apply(t, m, v2)
		equal(t, "times that it was stopped", stopped(), i+2)
		equal(t, "where it is gone, it is", active(), "inactive")
		back()
		equal(t, "where it is there again, it is", active(), "active")
	}
	reset(t, m)
	requireNothingLeft(t, m)
}
