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
	"github.com/liveapply/liveapply/internal/ostree"
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
	architecture    = "../../docs/architecture.md"
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

// sources are where the options of a verb are told, and its verbs if it is empty.
var sources = map[string]func(t *testing.T, verb string) []string{
	"the man page": func(t *testing.T, verb string) []string {
		page := readFile(t, manPage)
		all := section(t, page, ".Sh", "VERBS")
		if verb == "" {
			return matches(`(?m)^\.Ss (\S+)$`, all)
		}
		items := strings.Join(matches(`(?m)^\.It (.*)$`, section(t, page, ".Ss", verb)), "\n") + "\n" + matches(`(?s)^All verbs have\n(.*?)\.\n`, all)[0]
		return dashed(matches(`Fl (\S+)`, items))
	},
	"the synopsis of the man page": func(t *testing.T, verb string) []string {
		page := readFile(t, manPage)
		if verb == "" {
			return matches(`(?m)^\.Nm\n\.Cm (\S+)$`, section(t, page, ".Sh", "VERBS"))
		}
		synopsis, _, _ := strings.Cut(section(t, page, ".Ss", verb), ".Pp\n")
		return dashed(append(matches(`Fl (\S+)`, synopsis), "h", "-help"))
	},
	"bash": func(t *testing.T, verb string) []string {
		words := "liveapplyctl ''"
		if verb != "" {
			words = "liveapplyctl " + verb + " -"
		}
		script := fmt.Sprintf("source %s; COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _liveapplyctl; printf '%%s\\n' \"${COMPREPLY[@]}\"", bashCompletion, words)
		return lines(strings.ReplaceAll(output(t, "bash", "--norc", "-c", script), "=", ""))
	},
	"zsh": func(t *testing.T, verb string) []string {
		// What it hands to the functions of zsh's completion system.
		stubs := `_arguments() { if [[ $1 == -C ]]; then state=$asked; line=($verb); else print -l -- "$@"; fi }; _describe() { print -l -- $verbs }; `
		if verb == "" {
			return matches(`(?m)^([a-z-]+):`, output(t, "zsh", "-f", "-c", stubs+"source "+zshCompletion+"; _liveapplyctl_verbs"))
		}
		specs := output(t, "zsh", "-f", "-c", stubs+"asked=verb verb="+verb+"; source "+zshCompletion)
		return matches(`(?m)^(?:\([^)]*\))?(--?[a-z-]*[a-z])[=+]?\[`, specs)
	},
	"fish": func(t *testing.T, verb string) []string {
		line := "liveapplyctl "
		if verb != "" {
			line += verb + " -"
		}
		return matches(`(?m)^(\S+)`, output(t, "fish", "--no-config", "-c", "source "+fishCompletion+"; complete -C '"+line+"'"))
	},
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
	names := []string{}
	for _, v := range verbs() {
		names = append(names, v.name)
	}
	var help bytes.Buffer
	if err := printHelp(pipe(&help)); err != nil {
		t.Fatal(err)
	}
	inHelp, _, _ := strings.Cut(help.String(), "Options:")
	if diff := cmp.Diff(slices.Sorted(slices.Values(names)), matches(`(?m)^  ([a-z-]+) `, inHelp)); diff != "" {
		t.Errorf("the help has other verbs (-want +got):\n%s", diff)
	}
	for source, told := range sources {
		if diff := cmp.Diff(slices.Sorted(slices.Values(names)), told(t, "")); diff != "" {
			t.Errorf("%s has other verbs (-help +it):\n%s", source, diff)
		}
		for _, v := range verbs() {
			var help bytes.Buffer
			if err := v.printHelp(pipe(&help)); err != nil {
				t.Fatal(err)
			}
			_, options, _ := strings.Cut(help.String(), "Options:")
			want := append(matches(`(?m)^ +(-[a-z])\b`, options), matches(`(?m)^ +(?:-[a-z], )?(--[a-z-]+)`, options)...)
			slices.Sort(want)
			if diff := cmp.Diff(want, told(t, v.name)); diff != "" {
				t.Errorf("%s has other options for %s (-help +it):\n%s", source, v.name, diff)
			}
		}
	}
}

// fakePrograms puts programs in front of those that the completions ask.
func fakePrograms(t *testing.T) {
	t.Helper()
	bin := t.TempDir()
	for name, script := range map[string]string{
		"ostree":       "[ \"$1\" = refs ] && printf 'origin:debian/13\\nlocal\\n'",
		"liveapplyctl": "[ \"$1\" = history ] && printf 'STARTED TRANSACTION COMMIT\\n2026-11-21 12:00:00  1111 aaaa\\n2026-11-21 12:00:01  2222 bbbb\\n'",
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
	for verb, want := range map[string][]string{"apply": {"local", "origin:debian/13"}, "plot": {"1111", "2222"}} {
		function := map[string]string{"apply": "_liveapplyctl_commits", "plot": "_liveapplyctl_transactions"}[verb]
		for shell, got := range map[string]string{
			"bash": output(t, "bash", "--norc", "-c", "source "+bashCompletion+"; COMP_WORDS=(liveapplyctl "+verb+" ''); COMP_CWORD=2; _liveapplyctl; printf '%s\\n' \"${COMPREPLY[@]}\""),
			"fish": output(t, "fish", "--no-config", "-c", "source "+fishCompletion+"; complete -C 'liveapplyctl "+verb+" '"),
			"zsh":  output(t, "zsh", "-f", "-c", zshStubs+function),
		} {
			if diff := cmp.Diff(want, matches(`(?m)^(\S+)`, got)); diff != "" {
				t.Errorf("%s offers for %s (-want +got):\n%s", shell, verb, diff)
			}
		}
	}
}

func TestExitStatusesAreDocumented(t *testing.T) {
	want := []string{"0", strconv.Itoa(exitFailed), strconv.Itoa(exitUsage), strconv.Itoa(exitNothing)}
	if diff := cmp.Diff(want, matches(`(?m)^\.It (\d+)$`, section(t, readFile(t, manPage), ".Sh", "EXIT STATUS"))); diff != "" {
		t.Errorf("the man page has others (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, matches(`(?:status: |, )(\d+) `, strings.ReplaceAll(exitStatusText, "\n", " "))); diff != "" {
		t.Errorf("the help has others (-want +got):\n%s", diff)
	}
}

// schemas are the sections of the man page on what is in JSON.
var schemas = map[reflect.Type]string{
	reflect.TypeFor[state.Stamp]():      "The stamp",
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
		if field.Anonymous || name == "-" {
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
	page, text := readFile(t, manPage), readFile(t, architecture)
	seen := map[reflect.Type]bool{}
	// What status, diff and apply --dry-run, history, and needs-restart print, and all that is in that.
	for objects := []reflect.Type{
		reflect.TypeFor[state.Stamp](), reflect.TypeFor[state.Summary](), reflect.TypeFor[state.Entry](), reflect.TypeFor[services.NeedsRestart](),
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
				t.Errorf("%s lacks the field %s", architecture, name)
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
