//go:build nspawn

package nspawn_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// These tests run the real helper, in its real units, under strace(1), which kills it at a system call, or has the call fail. The product
// has no hook for it. In CI it is each call of each kind once by SIGKILL, and one failure of each kind of call, the errors
// in turn; with LIVEAPPLY_TEST_EXHAUSTIVE=1 (test/run --exhaustive) it is every call, and every error at each.

// changingCalls are the system calls that change something, or make it durable.
var changingCalls = strings.Fields(`link linkat mkdir mkdirat mknod mknodat rename renameat renameat2 unlink unlinkat rmdir symlink symlinkat
	write pwrite64 ftruncate fsync fdatasync syncfs setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr chown lchown fchown fchownat
	chmod fchmod fchmodat fchmodat2 utimensat open_tree move_mount fsopen fsconfig fsmount mount_setattr mount umount2 unshare setns`)

// failingCalls can fail for want of something, besides those.
var failingCalls = append([]string{"openat", "openat2"}, changingCalls...)

var errnos = []string{"ENOSPC", "EIO", "EROFS", "EMFILE", "ENOMEM"}

// injectDir is where the machine is told what to inject; see the wrapper.
const injectDir = "/run/inject"

// wrapper runs the helper in the place of the units' own commands: under strace, once, if a file named after the verb has its options; not at
// all if there is one that says how it should exit.
const wrapper = `#!/bin/sh
if [ -e ` + injectDir + `/$1.exit ]; then exit "$(cat ` + injectDir + `/$1.exit)"; fi
if [ -e ` + injectDir + `/$1 ]; then
	options=$(cat ` + injectDir + `/$1)
	rm ` + injectDir + `/$1
	export GOMAXPROCS=1 # fewer threads: strace counts the calls of each
	exec strace -f -qq -o ` + injectDir + `/trace $options ` + helper + ` "$@"
fi
exec ` + helper + ` "$@"
`

// injection is a machine whose helper can be disturbed, and the states that it can be in.
type injection struct {
	m            *nspawn.Machine
	v1, v2       string
	before, live condition
	part         *condition // with the package of v2 live, and nothing else of it
}

// condition is what is compared after each fault; /usr itself is, at the end of a scenario.
type condition struct {
	state []string
	etc   nspawn.Snapshot
}

func (l *injection) look(t *testing.T) condition {
	t.Helper()
	return condition{stateOf(t, l.m.For(t)), l.m.Snapshot("/etc")}
}

// requireIs compares the machine with what it was.
func (l *injection) requireIs(t *testing.T, what string, want condition) {
	t.Helper()
	l.m.For(t).Run("sh", "-c", "systemctl reset-failed 'liveapply*'; rm -f /run/liveapply/outcome/*")
	got := l.look(t)
	if diff := lineDiff(want.state, got.state) + nspawn.Diff(want.etc, got.etc); diff != "" {
		t.Fatalf("the machine is not as %s:\n%.4000s", what, diff)
	}
}

func injectionBase(tree *nspawn.Tree) {
	labRelease("1")(tree)
	tree.Write("usr/lib/lab/changed", "1\n", 0o644)
	tree.Write("usr/lib/lab/removed", "1\n", 0o644)
	tree.Write("usr/lib/lab/replaced/file", "1\n", 0o644)
	tree.Write("usr/etc/lab/directory/file", "1\n", 0o644)
	tree.Write("usr/etc/lab/removed/file", "1\n", 0o644)
	tree.Symlink("default", "usr/etc/lab/link")
}

func injectionTarget(tree *nspawn.Tree) {
	labRelease("2")(tree)
	tree.Write("usr/lib/lab/changed", "2\n", 0o644)
	tree.Remove("usr/lib/lab/removed")
	tree.Remove("usr/lib/lab/replaced")
	tree.Symlink("changed", "usr/lib/lab/replaced")
	tree.Write("usr/lib/lab/added/deep/file", "2\n", 0o755)
	tree.Chmod("usr/etc/lab/directory", 0o750)
	tree.Remove("usr/etc/lab/removed")
	tree.Remove("usr/etc/lab/link")
	tree.Symlink("edited", "usr/etc/lab/link")
	tree.Write("usr/etc/lab/added/file", "2\n", 0o600)
	tree.Write("usr/lib/tmpfiles.d/lab.conf", "d /var/lib/lab-2 0750 root root\n", 0o644)
	tree.Write(dpkgDatabase+"/status", tree.Read(dpkgDatabase+"/status")+"\nPackage: lab\nStatus: install ok installed\nVersion: 2\nArchitecture: all\n", 0o644)
	tree.Write(dpkgDatabase+"/info/lab.list", "/usr/lib/lab/added/deep/file\n/etc/lab/added/file\n", 0o644)
}

// newInjection boots a machine, and looks at both states that a disturbed transaction may end in.
func newInjection(t *testing.T) *injection {
	t.Helper()
	l := makeInjection(t)
	l.wrap(map[string][]string{
		"liveapply@.service":           {"ExecStart=finish %I"},
		"liveapply-prepare@.service":   {"ExecStart=prepare %I"},
		"liveapply-mount@.service":     {"ExecStart=mount %I"},
		"liveapply-etc@.service":       {"ExecStart=etc %I"},
		"liveapply-tmpfiles@.service":  {"ExecStart=tmpfiles %I"},
		"liveapply-services@.service":  {"ExecStart=services %I"},
		"liveapply-record@.service":    {"ExecStart=record %I"},
		"liveapply-rollback@.service":  {"ExecStart=rollback %I"},
		"liveapply-reset.service":      {"ExecStart=reset"},
		"liveapply-etc-revert.service": {"ExecStop=etc-revert"},
		"liveapply-recover.service":    {"ExecStart=recover"},
	})
	apply(t, l.m, l.v2)
	reset(t, l.m)
	l.before = l.look(t)
	apply(t, l.m, l.v2)
	requireUsrIs(t, l.m, l.v2)
	l.live = l.look(t)
	reset(t, l.m)
	l.requireIs(t, "before", l.before)
	return l
}

// wrap puts the wrapper into units in the place of their commands, which are told by the verbs of the helper.
func (l *injection) wrap(units map[string][]string) {
	l.m.Run("mkdir", injectDir)
	l.m.Write(injectDir+"/run", wrapper)
	l.m.Run("chmod", "755", injectDir+"/run")
	for unit, verbs := range units {
		lines := []string{"[Service]", "SystemCallFilter=", "CapabilityBoundingSet=~"}
		key, _, _ := strings.Cut(verbs[0], "=")
		lines = append(lines, key+"=")
		for _, verb := range verbs {
			lines = append(lines, strings.Replace(verb, "=", "="+injectDir+"/run ", 1))
		}
		l.m.Run("mkdir", "-p", "/run/systemd/system/"+unit+".d")
		l.m.Write("/run/systemd/system/"+unit+".d/inject.conf", strings.Join(lines, "\n")+"\n")
	}
	l.m.Run("systemctl", "daemon-reload")
}

// makeInjection makes the machine and boots it.
func makeInjection(t *testing.T) *injection {
	t.Helper()
	l := &injection{v1: lab.Derive(t, product(t, nspawn.Trixie), injectionBase)}
	l.m = lab.Machine(t, l.v1, nspawn.Options{})
	l.m.Boot()
	makeTransient(l.m)
	l.v2 = derived(t, l.m, l.v1, injectionTarget)
	return l
}

// inject tells what to do with the next run of a verb.
func (l *injection) inject(verb, options string) {
	l.m.Run("rm", "-f", injectDir+"/trace")
	l.m.Write(injectDir+"/"+verb, options)
}

// trace is what strace wrote of the run that was told, one call a line. The verb may not have been run.
func (l *injection) trace() []string {
	if !l.m.Exists(injectDir + "/trace") {
		return nil
	}
	return strings.Split(l.m.Read(injectDir+"/trace"), "\n")
}

// scenario is a command whose helper is disturbed. Each group of verbs gets a machine of its own, beside the others.
type scenario struct {
	name    string
	groups  [][]string
	arrange func(t *testing.T, l *injection) // what comes before it, undisturbed
	act     func(l *injection) nspawn.Result // the command
	finish  func(t *testing.T, l *injection, result nspawn.Result, n int)
}

var scenarios = []scenario{
	{
		"apply", [][]string{{"prepare"}, {"mount", "etc"}, {"tmpfiles"}, {"services", "record", "finish"}},
		func(*testing.T, *injection) {},
		func(l *injection) nspawn.Result { return tryApply(l.m, l.v2) },
		func(t *testing.T, l *injection, result nspawn.Result, n int) {
			if status(t, l.m).Live == l.v2 { // it survived the fault, or was committed
				l.requireIs(t, "live", l.live)
			} else if l.requireIs(t, "before", l.before); result.Code == 0 {
				t.Fatal("the unit succeeded, and the commit is not live")
			}
			l.goOn(t, n)
		},
	},
	{
		"apply a part", [][]string{{"prepare"}},
		func(t *testing.T, l *injection) {
			if l.part == nil {
				l.requireParts(t)
				part := l.look(t)
				l.part = &part
				reset(t, l.m)
			}
		},
		(*injection).applyPart,
		func(t *testing.T, l *injection, result nspawn.Result, n int) {
			if status(t, l.m).Live != l.v1 {
				l.requireIs(t, "live in part", *l.part)
			} else if l.requireIs(t, "before", l.before); result.Code == 0 {
				t.Fatal("the unit succeeded, and nothing is live")
			}
			if n%2 == 0 {
				l.requireParts(t)
				l.requireIs(t, "live in part", *l.part)
			}
			reset(t, l.m)
		},
	},
	{
		"rollback", [][]string{{"rollback"}},
		func(_ *testing.T, l *injection) { l.m.Write(injectDir+"/services.exit", "1") },
		func(l *injection) nspawn.Result {
			result := tryApply(l.m, l.v2)
			l.m.Run("rm", injectDir+"/services.exit")
			return result
		},
		func(t *testing.T, l *injection, result nspawn.Result, n int) {
			if result.Code == 0 {
				t.Fatal("the unit succeeded")
			}
			l.goOn(t, n)
		},
	},
	{
		"reset", [][]string{{"reset"}},
		func(t *testing.T, l *injection) { apply(t, l.m, l.v2) },
		func(l *injection) nspawn.Result { return l.m.Try("systemctl", "start", "liveapply-reset.service") },
		func(t *testing.T, l *injection, result nspawn.Result, n int) {
			if result.Code == 0 {
				l.requireIs(t, "before", l.before)
			}
			l.goOn(t, n)
		},
	},
	{
		"shutdown", [][]string{{"etc-revert"}},
		func(t *testing.T, l *injection) { apply(t, l.m, l.v2) },
		func(l *injection) nspawn.Result {
			return l.m.Try("systemctl", "stop", "liveapply-etc-revert.service")
		},
		func(t *testing.T, l *injection, _ nspawn.Result, _ int) { reset(t, l.m) },
	},
	{
		"recover", [][]string{{"recover"}},
		func(t *testing.T, l *injection) { apply(t, l.m, l.v2); l.loseRun() },
		func(l *injection) nspawn.Result { return l.m.Try("systemctl", "start", "liveapply-recover.service") },
		func(t *testing.T, l *injection, _ nspawn.Result, n int) {
			if n%2 == 0 {
				l.m.Run("systemctl", "start", "liveapply-recover.service")
			} else {
				reset(t, l.m)
			}
		},
	},
}

func (l *injection) applyPart() nspawn.Result {
	return l.m.Try("liveapplyctl", "apply", "--packages=lab", l.v2)
}

// requireParts applies a part of v2, undisturbed.
func (l *injection) requireParts(t *testing.T) {
	t.Helper()
	equal(t, "exit status", l.applyPart().Code, 0)
	equal(t, "the file of the package", l.m.Exists("/usr/lib/lab/added/deep/file"), true)
	equal(t, "another file", l.m.Read("/usr/lib/lab/changed"), "1\n")
}

// goOn does what a person would, by turns: the same application again, and a reset; or the reset at once.
func (l *injection) goOn(t *testing.T, n int) {
	t.Helper()
	if n%2 == 0 {
		apply(t, l.m, l.v2)
		l.requireIs(t, "live", l.live)
	}
	reset(t, l.m)
}

// loseRun takes away what does not survive a power cut: /run and the mounts.
func (l *injection) loseRun() {
	l.m.Write(injectDir+"/etc-revert.exit", "0")
	l.m.Run("systemctl", "stop", "liveapply.target", "liveapply-recover.path", "liveapply-etc-revert.service")
	l.m.Run("sh", "-ec", `rm `+injectDir+`/etc-revert.exit
		umount -l /usr
		umount -l -R /run/liveapply/mnt
		rm -rf /run/liveapply/* /run/ostree/deployment-state/*`)
}

// disturb runs a scenario with one fault in it. It reports whether there was one: the n-th call may not exist.
func (l *injection) disturb(t *testing.T, s scenario, verb, call, how string, n int) bool {
	t.Helper()
	s.arrange(t, l)
	l.inject(verb, fmt.Sprintf("-e trace=%s -e inject=%s:%s:when=%d", call, call, how, n))
	result := s.act(l)
	hit := isHit(l.trace())
	l.m.Run("rm", "-f", injectDir+"/"+verb)
	s.finish(t, l, result, n)
	l.requireIs(t, "before", l.before)
	return hit
}

// counts tells how often a verb makes each of the calls, undisturbed: by the thread that makes it most often, since those are counted.
func (l *injection) counts(t *testing.T, s scenario, verb string) map[string]int {
	t.Helper()
	s.arrange(t, l)
	l.inject(verb, "-e trace="+strings.Join(failingCalls, ","))
	result := s.act(l)
	counts := countCalls(t, verb, l.trace())
	s.finish(t, l, result, 1)
	l.requireIs(t, "before", l.before)
	return counts
}

// countCalls does it with the lines of a trace.
func countCalls(t *testing.T, verb string, trace []string) map[string]int {
	t.Helper()
	counts := map[string]int{}
	threads := map[string]int{}
	for _, line := range trace {
		thread, rest, _ := strings.Cut(line, " ")
		call, _, isCall := strings.Cut(strings.TrimSpace(rest), "(")
		if !isCall || strings.HasPrefix(call, "<") {
			continue
		}
		threads[thread+" "+call]++
		counts[call] = max(counts[call], threads[thread+" "+call])
	}
	if len(counts) == 0 {
		t.Fatalf("%s was not traced", verb)
	}
	return counts
}

// isHit tells whether a trace has a fault that was injected.
func isHit(trace []string) bool {
	return slices.ContainsFunc(trace, func(line string) bool {
		return strings.Contains(line, "(INJECTED)") || strings.Contains(line, "killed by SIGKILL")
	})
}

// fault is one thing to try.
type fault struct {
	call, how string
	n         int
}

// faults lists what to try of a verb that makes these calls.
func faults(counts map[string]int, exhaustive bool) []fault {
	var list []fault
	for i, call := range slices.Sorted(maps.Keys(counts)) {
		kinds := errnos
		most := counts[call] + 1 // in another run, a thread may make one more
		if !exhaustive {
			kinds, most = errnos[i%len(errnos):][:1], 1
		}
		for n := 1; n <= most; n++ {
			if slices.Contains(changingCalls, call) {
				list = append(list, fault{call, "signal=SIGKILL", n})
			}
			for _, errno := range kinds {
				list = append(list, fault{call, "error=" + errno, n})
			}
		}
	}
	return list
}

// tally counts what was tried.
type tally struct{ kills, errors, failed int }

func TestEveryFaultEndsWell(t *testing.T) {
	t.Parallel()
	for _, s := range scenarios {
		for _, verbs := range s.groups {
			t.Run(s.name+" "+verbs[0], func(t *testing.T) {
				t.Parallel()
				l := newInjection(t)
				for _, verb := range verbs {
					n := l.tryAll(t, s, verb)
					// The line for docs/reliability.md.
					t.Logf("| %s | %d | %d | %d |", verb, n.kills, n.errors, n.failed)
					if (n.kills == 0 || n.errors == 0) && !isPart() {
						t.Errorf("of %s nothing was disturbed", verb)
					}
				}
				requireTree(t, "/usr", l.m.Snapshot("/usr"), treeOf(t, l.v1))
			})
		}
	}
}

// tryAll tries all faults of a verb, each of which must end well. After one that does not, it goes on with another machine.
func (l *injection) tryAll(t *testing.T, s scenario, verb string) tally {
	t.Helper()
	var n tally
	for _, f := range inPart(faults(l.counts(t, s, verb), isExhaustive())) {
		hit := false
		if !t.Run(fmt.Sprintf("%s %s %s %d", verb, f.call, f.how, f.n), func(t *testing.T) {
			one := *l
			one.m = l.m.For(t)
			hit = one.disturb(t, s, verb, f.call, f.how, f.n)
		}) {
			n.failed++
			*l = *newInjection(t)
		}
		if hit && strings.HasPrefix(f.how, "signal") {
			n.kills++
		} else if hit {
			n.errors++
		}
	}
	return n
}
