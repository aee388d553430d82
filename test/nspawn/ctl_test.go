//go:build nspawn

package nspawn_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

const (
	exitFailed     = 1
	exitRefused    = 80 // by the unit that applies
	exitRolledBack = 81
	exitUsage      = 2
	exitNothing    = 77
)

func TestExitStatusOfLiveapplyctl(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/two", "2", 0o644) })
	v3 := derived(t, m, v2, func(tree *nspawn.Tree) { tree.Remove("usr/bin/true") })
	before := factsOf(t, m)
	for _, step := range []struct {
		command string
		code    int
	}{
		{"status", 0},
		{"", 0},
		{"--help", 0},
		{"help", 0},
		{"help apply", 0},
		{"apply --help", 0},
		{"--version", 0},
		{"help plot", 0},
		{"history", 0},
		{"reset", exitNothing},
		{"rollback", exitNothing},
		{"needs-restart", exitNothing},
		{"plot", exitNothing},
		{"apply", exitNothing}, // nothing is staged
		{"frobnicate", exitUsage},
		{"--frobnicate", exitUsage},
		{"apply --frobnicate", exitUsage},
		{"apply --allow=everything " + v2, exitUsage},
		{"apply " + v2 + " " + v3, exitUsage},
		{"apply --force --allow=additive " + v2, exitUsage},
		{"reset " + v2, exitUsage},
		{"rollback " + v2, exitUsage},
		{"needs-restart " + v2, exitUsage},
		{"history --lines=0", exitUsage},
		{"plot one two", exitUsage},
		{"status " + v2, exitUsage},
		{"help frobnicate", exitUsage},
		{"apply no-such-ref", exitFailed},
		{"apply " + v1, exitNothing},
		{"apply " + v2[:10], 0}, // an abbreviated checksum
		{"apply " + v2, exitNothing},
		{"apply test/" + v2[:12], exitNothing}, // a ref
		{"apply " + v3, exitRefused},
		{"apply", exitNothing}, // what is staged is live
		{"status", 0},
		{"rollback", 0}, // it was the booted tree
		{"rollback", exitNothing},
		{"reset", exitNothing},
		{"history --json", 0},
		{"plot", 0},
		{"plot no-such-transaction", exitFailed},
	} {
		result := m.Try("sh", "-c", "liveapplyctl "+step.command)
		equal(t, "exit status of liveapplyctl "+step.command, result.Code, step.code)
		if step.code == exitUsage || step.code == exitFailed || step.code == exitRefused {
			if !strings.HasPrefix(result.Stderr, "liveapplyctl: ") && !strings.Contains(result.Stderr, "\nliveapplyctl: ") {
				t.Errorf("liveapplyctl %s does not tell what is wrong on standard error: %q", step.command, result.Stderr)
			}
		}
	}
	requireSame(t, m, before)
}

func TestStatusHasTheFieldsOfTheStamp(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/two", "2", 0o644) })
	v3 := derived(t, m, v2, func(tree *nspawn.Tree) { tree.Write("usr/share/three", "3", 0o644) })
	stampPath := "/run/ostree/deployment-state/" + v1 + ".0/liveapply.json"

	got := status(t, m)
	equal(t, "live", got.Live, v1)
	equal(t, "booted", got.Booted, v1)
	equal(t, "there is a stamp", m.Exists(stampPath), false)

	apply(t, m, v2)
	m.Run("liveapplyctl", "apply", "--transient", v3)
	got = status(t, m)
	if got.Transaction == "" || got.Applied == "" || len(got.Layers) != 1 {
		t.Errorf("transaction, applied or layers is missing: %+v", got)
	}
	if len(got.Layers) == 1 && !m.Exists(got.Layers[0]+"/share/three") {
		t.Errorf("the layer %s is not that of the live commit", got.Layers[0])
	}
	applied := got.Applied
	got.Transaction, got.Applied, got.Layers, got.RebootRequired, got.Stack = "", "", nil, nil, nil
	equal(t, "status", fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", stamp{Version: 1, Booted: v1, Live: v3, Previous: v2, Transient: true}))

	// Everybody can read it, and it is the stamp.
	var fromFile, fromStatus map[string]any
	unmarshal(t, m.Run("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "cat", stampPath), &fromFile)
	unmarshal(t, m.Run("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "liveapplyctl", "status", "--json"), &fromStatus)
	delete(fromStatus, "stack")
	equal(t, "liveapplyctl status --json", fmt.Sprint(fromStatus), fmt.Sprint(fromFile))
	for _, field := range []string{"version", "booted", "live", "previous", "target", "phase", "transaction", "transient", "applied", "layers", "reboot_required"} {
		if _, ok := fromFile[field]; !ok {
			t.Errorf("the stamp has no %s", field)
		}
	}
	requireSays(t, "liveapplyctl status", m.Run("liveapplyctl", "status"), []string{v1, v3, "transient", applied[:4]})

	// The mount table knows what is live.
	m.Run("rm", stampPath)
	equal(t, "live without a stamp", status(t, m).Live, v3)
	reset(t, m)
	equal(t, "live after a reset", status(t, m).Live, v1)
	equal(t, "there is a stamp after a reset", m.Exists(stampPath), false)
}

func unmarshal(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

// Where the next boot leads, for a deployment that nobody, somebody else, or liveapply has staged.
func TestNextBootLeadsToTheLiveTree(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := productMachine(t, suite, nspawn.Options{})
		v2 := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/two", "2", 0o644) })
		v3 := derived(t, m, v2, func(tree *nspawn.Tree) { tree.Write("usr/share/three", "3", 0o644) })
		stagedIs := func(when, want string) {
			t.Helper()
			got := ""
			for line := range strings.Lines(m.Run("ostree", "admin", "status")) {
				if fields := strings.Fields(line); strings.Contains(line, "(staged)") {
					got, _, _ = strings.Cut(fields[1], ".")
				}
			}
			equal(t, when+": staged commit", got, want)
		}
		before := factsOf(t, m)
		m.Run("liveapplyctl", "apply", "--transient", v2)
		stagedIs("transient", "")
		apply(t, m, v3)
		stagedIs("applied", v3)
		reset(t, m)
		stagedIs("after a reset", "")
		requireSame(t, m, before)

		m.Stage(v2)
		m.Run("liveapplyctl", "apply") // without COMMIT: what is staged
		requireUsrIs(t, m, v2)
		stagedIs("somebody else's", v2)
		apply(t, m, v3)
		stagedIs("another one applied", v3)
		reset(t, m)
		stagedIs("somebody else's after a reset", v2)
	})
}

func TestCommitsThatAreStartedAtOnceTakeTurns(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := productMachine(t, suite, nspawn.Options{})
		numbered := func(number string) string {
			return derived(t, m, v1, func(tree *nspawn.Tree) {
				tree.Write("usr/share/"+number, number, 0o644)
				tree.Write("usr/etc/"+number, number, 0o644)
			})
		}
		before := factsOf(t, m)
		first, second := numbered("first"), numbered("second")
		m.Run("systemctl", "start", "--no-block", applyUnit(first), applyUnit(second))
		// Joins the jobs that are queued.
		for _, commit := range []string{first, second} {
			apply(t, m, commit)
		}
		var order []string
		for _, entry := range history(t, m) {
			equal(t, "result", entry.Result, "applied")
			var phases []string
			for _, phase := range entry.Phases {
				phases = append(phases, phase.Name)
			}
			equal(t, "phases", strings.Join(phases, " "), "prepare mount etc tmpfiles services record")
			order = append(order, entry.Target)
		}
		if len(order) < 2 || !slices.Contains(order, first) || !slices.Contains(order, second) {
			t.Fatalf("the history has %q applied, want %s and %s", order, first, second)
		}
		last := order[len(order)-1]
		equal(t, "live", status(t, m).Live, last)
		requireUsrIs(t, m, last)
		name := map[string]string{first: "first", second: "second"}
		equal(t, "/etc has the default of the last", m.Exists("/etc/"+name[last]), true)
		equal(t, "/etc has the default of the one before", m.Exists("/etc/"+name[order[len(order)-2]]), false)
		reset(t, m)
		requireSame(t, m, before)
	})
}

// slowly makes a program of the tree wait for the file /run/tried, so that prepare, which tries it, takes until then. It waits for half a minute, no
// longer: what takes its time is for hold.
func slowly(tree *nspawn.Tree) {
	tree.Write("usr/bin/true", "#!/bin/sh\nwhile ! [ -e /run/tried ]; do sleep 0.05; done\n", 0o755)
}

func statusText(m *nspawn.Machine, unit string) string {
	return m.Run("systemctl", "show", "--property=StatusText", "--value", unit)
}

func TestStatusTellsWhatAPhaseDoesAndOthersWait(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	first := derived(t, m, v1, func(tree *nspawn.Tree) {
		tree.Write("usr/share/first", "", 0o644)
		slowly(tree)
	})
	second := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/second", "", 0o644) })
	prepareFirst, prepareSecond := "liveapply-prepare@"+first+".service", "liveapply-prepare@"+second+".service"

	hold(m, "prepare")
	m.Run("systemctl", "start", "--no-block", applyUnit(first))
	waitFor(t, "the status of the first", func() bool { return statusText(m, prepareFirst) == "trying to run a program of the target" })
	requireSays(t, "systemctl status", m.Try("systemctl", "status", prepareFirst).Stdout, []string{"trying to run a program of the target"})
	got := status(t, m)
	equal(t, "phase", got.Phase, "prepare")
	equal(t, "target", got.Target, first)
	equal(t, "live", got.Live, v1)
	said := []string{"prepare", first, "trying to run a program of the target"}
	requireSays(t, "liveapplyctl status", m.Run("liveapplyctl", "status"), said)
	requireSays(t, "liveapplyctl status as nobody", unprivileged(m, "status").Stdout, said)
	m.Write("/run/tried", "")
	awaitHeld(m, "prepare", first)

	waiting := m.Start("script", inTerminal("xterm", "liveapplyctl apply "+second)...)
	waitFor(t, "the status of the second", func() bool {
		return statusText(m, prepareSecond) == "waiting for the transaction of "+first+" to end"
	})
	waitFor(t, "liveapplyctl to tell", func() bool {
		return strings.Contains(waiting.Output(), "waiting for the transaction of another commit to end")
	})
	m.Write("/run/go", "")
	output, err := waiting.Wait()
	if err != nil {
		t.Errorf("the second: %v\n%s", err, output)
	}
	requireSays(t, "liveapplyctl apply", onScreen(output), []string{"✓ prepare", "✓ mount", "✓ etc", "✓ tmpfiles", "✓ services", "✓ record"})
	requireUsrIs(t, m, second)
	var live []string
	for _, entry := range history(t, m) {
		live = append(live, entry.Result+" "+entry.Target)
	}
	equal(t, "history", strings.Join(live, "\n"), "applied "+first+"\napplied "+second)
}

// What waits for its turn is not affected by how the one before ends.
func TestWhatWaitsIsAppliedAfterTheOneBeforeHasFailed(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*nspawn.Tree){
		"refused": func(tree *nspawn.Tree) {
			slowly(tree)
			tree.Write("usr/bin/true", tree.Read("usr/bin/true")+"exit 1\n", 0o755)
		},
		// systemd-sysusers does not understand this, and fails in the phase tmpfiles.
		"rolled back": func(tree *nspawn.Tree) {
			slowly(tree)
			tree.Write("usr/lib/sysusers.d/spoilt.conf", "u spoilt-user not-a-number\n", 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
			before := factsOf(t, m)
			first := derived(t, m, v1, spoil)
			second := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/etc/second", "second", 0o644) })
			m.Run("systemctl", "start", "--no-block", applyUnit(first))
			waitFor(t, "the first to be at it", func() bool {
				return strings.HasPrefix(statusText(m, "liveapply-prepare@"+first+".service"), "trying")
			})
			waiting := m.Start("systemctl", "start", applyUnit(second))
			waitFor(t, "the second to wait", func() bool {
				return strings.HasPrefix(statusText(m, "liveapply-prepare@"+second+".service"), "waiting")
			})
			m.Write("/run/tried", "")
			if output, err := waiting.Wait(); err != nil {
				t.Errorf("the second: %v\n%s", err, output)
			}
			var live []string
			for _, entry := range history(t, m) {
				live = append(live, entry.Result+" "+entry.Target)
			}
			equal(t, "history", strings.Join(live, "\n"), strings.ReplaceAll(name, " ", "-")+" "+first+"\napplied "+second)
			requireUsrIs(t, m, second)
			equal(t, "/etc/second exists", m.Exists("/etc/second"), true)
			reset(t, m)
			requireSame(t, m, before)
		})
	}
}

func TestWhatWaitsIsAppliedAfterAReset(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	live := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/etc/live", "live", 0o644) })
	next := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/etc/next", "next", 0o644) })
	for range 3 {
		apply(t, m, live)
		m.Run("systemctl", "start", "--no-block", "liveapply-reset.service")
		apply(t, m, next)
		requireUsrIs(t, m, next)
		equal(t, "/etc/live exists", m.Exists("/etc/live"), false)
		equal(t, "/etc/next exists", m.Exists("/etc/next"), true)
		reset(t, m)
	}
}

func TestMessagesOfTheJournal(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) {
		tree.Write("usr/share/two", "2", 0o644)
		tree.Write("usr/etc/two", "2", 0o644)
	})
	v3 := derived(t, m, v2, func(tree *nspawn.Tree) { tree.Remove("usr/bin/true") })
	m.Run("liveapplyctl", "apply", v2)
	m.Try("liveapplyctl", "apply", v3)
	m.Write("/etc/two", "mine")
	reset(t, m)
	transactions := history(t, m)
	if len(transactions) != 3 {
		t.Fatalf("the history has %d transactions, want 3: %+v", len(transactions), transactions)
	}
	for _, want := range []struct {
		id, transaction, priority string
		fields                    map[string]string
		explained                 string // by the catalog
	}{
		{"66cd3a53091949d391e90504eaee4abb", transactions[0].ID, "5", map[string]string{"LIVEAPPLY_FROM": v1, "LIVEAPPLY_TARGET": v2},
			"What was there\n   before was commit "},
		{"f9f026a0e8ca4158b2a0c15cd0d50672", transactions[0].ID, "5",
			map[string]string{"LIVEAPPLY_FROM": v1, "LIVEAPPLY_TARGET": v2, "LIVEAPPLY_RESULT": "applied"}, "liveapplyctl reset"},
		{"29780ceba76945ba8def4d2d136f7774", transactions[1].ID, "3",
			map[string]string{"LIVEAPPLY_FROM": v2, "LIVEAPPLY_TARGET": v3, "LIVEAPPLY_RESULT": "refused"}, "Result: refused"},
		{"27cf0e21e2074f73a9a2dee7fce80e79", transactions[2].ID, "5",
			map[string]string{"LIVEAPPLY_FROM": v2, "LIVEAPPLY_TARGET": v1, "LIVEAPPLY_RESULT": "reset"}, "is no longer live"},
		{"0ac42de1540f49d7b07bbc41134d306f", transactions[2].ID, "4",
			map[string]string{"LIVEAPPLY_PATH": "/etc/two"}, "/etc/two stays as it is"},
	} {
		match := []string{"MESSAGE_ID=" + want.id, "LIVEAPPLY_TRANSACTION=" + want.transaction}
		lines := strings.Split(m.Journal(append(match, "--output=json")...), "\n")
		if len(lines) != 1 || lines[0] == "" {
			t.Errorf("there are %d messages %s of transaction %s, want one", len(lines), want.id, want.transaction)
			continue
		}
		var fields map[string]any
		unmarshal(t, lines[0], &fields)
		equal(t, want.id+": PRIORITY", fmt.Sprint(fields["PRIORITY"]), want.priority)
		for name, value := range want.fields {
			equal(t, want.id+": "+name, fmt.Sprint(fields[name]), value)
		}
		requireSays(t, "journalctl -x", m.Journal(append(match, "--catalog")...), []string{"Defined-By: liveapply", strings.Split(want.explained, "\n")[0]})
	}
	requireSays(t, "the journal of a failed transaction", m.Journal("LIVEAPPLY_TRANSACTION="+transactions[1].ID), []string{"/usr/bin/true"})
	equal(t, "who asked", transactions[0].RequestedBy, "liveapplyctl, uid 0")
}

func TestUnitsAreWithoutWarnings(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, commit := productMachine(t, suite, nspawn.Options{})
		units := strings.Fields(m.Run("sh", "-c", "cd /usr/lib/systemd/system && ls -d liveapply*"))
		if len(units) < 12 {
			t.Fatalf("only %q are installed", units)
		}
		for i, unit := range units {
			units[i] = strings.Replace(strings.Replace(unit, "health@.", "health@usr-bin-true.", 1), "@.", "@"+commit+".", 1)
		}
		result := m.Try("systemd-analyze", append([]string{"verify", "--man=no"}, units...)...)
		equal(t, "systemd-analyze verify "+strings.Join(units, " "), fmt.Sprint(result.Code, result.Stdout, result.Stderr), "0")
		equal(t, "failed units", m.Run("systemctl", "--failed", "--plain", "--no-legend"), "")
	})
}
