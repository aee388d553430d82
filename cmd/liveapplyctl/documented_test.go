package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/internal/partial"
	"github.com/liveapply/liveapply/internal/pkgdb"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/stale"
	"github.com/liveapply/liveapply/internal/state"
)

const (
	manPage         = "../../man/liveapplyctl.1"
	bashCompletion  = "../../completions/liveapplyctl.bash"
	zshCompletion   = "../../completions/_liveapplyctl"
	fishCompletion  = "../../completions/liveapplyctl.fish"
	configManPage   = "../../man/liveapply.conf.5"
	serviceManPage  = "../../man/liveapply@.service.8"
	interfaces      = "../../docs/interfaces.md"
	configSources   = "../../internal/config/*.go"
	messagesCatalog = "../../catalog/liveapply.catalog"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// output runs a program, which must succeed and not complain.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	command := exec.Command(name, args...)
	command.Stdout, command.Stderr = &stdout, &stderr
	command.Env = append(os.Environ(), "LC_ALL=C.UTF-8") // bash complains of a locale that this machine does not have
	if err := command.Run(); err != nil || stderr.Len() > 0 {
		t.Fatalf("%s: %v: %s%s", strings.Join(command.Args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// section returns what is below a heading of a man page, up to the next one.
func section(t *testing.T, page, macro, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(page, "\n"+macro+" "+heading+"\n")
	if !found {
		t.Fatalf("the man page has no %s %s", macro, heading)
	}
	end := strings.Index(rest, "\n.Sh ")
	if sub := strings.Index(rest, "\n.Ss "); macro == ".Ss" && sub >= 0 && sub < end {
		end = sub
	}
	return rest[:end+1]
}

// matches returns what the first group of a pattern matches, sorted and once.
func matches(pattern, text string) []string {
	found := []string{}
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		found = append(found, match[1])
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// source is where verbs and their options are told. Verbs of overlay are named with it in front, as in "overlay create".
type source struct {
	verbs   func(t *testing.T, of string) []string // of "", or of "overlay" without that in front
	options func(t *testing.T, verb string) []string
}

var sources = map[string]source{
	"the man page": {
		func(t *testing.T, of string) []string {
			return matches(`(?m)^\.Ss `+begin(of)+`(\S+)$`, section(t, readFile(t, manPage), ".Sh", "VERBS"))
		},
		func(t *testing.T, verb string) []string {
			page := readFile(t, manPage)
			common := matches(`(?s)^All verbs have\n(.*?)\.\n`, section(t, page, ".Sh", "VERBS"))[0]
			items := strings.Join(matches(`(?m)^\.It (.*)$`, section(t, page, ".Ss", verb)), "\n") + "\n" + common
			return dashed(matches(`Fl (\S+)`, items))
		},
	},
	"the synopsis of the man page": {
		func(t *testing.T, of string) []string {
			return matches(`(?m)^\.Nm\n\.Cm `+begin(of)+`(\S+)$`, section(t, readFile(t, manPage), ".Sh", "VERBS"))
		},
		func(t *testing.T, verb string) []string {
			synopsis, _, _ := strings.Cut(section(t, readFile(t, manPage), ".Ss", verb), ".Pp\n")
			return dashed(append(matches(`Fl (\S+)`, synopsis), "h", "-help"))
		},
	},
	"bash": {
		func(t *testing.T, of string) []string { return inBash(t, begin(of)+"''") },
		func(t *testing.T, verb string) []string { return inBash(t, verb+" -") },
	},
	"zsh": {
		func(t *testing.T, of string) []string {
			function := strings.ReplaceAll("_liveapplyctl_"+begin(of)+"verbs", " ", "_")
			return matches(`(?m)^([a-z-]+):`, inZsh(t, function, ""))
		},
		func(t *testing.T, verb string) []string {
			return matches(`(?m)^(?:\([^)]*\)|\*)?(--?[a-z0-9-]*[a-z0-9])[=+]?\[`, inZsh(t, "", verb))
		},
	},
	"fish": {
		func(t *testing.T, of string) []string { return inFish(t, begin(of)) },
		func(t *testing.T, verb string) []string { return inFish(t, verb+" -") },
	},
}

// begin is what stands in front of a verb of overlay.
func begin(of string) string {
	if of == "" {
		return ""
	}
	return of + " "
}

// inBash is what bash offers for words behind the program's name.
func inBash(t *testing.T, words string) []string {
	t.Helper()
	script := fmt.Sprintf("source %s; COMP_WORDS=(liveapplyctl %s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _liveapplyctl; printf '%%s\n' \"${COMPREPLY[@]}\"", bashCompletion, words)
	return lines(strings.ReplaceAll(output(t, "bash", "--norc", "-c", script), "=", ""))
}

// inZsh is what the completion hands to the functions of zsh's completion system: a function of its own, or all of it when a verb was given.
func inZsh(t *testing.T, function, verb string) string {
	t.Helper()
	stubs := `_describe() { print -l -- $verbs }; given=(${=verb}) states=(verb overlay)
		_arguments() {
			if [[ $1 == -C && $#given -gt 0 ]]; then line=($given) state=$states[1]; shift given; shift states; else print -l -- "$@"; fi
		}; `
	return output(t, "zsh", "-f", "-c", "verb='"+verb+"'; "+stubs+"source "+zshCompletion+"; "+function+"; true")
}

// inFish is what fish offers behind the program's name and a space.
func inFish(t *testing.T, line string) []string {
	t.Helper()
	return matches(`(?m)^(\S+)`, output(t, "fish", "--no-config", "-c", "source "+fishCompletion+"; complete -C 'liveapplyctl "+line+"'"))
}

func dashed(names []string) []string {
	for i, name := range names {
		names[i] = "-" + name
	}
	slices.Sort(names)
	return names
}

func lines(text string) []string { return matches(`(?m)^(.+)$`, text) }

func TestManPageAndCompletionsHaveTheVerbsAndOptionsOfTheHelp(t *testing.T) {
	fakePrograms(t)
	var help bytes.Buffer
	if err := printHelp(pipe(&help)); err != nil {
		t.Fatal(err)
	}
	requireToldEverywhere(t, "", verbs(), help.String())
}

// requireToldEverywhere makes sure that the help of what has verbs, and all sources, tell these verbs, and of each all options.
func requireToldEverywhere(t *testing.T, of string, verbs []verb, help string) {
	t.Helper()
	names := []string{}
	for _, v := range verbs {
		names = append(names, strings.TrimPrefix(v.name, begin(of)))
	}
	slices.Sort(names)
	inHelp, _, _ := strings.Cut(help, "Options:")
	if diff := cmp.Diff(names, matches(`(?m)^  ([a-z-]+) `, inHelp)); diff != "" {
		t.Errorf("the help has other verbs of %q (-want +got):\n%s", of, diff)
	}
	for name, source := range sources {
		if diff := cmp.Diff(names, source.verbs(t, of)); diff != "" {
			t.Errorf("%s has other verbs of %q (-help +it):\n%s", name, of, diff)
		}
	}
	for _, v := range verbs {
		var help bytes.Buffer
		if err := v.printHelp(pipe(&help)); err != nil {
			t.Fatal(err)
		}
		_, options, _ := strings.Cut(help.String(), "Options:")
		want := append(matches(`(?m)^ +(-[a-z])\b`, options), matches(`(?m)^ +(?:-[a-z], )?(--[a-z0-9-]+)`, options)...)
		slices.Sort(want)
		for name, source := range sources {
			if diff := cmp.Diff(want, source.options(t, v.name)); diff != "" {
				t.Errorf("%s has other options for %s (-help +it):\n%s", name, v.name, diff)
			}
		}
		if len(v.verbs) > 0 {
			requireToldEverywhere(t, v.name, v.verbs, help.String())
		}
	}
}

// fakePrograms puts programs in front of those that the completions ask.
func fakePrograms(t *testing.T) {
	t.Helper()
	bin := t.TempDir()
	for name, script := range map[string]string{
		"ostree": "[ \"$1\" = refs ] && printf 'origin:debian/13\\nlocal\\n'",
		"liveapplyctl": `[ "$1" = history ] && printf 'STARTED TRANSACTION COMMIT\n2026-11-21 12:00:00  1111 aaaa\n2026-11-21 12:00:01  2222 bbbb\n'
[ "$1 $2" = "overlay list" ] && printf 'NAME   SCOPE\nhotfix system\ntools  global\n'`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("HOME", t.TempDir())
}

func TestCompletionOffersWhatIsThere(t *testing.T) {
	fakePrograms(t)
	zshStubs := `_call_program() { shift; "$@" 2>/dev/null }; compadd() { print -l -- ${(P)${@[-1]}} }; _arguments() { : }; source ` + zshCompletion + `; `
	for verb, want := range map[string]struct {
		function string // of zsh
		offered  []string
	}{
		"apply":           {"_liveapplyctl_commits", []string{"local", "origin:debian/13"}},
		"plot":            {"_liveapplyctl_transactions", []string{"1111", "2222"}},
		"overlay show":    {"_liveapplyctl_overlays", []string{"hotfix", "tools"}},
		"overlay set":     {"_liveapplyctl_overlays", []string{"hotfix", "tools"}},
		"overlay disable": {"_liveapplyctl_overlays", []string{"hotfix", "tools"}},
	} {
		for shell, got := range map[string][]string{
			"bash": inBash(t, verb+" ''"),
			"fish": inFish(t, verb+" "),
			"zsh":  matches(`(?m)^(\S+)`, output(t, "zsh", "-f", "-c", zshStubs+want.function)),
		} {
			if diff := cmp.Diff(want.offered, got); diff != "" {
				t.Errorf("%s offers for %s (-want +got):\n%s", shell, verb, diff)
			}
		}
	}
	for shell, got := range map[string][]string{"bash": inBash(t, "overlay add hotfix /etc/passw"), "fish": inFish(t, "overlay add hotfix /etc/passw")} {
		if !slices.Contains(got, "/etc/passwd") {
			t.Errorf("%s offers as the path of a file: %q", shell, got)
		}
	}
}

func TestExitStatusesAreDocumented(t *testing.T) {
	want := []string{"0", strconv.Itoa(exitFailed), strconv.Itoa(exitUsage), strconv.Itoa(exitNothing), strconv.Itoa(exitRefused), strconv.Itoa(exitRolledBack)}
	if diff := cmp.Diff(want, matches(`(?m)^\.It (\d+)$`, section(t, readFile(t, manPage), ".Sh", "EXIT STATUS"))); diff != "" {
		t.Errorf("the man page has others (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, matches(`(?:status: |, )(\d+) `, strings.ReplaceAll(exitStatusText, "\n", " "))); diff != "" {
		t.Errorf("the help has others (-want +got):\n%s", diff)
	}
}

// schemas are the sections of the man page on what is in JSON.
var schemas = map[reflect.Type]string{
	reflect.TypeFor[statusFacts]():      "The stamp",
	reflect.TypeFor[machine.UsrLayer](): "A layer of /usr",
	reflect.TypeFor[partial.About]():    "A part of a commit",
	reflect.TypeFor[state.Summary]():    "The summary of a plan",
	reflect.TypeFor[impact.Impact]():    "The impact",
	reflect.TypeFor[impact.Files]():     "The files",
	reflect.TypeFor[pkgdb.Difference](): "The packages",
	reflect.TypeFor[pkgdb.Package]():    "A package",
	reflect.TypeFor[pkgdb.Change]():     "A package in two versions",
	reflect.TypeFor[impact.Units]():     "The units",
	reflect.TypeFor[impact.Reload]():    "What is reloaded",
	reflect.TypeFor[state.EtcChange]():  "A change of /etc",
	reflect.TypeFor[etcmerge.Local]():   "What stays in /etc",
	reflect.TypeFor[state.Entry]():      "A transaction",
	reflect.TypeFor[state.PhaseRun]():   "A phase",
	reflect.TypeFor[state.Step]():       "A step",

	reflect.TypeFor[listedOverlay](): "The overlay",
	reflect.TypeFor[shownOverlay]():  "The overlay with its entries",
	reflect.TypeFor[overlay.Entry](): "The entry of an overlay",
	reflect.TypeFor[overlay.Base]():  "What an overlay replaced",
	reflect.TypeFor[difference]():    "A difference",
	reflect.TypeFor[facts]():         "A file of a difference",

	reflect.TypeFor[services.NeedsRestart](): "What needs a restart",
	reflect.TypeFor[services.Outdated]():     "The owner of processes",
	reflect.TypeFor[stale.Process]():         "A process",
	reflect.TypeFor[stale.File]():            "The old file",
}

// jsonType is the man page's word for a type; for objects, with their type.
func jsonType(t reflect.Type) (word string, object reflect.Type) {
	switch t {
	case reflect.TypeFor[ostree.Checksum]():
		return "checksum", nil
	case reflect.TypeFor[time.Time]():
		return "time", nil
	}
	switch t.Kind() {
	case reflect.Pointer:
		return jsonType(t.Elem())
	case reflect.Struct:
		return "object", t
	case reflect.Slice:
		word, object := jsonType(t.Elem())
		return word + "s", object
	case reflect.Bool:
		return "boolean", nil
	case reflect.String:
		return "string", nil
	}
	return "number", nil
}

// jsonFields are the fields that a type has in JSON, as rows of the man page: name, type, and whether it may be absent.
func jsonFields(t reflect.Type) (rows []string, objects []reflect.Type) {
	for _, field := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if field.Anonymous || name == "-" || !field.IsExported() {
			continue // its fields are listed, too; or it is none
		}
		word, object := jsonType(field.Type)
		rows = append(rows, fmt.Sprint(name, " ", word, " ", strings.HasPrefix(options, "omit")))
		if object != nil {
			objects = append(objects, object)
		}
	}
	slices.Sort(rows)
	return rows, objects
}

// documentedFields are the rows of a table of the man page.
func documentedFields(section string) []string {
	rows := []string{}
	for item := range strings.SplitSeq(section, "\n.It ") {
		cells := strings.SplitN(item, " Ta ", 3)
		if len(cells) == 3 && !strings.HasPrefix(item, "Sy ") {
			rows = append(rows, fmt.Sprint(cells[0], " ", cells[1], " ", strings.Contains(cells[2], "absent")))
		}
	}
	slices.Sort(rows)
	return rows
}

func TestFieldsOfTheJSONAreDocumented(t *testing.T) {
	page, text := readFile(t, manPage), readFile(t, interfaces)
	seen := map[reflect.Type]bool{}
	// What status, diff and apply --dry-run, history, needs-restart, and overlay list, show and diff print, and all that is in that.
	for objects := []reflect.Type{
		reflect.TypeFor[statusFacts](), reflect.TypeFor[state.Summary](), reflect.TypeFor[state.Entry](), reflect.TypeFor[services.NeedsRestart](),
		reflect.TypeFor[listedOverlay](), reflect.TypeFor[shownOverlay](), reflect.TypeFor[difference](),
	}; len(objects) > 0; objects = objects[1:] {
		object := objects[0]
		if seen[object] {
			continue
		}
		seen[object] = true
		rows, below := jsonFields(object)
		if diff := cmp.Diff(rows, documentedFields(section(t, page, ".Ss", schemas[object]))); diff != "" {
			t.Errorf("the man page has other fields for %v: name, type, may be absent (-want +got):\n%s", object, diff)
		}
		objects = append(objects, below...)
	}
	if len(seen) != len(schemas) {
		t.Errorf("of %d kinds of objects that the man page tells, there are %d", len(schemas), len(seen))
	}
	for _, value := range []any{state.Stamp{}, state.Entry{}, state.PhaseRun{}, state.Step{}} {
		rows, _ := jsonFields(reflect.TypeOf(value))
		for _, row := range rows {
			if name, _, _ := strings.Cut(row, " "); !strings.Contains(text, strconv.Quote(name)) {
				t.Errorf("%s lacks the field %s", interfaces, name)
			}
		}
	}
}

// Its keys are the cases of a switch.
func TestKeysOfTheConfigurationAreDocumented(t *testing.T) {
	files, err := filepath.Glob(configSources)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(source, func(node ast.Node) bool {
			if clause, ok := node.(*ast.CaseClause); ok {
				for _, value := range clause.List {
					if literal, ok := value.(*ast.BasicLit); ok && regexp.MustCompile(`^"[A-Z][A-Za-z]+"$`).MatchString(literal.Value) {
						keys = append(keys, strings.Trim(literal.Value, `"`))
					}
				}
			}
			return true
		})
	}
	slices.Sort(keys)
	if diff := cmp.Diff(slices.Compact(keys), matches(`(?m)^\.It Ic ([A-Za-z]+)=`, readFile(t, configManPage))); diff != "" {
		t.Errorf("%s has other keys (-%s +it):\n%s", configManPage, configSources, diff)
	}
}

func TestMessagesAreDocumented(t *testing.T) {
	if diff := cmp.Diff(matches(`(?m)^-- ([0-9a-f]{32})$`, readFile(t, messagesCatalog)), matches(`\.It ([0-9a-f]{32}) `, readFile(t, serviceManPage))); diff != "" {
		t.Errorf("%s has other messages than the catalog (-want +got):\n%s", serviceManPage, diff)
	}
}

func TestManPagesAndCompletionsAreWithoutWarnings(t *testing.T) {
	pages, err := filepath.Glob("../../man/*.[1-8]")
	if err != nil || len(pages) < 4 {
		t.Fatalf("got %q, %v", pages, err)
	}
	for _, page := range pages {
		output(t, "groff", "-mandoc", "-ww", "-z", "-Tutf8", page)
		if said := output(t, "mandoc", "-T", "lint", "-W", "warning", page); said != "" {
			t.Errorf("mandoc: %s", said)
		}
		// Whoever reads one finds the others.
		text := readFile(t, page)
		for _, other := range pages {
			name := filepath.Base(other)
			reference := ".Xr " + strings.TrimSuffix(name, filepath.Ext(name)) + " " + strings.TrimPrefix(filepath.Ext(name), ".")
			if other != page && !strings.Contains(text, reference) {
				t.Errorf("%s does not refer to %s", page, name)
			}
		}
	}
	output(t, "shellcheck", bashCompletion)
	output(t, "zsh", "-n", zshCompletion)
	output(t, "fish", "--no-execute", fishCompletion)
}
