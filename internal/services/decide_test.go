package services

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveapply/liveapply/internal/state"
)

func TestWhatIsDoneToAUnit(t *testing.T) {
	nginx := facts{names: []string{"nginx.service"}, canReload: true, canRestart: true, configuration: []string{"/etc/nginx", "/etc/default/nginx"}}
	with := func(unit facts, change func(*facts)) facts {
		unit.names = slices.Clone(unit.names)
		change(&unit)
		return unit
	}
	stale := Changes{Stale: []Stale{{"nginx.service", "libssl.so.3 was replaced"}, {"dbus.service", "it"}, {"caller.service", "it"}}}
	for name, test := range map[string]struct {
		unit    facts
		rules   Rules
		changes Changes
		want    *state.Task
	}{
		"nothing changed": {unit: nginx, changes: Changes{Units: []string{"other.service"}, Etc: []string{"/etc/nginx.conf"}, Stale: []Stale{{"a.service", "it"}}}},
		"it runs on replaced files": {unit: nginx, changes: stale,
			want: &state.Task{Unit: "nginx.service", Action: state.Restart, Why: "libssl.so.3 was replaced"}},
		"only its configuration": {unit: nginx, changes: Changes{Etc: []string{"/etc/nginx/conf.d/a.conf"}},
			want: &state.Task{Unit: "nginx.service", Action: state.Reload, Why: "/etc/nginx/conf.d/a.conf changed"}},
		"its configuration, and it cannot reload": {unit: with(nginx, func(f *facts) { f.canReload = false }), changes: Changes{Etc: []string{"/etc/default/nginx"}},
			want: &state.Task{Unit: "nginx.service", Action: state.Restart, Why: "/etc/default/nginx changed"}},
		"its unit file": {unit: nginx, changes: Changes{Units: []string{"nginx.service"}, Etc: []string{"/etc/nginx/a"}},
			want: &state.Task{Unit: "nginx.service", Action: state.Restart, Why: "its unit file changed"}},
		"that of its template": {unit: with(nginx, func(f *facts) { f.names = []string{"web@1.service"} }), changes: Changes{Units: []string{"web@.service"}},
			want: &state.Task{Unit: "web@1.service", Action: state.Restart, Why: "its unit file changed"}},
		"by an alias": {unit: with(nginx, func(f *facts) { f.names = append(f.names, "www.service") }), changes: Changes{Units: []string{"www.service"}},
			want: &state.Task{Unit: "nginx.service", Action: state.Restart, Why: "its unit file changed"}},
		"it is spared": {unit: with(nginx, func(f *facts) { f.names = []string{"dbus.service"} }), changes: stale,
			want: &state.Task{Unit: "dbus.service", Action: state.Leave, Why: "it"}},
		"it is spared by an alias": {unit: with(nginx, func(f *facts) { f.names = append(f.names, "display-manager.service") }), changes: stale,
			want: &state.Task{Unit: "nginx.service", Action: state.Leave, Why: "libssl.so.3 was replaced"}},
		"it is not spared": {unit: with(nginx, func(f *facts) { f.names = []string{"dbus.service"} }), changes: stale, rules: Rules{Restart: []string{"dbus*"}},
			want: &state.Task{Unit: "dbus.service", Action: state.Restart, Why: "it"}},
		"the caller, whatever the rules are": {unit: with(nginx, func(f *facts) { f.names = []string{"caller.service"} }), changes: stale, rules: Rules{Restart: []string{"*"}},
			want: &state.Task{Unit: "caller.service", Action: state.Leave, Why: "it"}},
		"it runs once": {unit: with(nginx, func(f *facts) { f.isOneshot = true }), changes: stale,
			want: &state.Task{Unit: "nginx.service", Action: state.Leave, Why: "libssl.so.3 was replaced"}},
		"its unit file is gone": {unit: with(nginx, func(f *facts) { f.isGone, f.canRestart, f.canReload = true, false, false }), changes: stale,
			want: &state.Task{Unit: "nginx.service", Action: state.Stop, Why: "libssl.so.3 was replaced"}},
		"no person may restart it": {unit: with(nginx, func(f *facts) { f.canRestart = false }), changes: stale, rules: Rules{Restart: []string{"*"}},
			want: &state.Task{Unit: "nginx.service", Action: state.Leave, Why: "libssl.so.3 was replaced"}},
		"it wishes to be ignored": {unit: with(nginx, func(f *facts) { f.wish = "ignore" }), changes: stale,
			want: &state.Task{Unit: "nginx.service", Action: state.Leave, Why: "libssl.so.3 was replaced"}},
		"it wishes a reload": {unit: with(nginx, func(f *facts) { f.wish = "reload" }), changes: stale,
			want: &state.Task{Unit: "nginx.service", Action: state.Reload, Why: "libssl.so.3 was replaced"}},
		"the administrator's wish is above that": {unit: with(nginx, func(f *facts) { f.wish = "ignore" }), changes: stale, rules: Rules{Restart: []string{"nginx.*"}},
			want: &state.Task{Unit: "nginx.service", Action: state.Restart, Why: "libssl.so.3 was replaced"}},
		"the administrator wants it ignored": {unit: nginx, changes: stale, rules: Rules{Ignore: []string{"nginx.service"}, Restart: []string{"*"}},
			want: &state.Task{Unit: "nginx.service", Action: state.Leave, Why: "libssl.so.3 was replaced"}},
		"the administrator names one with a backslash": {unit: with(nginx, func(f *facts) { f.names = append(f.names, `a\x2db.service`) }), changes: stale, rules: Rules{Ignore: []string{`a\x2db.service`}},
			want: &state.Task{Unit: "nginx.service", Action: state.Leave, Why: "libssl.so.3 was replaced"}},
		"the administrator wants a reload": {unit: nginx, changes: stale, rules: Rules{Reload: []string{"nginx.service"}},
			want: &state.Task{Unit: "nginx.service", Action: state.Reload, Why: "libssl.so.3 was replaced"}},
	} {
		var got *state.Task
		if task, needed := test.rules.decide(test.unit, "caller.service", test.changes); needed {
			got = &task
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestConfigurationThatAUnitNames(t *testing.T) {
	got := configurationOf(map[string]any{
		"ConfigurationDirectory": []string{"nginx"},
		"EnvironmentFiles":       [][]any{{"/etc/default/nginx", true}},
		"ExecStartPre":           [][]any{{"/usr/sbin/nginx", []string{"/usr/sbin/nginx", "-t"}, false}},
		"ExecStart":              [][]any{{"/usr/sbin/nginx", []string{"/usr/sbin/nginx", "-c", "/etc/nginx.conf", "--more=/etc/more"}, false}},
	})
	if diff := cmp.Diff([]string{"/etc/nginx", "/etc/default/nginx", "/etc/nginx.conf", "/etc/more"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestWishOfAUnit(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	unit := write("a.service", "[Unit]\nX-LiveApply=reload\n[Service]\nX-LiveApply=ignore\nExecStart=true\n")
	dropIn := write("10.conf", "[Unit]\nX-LiveApply=ignore\n")
	long := write("b.service", "[Unit]\nX-LiveApply=restart\n[Service]\nEnvironment="+strings.Repeat("x", 5000)+"\n")
	for want, files := range map[string][]string{"": {"", filepath.Join(dir, "none")}, "reload": {unit}, "ignore": {unit, dropIn}, "restart": {long}} {
		if got := wishIn(files); got != want {
			t.Errorf("%v wish %q, want %q", files, got, want)
		}
	}
}

func TestChecksAreRootsAlone(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	add := func(dir, name string, mode os.FileMode) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	add(first, "10-web", 0o755)
	add(first, "README", 0o644)
	add(second, "10-web", 0o755)
	add(second, "20-db", 0o755)
	add(second, "30-hidden", 0o755)
	if err := os.Symlink("/dev/null", filepath.Join(first, "30-hidden")); err != nil {
		t.Fatal(err)
	}
	dirs := []string{first, filepath.Join(first, "none"), second}
	got, err := checksIn(dirs)
	if diff := cmp.Diff([]string{filepath.Join(first, "10-web"), filepath.Join(second, "20-db")}, got); diff != "" || err != nil {
		t.Errorf("got %v (-want +got):\n%s", err, diff)
	}
	for name, mode := range map[string]os.FileMode{"40-anybody": 0o777, "40-it's": 0o755, `40-\`: 0o755} {
		add(second, name, mode)
		if _, err := checksIn(dirs); err == nil || !strings.Contains(err.Error(), "40-") {
			t.Errorf("%s with mode %o is run: %v", name, mode, err)
		}
		if err := os.Remove(filepath.Join(second, name)); err != nil {
			t.Fatal(err)
		}
	}
}
