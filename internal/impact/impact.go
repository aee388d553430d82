// Package impact says what a change of /usr and /etc means for the rest of the system: what kind of change it is, who has to read
// files again, what only a reboot brings. It looks at paths and checksums only.
package impact

import (
	"path"
	"slices"
	"strings"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/pkgdb"
	"github.com/liveapply/liveapply/internal/treediff"
)

// Impact is what a change means. Nothing in it depends on the order in which paths are looked at.
type Impact struct {
	Kind     Kind             `json:"kind"`
	Files    Files            `json:"files"`    // of /usr; directories are not counted
	Packages pkgdb.Difference `json:"packages"` // none are known where the commits have no package database
	Units    Units            `json:"units"`
	Sysusers []string         `json:"sysusers,omitempty"` // names of the sysusers.d fragments that changed
	Tmpfiles []string         `json:"tmpfiles,omitempty"` // names of the tmpfiles.d fragments that changed
	// Libraries: ld.so.cache lists something else now. Hwdb: so does the hardware database.
	Libraries bool   `json:"libraries,omitempty"`
	Hwdb      bool   `json:"hwdb,omitempty"`
	Reload    Reload `json:"reload,omitzero"`
	// RebootRequired names what stays as booted until the next boot: kernel, initramfs, firmware, systemd, boot loader; and paths beside /usr, or below what is mounted in it.
	RebootRequired []string `json:"reboot_required"`
}

// Kind is what kind of change it is.
type Kind string

// The kinds of changes.
const (
	None      Kind = "none"      // nothing in /usr
	Additive  Kind = "additive"  // something comes, and all that was there stays as it was
	Replacing Kind = "replacing" // something changes or goes
)

// Files counts files of all types but directories.
type Files struct {
	Added   int `json:"added"`
	Changed int `json:"changed"`
	Removed int `json:"removed"`
	// Bytes are the content of regular files that come, or become others; whoever makes the Impact counts them.
	Bytes int64 `json:"bytes"`
}

// Units are the unit files of the system manager that come, change or go, by their names; a drop-in is the unit's.
type Units struct {
	Added   []string `json:"added,omitempty"`
	Changed []string `json:"changed,omitempty"`
	Removed []string `json:"removed,omitempty"`
	Wanted  []string `json:"wanted,omitempty"` // by links that are new, such as those of systemctl enable
}

// All are the units whose files come, change or go.
func (u Units) All() []string { return slices.Concat(u.Added, u.Changed, u.Removed) }

// Reload tells which running services have read files that changed.
type Reload struct {
	Units   bool `json:"units,omitempty"`   // systemd: unit files, drop-ins, generators
	DBus    bool `json:"dbus,omitempty"`    // the bus: policy and activation files
	Udev    bool `json:"udev,omitempty"`    // udev: rules
	Catalog bool `json:"catalog,omitempty"` // the compiled journal catalog
	Polkit  bool `json:"polkit,omitempty"`  // polkit: actions and rules
	Users   bool `json:"users,omitempty"`   // the managers of users: their unit files, environment and generators
}

// ReloadAll is for when it is not known what changed.
var ReloadAll = Reload{Units: true, DBus: true, Udev: true, Catalog: true, Polkit: true, Users: true}

// Union returns what r or other asks for.
func (r Reload) Union(other Reload) Reload {
	return Reload{
		Units:   r.Units || other.Units,
		DBus:    r.DBus || other.DBus,
		Udev:    r.Udev || other.Udev,
		Catalog: r.Catalog || other.Catalog,
		Polkit:  r.Polkit || other.Polkit,
		Users:   r.Users || other.Users,
	}
}

// Of says what the changes of /usr and /etc mean, and those of the packages.
func Of(usr []treediff.Change, etc *etcmerge.Plan, packages pkgdb.Difference) Impact {
	i := Impact{Kind: None, Packages: packages, RebootRequired: RebootFor(usr)}
	for _, change := range usr {
		i.count(change)
		if !isOnlyDirectory(change) {
			i.add(change.Path, change.New.Kind == ostree.KindFile)
			i.addUnit(change)
			i.addWanted(strings.TrimPrefix(change.Path, "lib/"), change.Old.Kind == ostree.KindNone)
		}
	}
	if etc != nil {
		for _, change := range etc.Changes {
			i.add("etc/"+change.Path, change.After.IsFile())
			i.addWanted(change.Path, change.Before.Type == etcmerge.Absent)
		}
	}
	for _, names := range []*[]string{&i.Units.Added, &i.Units.Changed, &i.Units.Removed, &i.Units.Wanted} {
		slices.Sort(*names)
		*names = slices.Compact(*names)
	}
	return i
}

// isOnlyDirectory tells whether the path is a directory before and after: what changes is in it, or its mode or owner.
func isOnlyDirectory(change treediff.Change) bool {
	return change.Old.Kind == ostree.KindDirectory && change.New.Kind == ostree.KindDirectory
}

// IsReplacing tells whether something that was there is not there as it was.
func IsReplacing(change treediff.Change) bool {
	return change.Old.Kind != ostree.KindNone && !isOnlyDirectory(change)
}

// count adds a change to the numbers.
func (i *Impact) count(change treediff.Change) {
	isFile, wasFile := change.New.Kind == ostree.KindFile, change.Old.Kind == ostree.KindFile
	switch {
	case isFile && wasFile:
		i.Files.Changed++
	case isFile:
		i.Files.Added++
	case wasFile:
		i.Files.Removed++
	}
	switch {
	case IsReplacing(change):
		i.Kind = Replacing
	case i.Kind == None && !isOnlyDirectory(change):
		i.Kind = Additive
	}
}

// add notes what one path means. It is relative to /usr, or begins with "etc/".
func (i *Impact) add(name string, isFile bool) {
	i.addFragment(name, isFile)
	i.Reload = i.Reload.Union(ReloadFor(name))
	i.Libraries = i.Libraries || isLibrary(name)
	i.Hwdb = i.Hwdb || hasAnyPrefix(name, "lib/udev/hwdb.d/", "etc/udev/hwdb.d/")
}

// addFragment notes a fragment to run, by its name, as sysusers.d(5) and tmpfiles.d(5) order and override them. One that the
// target does not have undoes nothing.
func (i *Impact) addFragment(name string, isFile bool) {
	if !isFile || path.Ext(name) != ".conf" {
		return
	}
	switch path.Dir(name) {
	case "lib/sysusers.d", "etc/sysusers.d":
		i.Sysusers = append(i.Sysusers, path.Base(name))
	case "lib/tmpfiles.d", "etc/tmpfiles.d":
		i.Tmpfiles = append(i.Tmpfiles, path.Base(name))
	}
}

// unitTypes are the extensions of unit files (systemd.unit(5)).
var unitTypes = []string{".service", ".socket", ".device", ".mount", ".automount", ".swap", ".target", ".path", ".timer", ".slice", ".scope"}

// addUnit notes the unit that a file below lib/systemd/system belongs to.
func (i *Impact) addUnit(change treediff.Change) {
	rest, ok := strings.CutPrefix(change.Path, "lib/systemd/system/")
	if !ok {
		return
	}
	name, isDropIn := strings.CutSuffix(path.Dir(rest), ".d")
	if !isDropIn {
		name = rest
	}
	switch {
	case !slices.Contains(unitTypes, path.Ext(name)) || strings.Contains(name, "/"):
	case isDropIn || change.Old.Kind != ostree.KindNone && change.New.Kind != ostree.KindNone:
		i.Units.Changed = append(i.Units.Changed, name)
	case change.New.Kind != ostree.KindNone:
		i.Units.Added = append(i.Units.Added, name)
	default:
		i.Units.Removed = append(i.Units.Removed, name)
	}
}

// addWanted notes the unit that a new link in a unit's .wants or .requires directory names. The path is relative to /usr/lib or /etc.
func (i *Impact) addWanted(name string, isNew bool) {
	dir, unit := path.Split(name)
	by := path.Ext(strings.TrimSuffix(dir, "/"))
	if isNew && strings.HasPrefix(dir, "systemd/system/") && (by == ".wants" || by == ".requires") {
		i.Units.Wanted = append(i.Units.Wanted, unit)
	}
}

// ReloadFor tells who has read the file at a path below /usr, or below /etc or /run with "etc/" or "run/" in front.
func ReloadFor(name string) Reload {
	return Reload{
		Units:   hasAnyPrefix(name, managerInputs...) || hasAnyPrefix(name, generatorInputs...),
		DBus:    hasAnyPrefix(name, "share/dbus-1/", "etc/dbus-1/"),
		Udev:    hasAnyPrefix(name, "lib/udev/", "etc/udev/", "run/udev/rules.d/"),
		Catalog: hasAnyPrefix(name, "lib/systemd/catalog/", "etc/systemd/catalog/"),
		Polkit:  hasAnyPrefix(name, "share/polkit-1/", "etc/polkit-1/", "run/polkit-1/"),
		Users:   hasAnyPrefix(name, userManagerInputs...),
	}
}

// managerInputs are what systemd's manager reads itself (systemd.unit(5), systemd-system.conf(5)).
var managerInputs = []string{
	"lib/systemd/system/", "lib/systemd/system.attached/", "lib/systemd/system.control/", "lib/systemd/system-generators/", "lib/systemd/system-environment-generators/", "lib/systemd/system.conf",
	"local/lib/systemd/system/", "local/lib/systemd/system-generators/", "local/lib/systemd/system.conf",
	"etc/systemd/system/", "etc/systemd/system-generators/", "etc/systemd/system.conf", "run/systemd/system/", "run/systemd/system-generators/", "run/systemd/system.conf",
}

// userManagerInputs are what the managers of users and their generators read (systemd.unit(5), environment.d(5), systemd-xdg-autostart-generator(8), podman-systemd.unit(5)).
var userManagerInputs = []string{
	"lib/systemd/user/", "lib/systemd/user-generators/", "lib/systemd/user-environment-generators/", "lib/systemd/user.conf", "lib/environment.d/", "share/systemd/user/",
	"local/lib/systemd/user/", "etc/systemd/user/", "etc/systemd/user-generators/", "etc/systemd/user.conf", "etc/environment.d/", "etc/xdg/autostart/", "run/systemd/user/",
	"share/containers/systemd/users/", "etc/containers/systemd/users/",
}

// generatorInputs are what generators make units of: those of systemd, and others that distributions have.
var generatorInputs = []string{
	"etc/fstab", "etc/crypttab", "etc/veritytab", "etc/integritytab", // systemd-fstab-generator(8) and its like
	"etc/init.d/", "etc/rc", // systemd-sysv-generator(8), systemd-rc-local-generator(8): rc.local and rcN.d
	"share/containers/systemd/", "etc/containers/systemd/", "run/containers/systemd/", // podman-systemd.unit(5)
	"lib/systemd/zram-generator.conf", "etc/systemd/zram-generator.conf",
	"lib/netplan/", "etc/netplan/", "run/netplan/",
	"etc/cloud/", "etc/lvm/", "etc/exports", "etc/nfs", "etc/default/", "etc/sysconfig/",
	"etc/postgresql/", "etc/openvpn/", "etc/uwsgi/", "etc/crontab", "etc/cron.", "etc/anacrontab", // systemd-cron
}

// isLibrary tells whether ldconfig(8) might list the file.
func isLibrary(name string) bool {
	return hasAnyPrefix(name, "lib/", "lib64/", "lib32/", "libx32/", "local/lib/") && strings.Contains(path.Base(name), ".so")
}

// RebootFor names what stays as booted until the next boot when /usr changes, sorted.
func RebootFor(usr []treediff.Change) []string {
	reasons := []string{}
	for _, change := range usr {
		if reason := rebootReason(change.Path); reason != "" && !isOnlyDirectory(change) && !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
	}
	slices.Sort(reasons)
	return reasons
}

// rebootReason names what runs on with the booted version until the next boot; empty for everything else.
func rebootReason(name string) string {
	base := path.Base(name)
	switch {
	case hasAnyPrefix(name, "lib/modules/", "lib/ostree-boot/") && (strings.HasPrefix(base, "initramfs") || strings.HasPrefix(base, "initrd")):
		return "initramfs"
	case hasAnyPrefix(name, "lib/modules/", "lib/ostree-boot/vmlinuz"):
		return "kernel"
	case hasAnyPrefix(name, "lib/firmware/"):
		return "firmware"
	case name == "lib/systemd/systemd", name == "lib/systemd/systemd-executor", hasAnyPrefix(name, "lib/systemd/libsystemd-"):
		return "systemd"
	case hasAnyPrefix(name, "lib/ostree-boot/", "lib/bootupd/", "lib/efi/", "lib/bootc/kargs.d/", "lib/kernel/cmdline", "lib/systemd/boot/"):
		return "boot loader"
	}
	return ""
}

func hasAnyPrefix(name string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}
