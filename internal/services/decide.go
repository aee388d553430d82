package services

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/liveapply/liveapply/internal/state"
)

// Changes are what the decision is made from.
type Changes struct {
	Units []string // unit files that changed, by the unit's name; that of a template stands for its instances
	Etc   []string // paths that changed in /etc, absolute
	Wants []string // units that something wants by a link that is new
	Stale []Stale  // units that run on files which were replaced
}

// concernUnit tells whether the file of a unit changed, or that of its template.
func (c Changes) concernUnit(name string) bool {
	return slices.Contains(c.Units, name) || slices.Contains(c.Units, templateOf(name))
}

// Stale is a unit that runs on files which are no longer what their paths hold.
type Stale struct {
	Unit string
	Why  string
}

// Rules are what people want done, by patterns of unit names; the first that fits counts, in the order of the fields.
type Rules struct {
	Ignore, Restart, Reload []string
}

// spared are never restarted unless somebody says so: what would cut the machine off, end sessions, or cannot be restarted, and what takes part
// in an application.
var spared = []string{
	"dbus.service", "dbus-broker.service", "systemd-logind.service", "display-manager.service", "user@*.service", "user-runtime-dir@*.service",
	"getty@*.service", "serial-getty@*.service", "console-getty.service", "container-getty@*.service",
	"liveapply*", "ostree-*.service",
	"dbus.socket", "systemd-*.socket", "syslog.socket", "ostree-*.path",
}

// facts are what systemd knows of an active unit, as far as it matters here.
type facts struct {
	names         []string // the first is the name, the others are aliases
	isOneshot     bool
	canReload     bool
	canRestart    bool     // by a person
	isGone        bool     // its unit file, while it runs
	fragment      string   // the path of that
	configuration []string // files and directories below /etc that it reads
	wish          string   // X-LiveApply= of its [Unit]: restart, reload, ignore, or ""
}

// decide tells what is to be done to an active unit, the caller's apart; nothing if nothing changed for it.
func (r Rules) decide(unit facts, caller string, changes Changes) (task state.Task, needed bool) {
	task = state.Task{Unit: unit.names[0]}
	files, config := unit.reasons(changes)
	if files == "" && config == "" {
		return task, false
	}
	task.Why = cmp.Or(files, config)
	task.Action = r.action(unit, caller, files == "")
	return task, true
}

// reasons tells what a unit runs or is made of that changed, and which configuration.
func (unit facts) reasons(changes Changes) (files, config string) {
	for _, stale := range changes.Stale {
		if slices.Contains(unit.names, stale.Unit) {
			files = stale.Why
		}
	}
	for _, name := range unit.names {
		if changes.concernUnit(name) {
			files = cmp.Or(files, "its unit file changed")
		}
	}
	for _, changed := range changes.Etc {
		if slices.ContainsFunc(unit.configuration, func(own string) bool { return changed == own || strings.HasPrefix(changed, own+"/") }) {
			return files, changed + " changed"
		}
	}
	return files, ""
}

// action chooses what to do to a unit for which something changed, which may be only its configuration.
func (r Rules) action(unit facts, caller string, onlyConfig bool) state.Action {
	matches := func(patterns []string) bool {
		return slices.ContainsFunc(unit.names, func(name string) bool { return matchesAny(patterns, name) })
	}
	restart := state.Restart
	switch {
	case unit.isGone:
		restart = state.Stop
	case !unit.canRestart:
		restart = state.Leave
	case onlyConfig && unit.canReload:
		restart = state.Reload
	}
	reload := state.Reload
	if !unit.canReload {
		reload = state.Leave
	}
	switch {
	case slices.Contains(unit.names, caller), matches(r.Ignore):
		return state.Leave
	case matches(r.Restart):
		return restart
	case matches(r.Reload):
		return reload
	case unit.wish == "ignore":
		return state.Leave
	case unit.wish == "restart":
		return restart
	case unit.wish == "reload":
		return reload
	case unit.isOneshot, matches(spared):
		return state.Leave
	}
	return restart
}

func matchesAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		matched, err := path.Match(pattern, name)
		return err == nil && matched || pattern == name // a name may have backslashes
	})
}

// templateOf returns the template of an instance, "" for what is none.
func templateOf(name string) string {
	prefix, rest, found := strings.Cut(name, "@")
	if !found || strings.HasPrefix(rest, ".") {
		return ""
	}
	return prefix + "@" + path.Ext(rest)
}
