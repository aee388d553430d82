//go:build nspawn

package nspawn_test

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/liveapply/liveapply/test/nspawn"
)

// inTerminal are the arguments of script(1) that run a command in a terminal of 80 columns.
func inTerminal(term, command string) []string {
	return []string{"--quiet", "--return", "--command", "stty columns 80 rows 24; export TERM=" + term + "; " + command, "/dev/null"}
}

// terminal runs liveapplyctl in a terminal. All that it writes is in Stdout.
func terminal(m *nspawn.Machine, args string) nspawn.Result {
	return m.Try("script", inTerminal("xterm", "liveapplyctl "+args)...)
}

// sgr is what sets colours and the like.
var sgr = regexp.MustCompile("\x1b\\[[0-9;]*m")

// onScreen is what a terminal shows in the end.
func onScreen(output string) string {
	var lines []string
	for line := range strings.SplitSeq(strings.ReplaceAll(sgr.ReplaceAllString(output, ""), "\r\n", "\n"), "\n") {
		writings := strings.Split(line, "\r\x1b[K")
		lines = append(lines, writings[len(writings)-1])
	}
	return strings.TrimRight(strings.Join(lines, "\n"), "\r\n")
}

// requireFits makes sure that what a terminal shows is not wider than that, at any time. Errors may be.
func requireFits(t *testing.T, what, output string) {
	t.Helper()
	for line := range strings.FieldsFuncSeq(strings.ReplaceAll(sgr.ReplaceAllString(output, ""), "\x1b[K", ""), func(r rune) bool { return r == '\r' || r == '\n' }) {
		if strings.HasPrefix(line, "liveapplyctl: ") {
			continue
		}
		if utf8.RuneCountInString(line) > 80 || strings.ContainsRune(line, '\x1b') {
			t.Errorf("%s: this is not a line of 80 columns: %q", what, line)
		}
	}
}

// unprivileged runs liveapplyctl as nobody.
func unprivileged(m *nspawn.Machine, args ...string) nspawn.Result {
	return m.Try("setpriv", append([]string{"--reuid=nobody", "--regid=nogroup", "--clear-groups", "liveapplyctl"}, args...)...)
}

func TestEveryVerbInATerminalAndInAPipe(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, labRelease("2"))
	v3 := derived(t, m, v2, labRelease("3"))
	broken := derived(t, m, v3, func(tree *nspawn.Tree) { tree.Remove("usr/bin/true") })
	before := factsOf(t, m)
	// do runs a verb in a terminal, and returns what is there in the end.
	do := func(args string, code int) string {
		t.Helper()
		result := terminal(m, args)
		what := "liveapplyctl " + args + " in a terminal"
		equal(t, "exit status of "+what, result.Code, code)
		requireFits(t, what, result.Stdout)
		return onScreen(result.Stdout)
	}
	// pipe runs a verb in a pipe, and returns its standard output.
	pipe := func(args string, code int) string {
		t.Helper()
		result := m.Try("sh", "-c", "liveapplyctl "+args)
		equal(t, "exit status of liveapplyctl "+args+" in a pipe", result.Code, code)
		if code == 0 {
			equal(t, "standard error of liveapplyctl "+args+" in a pipe", result.Stderr, "")
		}
		if strings.ContainsRune(result.Stdout+result.Stderr, '\x1b') {
			t.Errorf("liveapplyctl %s commands a pipe: %q", args, result.Stdout+result.Stderr)
		}
		return result.Stdout
	}
	const phasesDone = "✓ prepare[^\n]*\n✓ mount[^\n]*\n✓ etc[^\n]*\n✓ tmpfiles[^\n]*\n✓ services[^\n]*\n✓ record[^\n]*\n"
	requireMatch := func(what, got, pattern string) {
		t.Helper()
		if !regexp.MustCompile(pattern).MatchString(got) {
			t.Errorf("%s: want %s, got\n%s", what, pattern, got)
		}
	}

	requireMatch("status", do("status", 0), `^○ The booted tree is live\n +Booted: `+v1+`\n`)
	equal(t, "no history", do("history", 0), "There was no transaction yet.")
	requireMatch("diff", do("diff "+v2, 0), `^ *From: `+v1+`\n +To: `+v2+`\n`)
	requireSays(t, "diff in a pipe", pipe("diff "+v2, 0), []string{"From: " + v1, "To: " + v2})
	var dry, diff foreseen
	unmarshal(t, pipe("diff --json "+v2, 0), &diff)
	unmarshal(t, pipe("apply --dry-run --json "+v2, 0), &dry)
	equal(t, "apply --dry-run --json", fmt.Sprint(dry), fmt.Sprint(diff))
	equal(t, "apply --dry-run", do("apply --dry-run "+v2, 0), do("diff "+v2, 0))
	do("apply --dry-run "+broken+"x", exitFailed)
	do("diff", exitNothing)
	requireSame(t, m, before)
	requireMatch("apply", do("apply "+v2, 0), phasesDone+"Commit "+v2[:12]+" is live.$")
	requireLive(t, m, v2)
	equal(t, "apply in a pipe", pipe("apply "+v3, 0), "Commit "+v3+" is live.")
	requireLive(t, m, v3)
	requireMatch("status", do("", 0), `^● A commit is live\n +Booted: `+v1+`\n(.*\n)* +Live: `+v3+`\n(.*\n)* +Previous: `+v2+`\n *Next boot: into the live commit$`)

	// Back to an older commit, and forth.
	requireMatch("rollback", do("rollback", 0), phasesDone+"Commit "+v2[:12]+" is live.$")
	requireLive(t, m, v2)
	requireUsrIs(t, m, v2)
	equal(t, "rollback --quiet", pipe("rollback --quiet", 0), "")
	requireLive(t, m, v3)
	equal(t, "apply of what is live", do("apply "+v3, exitNothing), "Commit "+v3[:12]+" is live already.")
	equal(t, "the same, quietly", do("apply --quiet "+v3, exitNothing), "")

	requireMatch("an application that fails", do("apply "+broken, exitRefused), "^✗ prepare [^\n]*\nliveapplyctl: (.*\n*)*/usr/bin/true")
	requireLive(t, m, v3)
	requireMatch("status", do("status", 0), `\nLast failure: refused, of [0-9: -]*: `)
	requireSays(t, "status in a pipe", pipe("status", 0), []string{"Last failure:", lastTransaction(t, m).Reason})

	requireMatch("reset", pipe("reset --no-wait", 0), "^Started liveapply-reset.service.\n")
	waitFor(t, "the reset", func() bool { return status(t, m).Live == v1 && !m.Exists("/run/liveapply/transaction.json") })
	equal(t, "reset of nothing", do("reset", exitNothing), "The booted tree is live.")
	requireSame(t, m, before)
	do("apply --transient "+v2, 0)
	requireMatch("reset", do("reset", 0), "^✓ etc [^\n]*\n✓ mount [^\n]*\n✓ record [^\n]*\nThe booted tree is live again")
	requireSame(t, m, before)

	for _, verb := range []string{"status", "diff", "apply", "rollback", "reset", "history", "plot", "help"} {
		usage := do("help "+verb, 0)
		equal(t, verb+" --help", pipe(verb+" --help", 0), usage)
		requireMatch("help "+verb, usage, `^Usage: liveapplyctl `+verb)
	}
	equal(t, "help", do("help", 0), pipe("--help", 0))
	requireHistory(t, m, do, pipe)
	requireStyles(t, m)
}

// requireHistory compares what history and plot show with what the machine did.
func requireHistory(t *testing.T, m *nspawn.Machine, do, pipe func(string, int) string) {
	t.Helper()
	all := history(t, m)
	var decoded, lastTwo []transaction
	decode(t, pipe("history --json", 0), &decoded)
	equal(t, "history --json", fmt.Sprint(decoded), fmt.Sprint(all))
	decode(t, pipe("history --json -n 2", 0), &lastTwo)
	equal(t, "the last two", fmt.Sprint(lastTwo), fmt.Sprint(all[len(all)-2:]))
	lines := strings.Split(pipe("history", 0), "\n")
	equal(t, "lines of the history", len(lines), len(all)+1)
	for i, one := range all {
		requireSays(t, "history", lines[i+1], []string{one.ID, one.From, one.Target, one.Result, one.RequestedBy})
		requireSays(t, "history in a terminal", do("history", 0), []string{one.ID[:8], one.Target[:12], one.Result})
	}
	equal(t, "lines of the last one", len(strings.Split(do("history --lines=1", 0), "\n")), 2)

	for _, one := range all {
		drawing := pipe("plot "+one.ID[:8], 0)
		requireSays(t, "plot", drawing, []string{one.ID, one.Target, one.RequestedBy, one.Phases[0].Name})
		if one.Result != "refused" {
			requireSays(t, "plot", drawing, []string{"switch /usr", "/usr has changed"})
		}
		for decoder := xml.NewDecoder(strings.NewReader(drawing)); ; {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("plot of %s: %v in\n%s", one.ID, err, drawing)
			}
		}
	}
	equal(t, "plot of the last", pipe("plot", 0), pipe("plot "+all[len(all)-1].ID, 0))
	for _, verb := range []string{"status", "history", "plot"} {
		result := unprivileged(m, verb)
		equal(t, verb+" as nobody", fmt.Sprint(result.Code, result.Stderr), "0")
		equal(t, verb+" as nobody", result.Stdout, pipe(verb, 0))
	}
}

// A phase with much to do counts, for those who look at it in whatever way. Here what it does is slow.
func TestPhasesThatCountShowHowFarTheyAre(t *testing.T) {
	t.Parallel()
	l := newInjection(t)
	const slowly = "-e trace=linkat,fsync -e inject=linkat,fsync:delay_enter=1s"
	progress := func() float64 {
		_, value, _ := strings.Cut(l.m.Run("busctl", "get-property", busName, busPath, busInterface, "Progress"), " ")
		number, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		return number
	}
	for phase, c := range map[string]struct {
		status string
		number float64
	}{"prepare": {"building the layer", 0}, "etc": {"merging changes into /etc", 2}} {
		dropIn(l.m, "liveapply-"+phase+"@.service", "NotifyAccess=all") // strace is not what says how far it is
		l.inject(phase, slowly)
		progress() // starts the service, which is not to take its time from what is looked at
		terminal := l.m.Start("script", inTerminal("xterm", "liveapplyctl apply "+l.v2)...)
		counted := regexp.MustCompile(c.status + `: [1-9]\d* of \d+\n`)
		waitFor(t, "liveapplyctl status to count", func() bool { return counted.MatchString(unprivileged(l.m, "status").Stdout + "\n") })
		if got := progress(); got <= c.number/6 || got > (c.number+1)/6 {
			t.Errorf("the property Progress is %v in %s", got, phase)
		}
		output, err := terminal.Wait()
		if bar := regexp.MustCompile(`  ` + phase + ` +█+░+ ` + c.status + `: \d+ of \d+`); err != nil || !bar.MatchString(output) {
			t.Errorf("%s shows no bar: %v\n%q", phase, err, output)
		}
		requireFits(t, "liveapplyctl apply", output)
		reset(t, l.m)
	}
	l.requireIs(t, "before", l.before)
}

// requireStyles looks at when there are colours.
func requireStyles(t *testing.T, m *nspawn.Machine) {
	t.Helper()
	coloured := func(term, command string) bool {
		return strings.ContainsRune(m.Run("script", inTerminal(term, command)...), '\x1b')
	}
	equal(t, "coloured in a terminal", coloured("xterm", "liveapplyctl status"), true)
	equal(t, "coloured with NO_COLOR", coloured("xterm", "NO_COLOR=1 liveapplyctl status"), false)
	equal(t, "coloured in a dumb terminal", coloured("dumb", "liveapplyctl status"), false)
	equal(t, "beyond ASCII in the locale C", strings.ContainsFunc(m.Run("sh", "-c", "LC_ALL=C liveapplyctl status"), func(r rune) bool { return r > 127 }), false)
}

// Whether the next boot follows stays as it was.
func TestRollbackLeavesTheNextBootAsItIs(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, labRelease("2"))
	v3 := derived(t, m, v2, labRelease("3"))
	before := factsOf(t, m)
	for _, option := range []string{"--transient", ""} {
		t.Run("applied "+option, func(t *testing.T) {
			m := m.For(t)
			for _, commit := range []string{v2, v3} {
				m.Run("sh", "-c", "liveapplyctl apply "+option+" "+commit)
			}
			m.Run("liveapplyctl", "rollback")
			requireUsrIs(t, m, v2)
			equal(t, "transient", status(t, m).Transient, option != "")
			equal(t, "previous", status(t, m).Previous, v3)
			reset(t, m)
			requireSame(t, m, before)
		})
	}
}

// An application that failed was none.
func TestRollbackAfterAFailureGoesBackToWhatWasLiveBefore(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	v2 := derived(t, m, v1, labRelease("2"))
	v3 := derived(t, m, v2, labRelease("3"))
	// systemd-sysusers does not understand this, and fails in the phase tmpfiles.
	spoilt := derived(t, m, v3, func(tree *nspawn.Tree) {
		tree.Write("usr/lib/sysusers.d/spoilt.conf", "u spoilt-user not-a-number\n", 0o644)
	})
	m.Run("liveapplyctl", "apply", "--transient", v2)
	m.Run("liveapplyctl", "apply", "--transient", v3)
	said := status(t, m)
	equal(t, "exit status", m.Try("liveapplyctl", "apply", spoilt).Code, exitRolledBack)
	now := status(t, m)
	if now.Applied > said.Applied {
		t.Errorf("the live commit is that since %s, not %s", now.Applied, said.Applied)
	}
	now.Transaction, now.Applied = said.Transaction, said.Applied
	equal(t, "status after the failure", fmt.Sprintf("%+v", now), fmt.Sprintf("%+v", said))
	m.Run("liveapplyctl", "rollback")
	requireUsrIs(t, m, v2)
}

func TestManPagesAndCompletionsAreInstalled(t *testing.T) {
	t.Parallel()
	m, _ := productMachine(t, nspawn.Trixie, nspawn.Options{})
	for _, path := range []string{"man/man1/liveapplyctl.1", "man/man5/liveapply.conf.5", "man/man7/liveapply.7", "man/man7/liveapply-overlay.7", "man/man8/liveapply@.service.8",
		"man/man8/liveapply-reset.service.8", "bash-completion/completions/liveapplyctl", "zsh/site-functions/_liveapplyctl",
		"fish/vendor_completions.d/liveapplyctl.fish"} {
		if m.Run("stat", "--dereference", "--format=%F %a", "/usr/share/"+path) != "regular file 644" {
			t.Errorf("/usr/share/%s is no file for everybody", path)
		}
	}
}
