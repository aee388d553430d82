package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/stale"
	"github.com/liveapply/liveapply/internal/state"
)

func TestMain(m *testing.M) {
	time.Local = time.UTC
	os.Exit(m.Run())
}

func checksum(t *testing.T, digit string) ostree.Checksum {
	t.Helper()
	c, err := ostree.ParseChecksum(strings.Repeat(digit, 64))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// run is a phase that began some milliseconds after noon.
func phaseRun(name string, after, length int) state.PhaseRun {
	return state.PhaseRun{Name: name, Started: noon.Add(time.Duration(after) * time.Millisecond), Seconds: float64(length) / 1000}
}

func entryOf(t *testing.T, id string, result state.Result, reason string, phases ...state.PhaseRun) state.Entry {
	t.Helper()
	return state.Entry{
		Transaction: strings.Repeat(id, 32), From: checksum(t, "a"), Target: checksum(t, "b"), Started: noon,
		Result: result, Reason: reason, RequestedBy: "liveapplyctl, uid 0", Phases: phases,
	}
}

// aHistory has a transaction of each kind.
func aHistory(t *testing.T) []state.Entry {
	t.Helper()
	applied := entryOf(t, "1", state.Applied, "", phaseRun("prepare", 2, 213), phaseRun("mount", 232, 11), phaseRun("etc", 262, 19),
		phaseRun("tmpfiles", 300, 58), phaseRun("services", 379, 84), phaseRun("record", 480, 23))
	step := func(name string, begin, took int) state.Step {
		return state.Step{Name: name, Started: noon.Add(time.Duration(begin) * time.Millisecond), Seconds: float64(took) / 1000}
	}
	applied.Phases[0].Steps = []state.Step{step("compare the trees", 4, 20), step("build the layer", 24, 60), step("try the target", 84, 21), step("stage a deployment", 110, 104)}
	applied.Phases[1].Steps = []state.Step{{Name: state.SwitchStep, Started: noon.Add(236 * time.Millisecond), Seconds: 0.0004}}
	applied.Phases[3].Steps = []state.Step{step("systemd-sysusers", 302, 31), step("systemd-tmpfiles", 333, 24)}
	applied.Phases[4].Steps = []state.Step{step("reload udev", 381, 8), step("reload systemd", 390, 70)}
	early := entryOf(t, "2", state.Refused, "no commit \x1b[31m<none> & \"such\":\npull it first, from a remote that has it, and then try again please")
	early.Target, early.Phases = ostree.Checksum{}, nil
	failed := entryOf(t, "3", state.RolledBack, "systemd-sysusers: exit status 1", phaseRun("prepare", 2, 1213), phaseRun("mount", 1232, 11),
		phaseRun("etc", 1262, 0))
	reset := entryOf(t, "4", state.Reset, "", phaseRun("etc", 0, 12), phaseRun("mount", 20, 5), phaseRun("record", 31, 61000))
	return []state.Entry{applied, early, failed, reset}
}

func terminal(w io.Writer, width int) screen {
	return screen{Writer: w, width: width, colours: true, redraws: true, marks: unicodeMarks}
}

func pipe(w io.Writer) screen { return screen{Writer: w, marks: unicodeMarks} }

// requireFits makes sure that no line is wider than the terminal. What cannot be broken may be, up to longest letters.
func requireFits(t *testing.T, text string, width int) {
	t.Helper()
	for line := range strings.Lines(withoutStyles(text)) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
			t.Errorf("a line has %d columns, not %d: %q", n, width, line)
		}
	}
}

func withoutStyles(text string) string {
	for _, style := range []string{"0", bold, dim, red, green, yellow} {
		text = strings.ReplaceAll(text, "\x1b["+style+"m", "")
	}
	return text
}

func TestHistoryFitsATerminalAndIsCompleteInAPipe(t *testing.T) {
	entries := aHistory(t)
	var onTerminal, inPipe bytes.Buffer
	if err := errors.Join(printHistory(terminal(&onTerminal, 80), entries, ostree.Checksum{}), printHistory(pipe(&inPipe), entries, ostree.Checksum{})); err != nil {
		t.Fatal(err)
	}
	requireFits(t, onTerminal.String(), 80)
	want := `STARTED              TRANSACTION  COMMIT        RESULT            TOOK  REQUEST…
2026-11-21 12:00:00  11111111     bbbbbbbbbbbb  applied         503 ms  liveapp…
2026-11-21 12:00:00  22222222     -             refused              -  liveapp…
  no commit \u001b[31m<none> & "such":; pull it first, from a remote that has
  it, and then try again please
2026-11-21 12:00:00  33333333     bbbbbbbbbbbb  rolled-back     1.26 s  liveapp…
  systemd-sysusers: exit status 1
2026-11-21 12:00:00  44444444     bbbbbbbbbbbb  reset        1 min 1 s  liveapp…
`
	if diff := cmp.Diff(want, withoutStyles(onTerminal.String())); diff != "" {
		t.Errorf("on a terminal (-want +got):\n%s", diff)
	}
	lines := strings.Split(strings.TrimSuffix(inPipe.String(), "\n"), "\n")
	if len(lines) != len(entries)+1 {
		t.Fatalf("in a pipe there are %d lines, want one for each of %d transactions, and a heading:\n%s", len(lines), len(entries), inPipe.String())
	}
	for i, entry := range entries {
		for _, part := range []string{entry.Transaction, checksumText(entry.From), checksumText(entry.Target), string(entry.Result), entry.RequestedBy,
			printable(entry.Reason)} {
			if !strings.Contains(lines[i+1], part) {
				t.Errorf("the line %q lacks %q", lines[i+1], part)
			}
		}
	}
	if strings.ContainsRune(inPipe.String(), '\x1b') {
		t.Errorf("in a pipe there are escape sequences: %q", inPipe.String())
	}
}

func TestStatusFitsATerminalAndIsCompleteInAPipe(t *testing.T) {
	booted, live, staged, before := checksum(t, "a"), checksum(t, "b"), checksum(t, "c"), checksum(t, "d")
	known := map[ostree.Checksum]about{booted: {"13.1", noon.Add(-48 * time.Hour)}, live: {"", noon}}
	applied := state.Stamp{Version: 1, Booted: booted, Live: live, Previous: before, Applied: noon, RebootRequired: []string{"kernel", "systemd"}}
	transient, moving := applied, applied
	transient.Transient, transient.Previous = true, booted
	moving.Phase, moving.Target = "etc", staged
	failed := aHistory(t)[1]
	failed.Reason = "systemd-tmpfiles: this has failed, for a reason that is too long for one line of a terminal of 80 columns"

	for name, c := range map[string]struct {
		situation situation
		want      string
	}{
		"nothing applied": {
			situation{stamp: state.NewStamp(ostree.Deployment{Commit: booted}), next: ostree.Deployment{Commit: booted}},
			`○ The booted tree is live
   Booted: <a>
           version 13.1, of 2026-11-19 12:00:00
Next boot: into the booted commit
`},
		"something staged": {
			situation{stamp: state.NewStamp(ostree.Deployment{Commit: booted}), next: ostree.Deployment{Commit: staged}, last: &failed},
			`○ The booted tree is live
      Booted: <a>
              version 13.1, of 2026-11-19 12:00:00
   Next boot: <c>
              (liveapplyctl apply makes it live now)
Last failure: refused, of 2026-11-21 12:00:00: systemd-tmpfiles: this has
              failed, for a reason that is too long for one line of a terminal
              of 80 columns
`},
		"something staged and locked": {
			situation{stamp: state.NewStamp(ostree.Deployment{Commit: booted}), next: ostree.Deployment{Commit: staged, Locked: true}},
			`○ The booted tree is live
   Booted: <a>
           version 13.1, of 2026-11-19 12:00:00
Next boot: <c>
           (once its finalization is unlocked, see ostree admin
           lock-finalization)
`},
		"something waits, and an update failed": {
			situation{stamp: state.NewStamp(ostree.Deployment{Commit: booted}), next: ostree.Deployment{Commit: staged},
				waits: "it waits for the window that begins at 2026-11-28 02:00:00", updateFailed: true},
			`○ The booted tree is live
      Booted: <a>
              version 13.1, of 2026-11-19 12:00:00
   Next boot: <c>
              (liveapplyctl apply makes it live now)
Stays staged: it waits for the window that begins at 2026-11-28 02:00:00
     Updates: the last attempt failed, see systemctl status
              liveapply-update.service
`},
		"waiting for a slot": {
			situation{stamp: state.NewStamp(ostree.Deployment{Commit: booted}), next: ostree.Deployment{Commit: staged},
				slot: "waiting for a slot of https://fleet.example.com (group default): the server answers 409 Conflict: all slots are taken\x1b[2J (full)"},
			`○ The booted tree is live
   Booted: <a>
           version 13.1, of 2026-11-19 12:00:00
Next boot: <c>
           (liveapplyctl apply makes it live now)
    Fleet: waiting for a slot of https://fleet.example.com (group default): the
           server answers 409 Conflict: all slots are taken\u001b[2J (full)
`},
		"applied": {
			situation{stamp: &applied, next: ostree.Deployment{Commit: live}},
			`● A commit is live
    Booted: <a>
            version 13.1, of 2026-11-19 12:00:00
      Live: <b>
            of 2026-11-21 12:00:00
   Applied: 2026-11-21 12:00:00, 5 min ago
  Previous: <d>
 Next boot: into the live commit
Reboot for: kernel, systemd
`},
		"transient": {
			situation{stamp: &transient, next: ostree.Deployment{Commit: booted}},
			`● A commit is live
    Booted: <a>
            version 13.1, of 2026-11-19 12:00:00
      Live: <b>
            of 2026-11-21 12:00:00
   Applied: 2026-11-21 12:00:00, 5 min ago
 Next boot: into the booted commit (the live one was applied as transient)
Reboot for: kernel, systemd
`},
		"under way": {
			situation{stamp: &moving, next: ostree.Deployment{Commit: live}, last: &failed, doing: "merging changes into /etc: 3 of 12\x1b"},
			`● A transaction is under way
    Booted: <a>
            version 13.1, of 2026-11-19 12:00:00
      Live: <b>
            of 2026-11-21 12:00:00
   Applied: 2026-11-21 12:00:00, 5 min ago
  Previous: <d>
 Under way: etc (phase 3 of 6), to
            <c>
            merging changes into /etc: 3 of 12\u001b
Reboot for: kernel, systemd
`},
	} {
		t.Run(name, func(t *testing.T) {
			c.situation.about = known
			var onTerminal, inPipe bytes.Buffer
			if err := errors.Join(c.situation.print(terminal(&onTerminal, 80), noon.Add(5*time.Minute)), c.situation.print(pipe(&inPipe), noon)); err != nil {
				t.Fatal(err)
			}
			requireFits(t, onTerminal.String(), 80)
			want := c.want
			for _, digit := range []string{"a", "b", "c", "d"} {
				want = strings.ReplaceAll(want, "<"+digit+">", strings.Repeat(digit, 64))
			}
			if diff := cmp.Diff(want, withoutStyles(onTerminal.String())); diff != "" {
				t.Errorf("on a terminal (-want +got):\n%s", diff)
			}
			if c.situation.last != nil && c.situation.stamp.Phase == "" && !strings.Contains(inPipe.String(), c.situation.last.Reason+"\n") {
				t.Errorf("in a pipe, the reason is broken:\n%s", inPipe.String())
			}
		})
	}
}

func TestHelpFitsATerminal(t *testing.T) {
	for _, v := range verbs() {
		var text bytes.Buffer
		if err := errors.Join(v.printHelp(terminal(&text, 80)), v.printHelp(pipe(&text)), printHelp(pipe(&text))); err != nil {
			t.Fatal(err)
		}
		requireFits(t, text.String(), 80)
		if !strings.Contains(text.String(), "liveapplyctl "+v.name) {
			t.Errorf("the help of %s does not say how it is called:\n%s", v.name, text.String())
		}
	}
}

// drawn is what a terminal shows in the end: each line as it was written last.
func drawn(text string) string {
	var lines []string
	for line := range strings.SplitSeq(withoutStyles(text), "\n") {
		writings := strings.Split(line, "\r\x1b[K")
		lines = append(lines, writings[len(writings)-1])
	}
	return strings.Join(lines, "\n")
}

func TestProgressShowsThePhases(t *testing.T) {
	target, other := checksum(t, "b"), checksum(t, "c")
	show := func(s screen, ok bool) {
		now := noon
		p := &progress{screen: s, phases: applyPhases, now: func() time.Time {
			now = now.Add(5 * time.Millisecond)
			return now
		}}
		p.see(state.Stamp{Target: other, Phase: "record"}, target)
		p.see(state.Stamp{}, target)
		p.see(state.Stamp{Target: target, Phase: "prepare"}, target)
		p.say(report.Counted("building the layer", 6, 12))
		p.see(state.Stamp{Target: target, Phase: "prepare"}, target)
		p.see(state.Stamp{Target: target, Phase: "etc"}, target) // mount was not seen
		p.say("merging 3 changes into /etc\x1b[2J" + strings.Repeat(", and more", 10))
		p.see(state.Stamp{Target: other, Phase: "mount"}, target)
		p.end(ok)
	}
	var good, bad, dumb bytes.Buffer
	show(terminal(&good, 80), true)
	show(terminal(&bad, 80), false)
	show(screen{Writer: &dumb, width: 80, marks: asciiMarks}, true)

	if diff := cmp.Diff("✓ prepare   5 ms\n✓ mount\n✓ etc       5 ms\n✓ tmpfiles\n✓ services\n✓ record    5 ms\n", drawn(good.String())); diff != "" {
		t.Errorf("in the end (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("✓ prepare   5 ms\n✓ mount\n✗ etc       5 ms\n", drawn(bad.String())); diff != "" {
		t.Errorf("after a failure (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("waiting for the transaction of another commit to end\n  prepare\n  mount\n  etc\n  tmpfiles\n  services\n  record\n", dumb.String()); diff != "" {
		t.Errorf("on a dumb terminal (-want +got):\n%s", diff)
	}
	if bar := "  prepare   ████████████░░░░░░░░░░░░ building the layer: 6 of 12"; !strings.Contains(good.String(), bar) {
		t.Errorf("there is no %q in %q", bar, good.String())
	}
	for line := range strings.SplitSeq(withoutStyles(good.String()), "\x1b[K") {
		requireFits(t, strings.TrimSuffix(line, "\r"), 79) // in the last column, some terminals begin a new line
		if strings.Contains(line, "\x1b") {
			t.Errorf("a status commands the terminal: %q", line)
		}
	}
}

func TestEnvironmentDecidesOnStyle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for locale, want := range map[string]marks{"C": asciiMarks, "C.UTF-8": unicodeMarks, "de_DE.utf8": unicodeMarks, "POSIX": asciiMarks} {
		t.Setenv("LC_ALL", locale)
		if got := openScreen(file); got.marks != want || got.isTerminal() || got.colours || got.redraws {
			t.Errorf("a file with LC_ALL=%s: %+v", locale, got)
		}
	}
}

// svgElement is any element of a drawing.
type svgElement struct {
	XMLName  xml.Name
	Attrs    []xml.Attr   `xml:",any,attr"`
	Text     string       `xml:",chardata"`
	Children []svgElement `xml:",any"`
}

func TestPlotIsWholeXMLAndShowsEachPhase(t *testing.T) {
	for _, entry := range append(aHistory(t), hostileEntry(t)) {
		drawing := newTimeline(entry).svg()
		if dir := os.Getenv("LIVEAPPLY_TEST_PLOTS"); dir != "" { // to look at them
			if err := os.WriteFile(filepath.Join(dir, entry.Transaction[:4]+".svg"), drawing, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		var root svgElement
		if err := xml.Unmarshal(drawing, &root); err != nil {
			t.Fatalf("%v in\n%s", err, drawing)
		}
		if root.XMLName.Space != "http://www.w3.org/2000/svg" || root.XMLName.Local != "svg" {
			t.Errorf("the root is %v", root.XMLName)
		}
		var texts []string
		bars := 0
		for _, element := range root.Children {
			switch element.XMLName.Local {
			case "title", "style", "line":
			case "text":
				texts = append(texts, element.Text)
			case "rect":
				bars += len(element.Children)
			default:
				t.Errorf("the drawing has a %s", element.XMLName.Local)
			}
		}
		want := len(entry.Phases)
		for _, phase := range entry.Phases {
			want += len(phase.Steps)
		}
		if bars != want {
			t.Errorf("transaction %s has %d bars for %d phases and steps", entry.Transaction, bars, want)
		}
		all := strings.Join(texts, "\n")
		for _, part := range []string{entry.Transaction, checksumText(entry.Target), printable(entry.RequestedBy)} {
			if !strings.Contains(all, part) {
				t.Errorf("the drawing does not say %q", part)
			}
		}
		for _, phase := range entry.Phases {
			if !strings.Contains(all, phase.Name) {
				t.Errorf("the drawing does not name %q", phase.Name)
			}
		}
		if strings.ContainsAny(all, "\x1b\x00") {
			t.Error("the drawing has control characters")
		}
	}
}

// hostileEntry is what nobody would write into a history, but somebody could.
func hostileEntry(t *testing.T) state.Entry {
	e := entryOf(t, "5", state.RolledBack, "</text><script>alert(1)</script>\x00 & \ufffe", phaseRun("a<b>&\"", -100, -5), phaseRun("mount", 100000000, 1))
	e.RequestedBy = "<&>\x1b]0;"
	return e
}

func TestTicksAreRoundAndFew(t *testing.T) {
	for _, length := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 21 * time.Millisecond, 503 * time.Millisecond, 61 * time.Second, 24 * time.Hour} {
		ticks := timeline{length: length}.ticks()
		if len(ticks) > 11 || len(ticks) < min(5, int(length/time.Millisecond)+1) {
			t.Errorf("%v has ticks %v", length, ticks)
		}
		for i, tick := range ticks {
			if digits := strings.Trim(strconv.FormatInt(int64(ticks[min(1, i)]), 10), "0"); tick > length || i > 0 && digits != "1" && digits != "2" && digits != "5" {
				t.Errorf("%v has ticks %v", length, ticks)
			}
		}
	}
}

func TestFindEntryTakesTheBeginningOfAName(t *testing.T) {
	entries := aHistory(t)
	entries[1].Transaction = "12" + entries[1].Transaction
	if found, err := findEntry(entries, "11"); err != nil || found.Transaction != entries[0].Transaction {
		t.Errorf("got %v, %v", found.Transaction, err)
	}
	for _, unknown := range []string{"1", "9", "11111111111111111111111111111111111"} {
		if found, err := findEntry(entries, unknown); err == nil {
			t.Errorf("%s is %s", unknown, found.Transaction)
		}
	}
}

// A mistake on the command line is found before anything is looked at.
func TestMistakesAreUsageErrors(t *testing.T) {
	for _, line := range []string{"frobnicate", "--frobnicate", "help frobnicate", "help status apply", "status now", "apply a b", "apply --allow=everything",
		"apply --force --allow=additive", "apply --packages= a", "apply --packages=nginx, a", "apply --except= a", "apply --except=,nginx a", "history -n 0", "history -n some", "history --lines=-1", "reset --json", "rollback a", "needs-restart a", "plot a b", "plot --json"} {
		var usage usageError
		if err := run(context.Background(), strings.Fields(line)); !errors.As(err, &usage) {
			t.Errorf("liveapplyctl %s: %v", line, err)
		} else if code := exitStatus(err); code != exitUsage {
			t.Errorf("liveapplyctl %s: exit status %d", line, code)
		}
	}
}

func TestForceIsAllowForce(t *testing.T) {
	for line, want := range map[string]string{"": "", "--force": "force", "--allow=force": "force", "--force --allow=force": "force", "--allow=additive": "additive"} {
		flags := pflag.NewFlagSet("apply", pflag.ContinueOnError)
		o := declareApply(flags)
		if err := flags.Parse(strings.Fields(line)); err != nil {
			t.Fatal(err)
		}
		if request, err := o.request(); err != nil || string(request.Allow) != want {
			t.Errorf("%s: got %q, %v, want %q", line, request.Allow, err, want)
		}
	}
}

func TestHistoryAsJSONIsAnArray(t *testing.T) {
	entries, err := state.Dirs{Lib: t.TempDir()}.Entries()
	if err != nil {
		t.Fatal(err)
	}
	if text, err := json.Marshal(entries); err != nil || string(text) != "[]" {
		t.Errorf("got %s, %v", text, err)
	}
}

func TestHistoryTellsWhatWasBooted(t *testing.T) {
	booted, other := checksum(t, "a"), checksum(t, "b")
	entries := []state.Entry{
		{Target: booted, Result: state.Applied}, {Target: booted, Result: state.Applied}, {Target: booted, Result: state.Refused}, {Target: other, Result: state.Applied},
	}
	var text bytes.Buffer
	if err := printHistory(pipe(&text), entries, booted); err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(strings.TrimSpace(text.String()), "\n")[1:] {
		if got, want := strings.Contains(line, "applied, booted"), i == 1; got != want {
			t.Errorf("transaction %d is booted: %v, want %v", i+1, got, want)
		}
	}
}

func TestOutdatedUnitsNameTheirFiles(t *testing.T) {
	uid := uint32(1000)
	process := func(paths ...string) stale.Process {
		p := stale.Process{PID: 1, Name: "p"}
		for _, path := range paths {
			p.Files = append(p.Files, stale.File{Path: path, Reason: stale.Replaced})
		}
		return p
	}
	owners := []services.Outdated{
		{Owner: services.Owner{Kind: services.SystemUnit, Unit: "nginx.service"}, Processes: []stale.Process{
			process("/usr/lib/libssl.so.3", "/usr/lib/libcrypto.so.3"), process("/usr/lib/libssl.so.3", "/usr/sbin/nginx")}},
		{Owner: services.Owner{Kind: services.UserUnit, Unit: "a.service", User: &uid}, Processes: []stale.Process{process("/usr/bin/\x1b[31m")}},
		{Owner: services.Owner{Kind: services.NoUnit}, Processes: []stale.Process{process("/usr/bin/b")}},
	}
	show := func(out func(io.Writer) screen, owners []services.Outdated) string {
		var text bytes.Buffer
		if err := printOutdated(out(&text), owners); err != nil {
			t.Fatal(err)
		}
		return text.String()
	}
	onTerminal := func(w io.Writer) screen { return screen{Writer: w, width: 80, marks: unicodeMarks} }
	for _, c := range []struct{ what, got, want string }{
		{"nothing", show(pipe, nil), "Nothing runs on old files.\n"},
		{"a pipe", show(pipe, owners), `UNIT                   PROCESSES  WHY
nginx.service                  2  /usr/lib/libcrypto.so.3, /usr/lib/libssl.so.3, /usr/sbin/nginx
a.service (user 1000)          1  /usr/bin/\u001b[31m
(no unit)                      1  /usr/bin/b
`},
		{"a terminal", show(onTerminal, owners), `UNIT                   PROCESSES  WHY
nginx.service                  2  libcrypto.so.3, and 2 more
a.service (user 1000)          1  \u001b[31m
(no unit)                      1  b
`},
	} {
		if diff := cmp.Diff(c.want, c.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.what, diff)
		}
	}
}

func TestSizesAreForPeople(t *testing.T) {
	for bytes, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 KiB", 1536: "1.5 KiB", 120 << 10: "120 KiB", 5 << 20: "5.0 MiB", 3 << 40: "3.0 TiB"} {
		if got := size(bytes); got != want {
			t.Errorf("%d bytes are %q, want %q", bytes, got, want)
		}
	}
}
