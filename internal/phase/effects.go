package phase

import (
	"path"
	"slices"
	"strings"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/treediff"
)

// effects is what a change of /usr and /etc means for the rest of the system.
type effects struct {
	sysusers, tmpfiles []string // names of fragments to run
	libraries          bool     // ld.so.cache lists something else now
	hwdb               bool     // and so does the hardware database
	reload             state.Reload
	reboot             []string
}

// effectsOf derives them from the paths that change.
func effectsOf(usr []treediff.Change, etc *etcmerge.Plan) effects {
	var e effects
	for _, change := range usr {
		if change.Old.Kind != ostree.KindDirectory || change.New.Kind != ostree.KindDirectory {
			e.add(change.Path, change.New.Kind == ostree.KindFile)
		}
	}
	for _, change := range etc.Changes {
		e.add("etc/"+change.Path, change.After.IsFile())
	}
	return e
}

// add notes what one path means. It is relative to /usr, or begins with "etc/".
func (e *effects) add(name string, isFile bool) {
	e.addFragment(name, isFile)
	e.reload = e.reload.Union(reloadFor(name))
	e.libraries = e.libraries || isLibrary(name)
	e.hwdb = e.hwdb || hasAnyPrefix(name, "lib/udev/hwdb.d/", "etc/udev/hwdb.d/")
	if reason := rebootReason(name); reason != "" && !slices.Contains(e.reboot, reason) {
		e.reboot = append(e.reboot, reason)
	}
}

// addFragment notes a fragment to run, by its name, as sysusers.d(5) and tmpfiles.d(5) order and override them. One that the
// target does not have undoes nothing.
func (e *effects) addFragment(name string, isFile bool) {
	if !isFile || path.Ext(name) != ".conf" {
		return
	}
	switch path.Dir(name) {
	case "lib/sysusers.d", "etc/sysusers.d":
		e.sysusers = append(e.sysusers, path.Base(name))
	case "lib/tmpfiles.d", "etc/tmpfiles.d":
		e.tmpfiles = append(e.tmpfiles, path.Base(name))
	}
}

// reloadFor tells who has read the file at a path below /usr, or below /etc with "etc/" in front.
func reloadFor(name string) state.Reload {
	return state.Reload{
		Units:   hasAnyPrefix(name, "lib/systemd/system/", "lib/systemd/system-generators/", "lib/systemd/system.conf.d/", "etc/systemd/system/"),
		DBus:    hasAnyPrefix(name, "share/dbus-1/", "etc/dbus-1/"),
		Udev:    hasAnyPrefix(name, "lib/udev/", "etc/udev/"),
		Catalog: hasAnyPrefix(name, "lib/systemd/catalog/", "etc/systemd/catalog/"),
	}
}

// isLibrary tells whether ldconfig(8) might list the file.
func isLibrary(name string) bool {
	return hasAnyPrefix(name, "lib/", "lib64/", "lib32/", "libx32/", "local/lib/") && strings.Contains(path.Base(name), ".so")
}

// rebootReason names what runs on with the booted version until the next boot; empty for everything else.
func rebootReason(name string) string {
	switch {
	case hasAnyPrefix(name, "lib/modules/"):
		return "kernel"
	case hasAnyPrefix(name, "lib/firmware/"):
		return "firmware"
	case name == "lib/systemd/systemd":
		return "systemd"
	}
	return ""
}

func hasAnyPrefix(name string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}
