package impact

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/pkgdb"
	"github.com/liveapply/liveapply/internal/treediff"
)

var (
	file      = ostree.Entry{Kind: ostree.KindFile}
	directory = ostree.Entry{Kind: ostree.KindDirectory}
	none      = ostree.Entry{}
)

func TestImpactFollowsThePathsThatChanged(t *testing.T) {
	added, changed, removed := Files{Added: 1}, Files{Changed: 1}, Files{Removed: 1}
	for name, test := range map[string]struct {
		old, new ostree.Entry
		path     string
		want     Impact
	}{
		"unit": {none, file, "lib/systemd/system/nginx.service",
			Impact{Kind: Additive, Files: added, Units: Units{Added: []string{"nginx.service"}}, Reload: Reload{Units: true}}},
		"changed unit": {file, file, "lib/systemd/system/nginx.service",
			Impact{Kind: Replacing, Files: changed, Units: Units{Changed: []string{"nginx.service"}}, Reload: Reload{Units: true}}},
		"removed unit": {file, none, "lib/systemd/system/nginx.service",
			Impact{Kind: Replacing, Files: removed, Units: Units{Removed: []string{"nginx.service"}}, Reload: Reload{Units: true}}},
		"drop-in": {none, file, "lib/systemd/system/nginx.service.d/lab.conf",
			Impact{Kind: Additive, Files: added, Units: Units{Changed: []string{"nginx.service"}}, Reload: Reload{Units: true}}},
		"link by which a unit is wanted": {none, file, "lib/systemd/system/multi-user.target.wants/nginx.service",
			Impact{Kind: Additive, Files: added, Units: Units{Wanted: []string{"nginx.service"}}, Reload: Reload{Units: true}}},
		"link by which a unit was wanted": {file, file, "lib/systemd/system/multi-user.target.wants/nginx.service",
			Impact{Kind: Replacing, Files: changed, Reload: Reload{Units: true}}},
		"directory of units":     {directory, directory, "lib/systemd/system/x.service.d", Impact{Kind: None}},
		"bus policy":             {none, file, "share/dbus-1/system.d/x.conf", Impact{Kind: Additive, Files: added, Reload: Reload{DBus: true}}},
		"udev rule":              {none, file, "lib/udev/rules.d/60-x.rules", Impact{Kind: Additive, Files: added, Reload: Reload{Udev: true}}},
		"hwdb source":            {none, file, "lib/udev/hwdb.d/60-x.hwdb", Impact{Kind: Additive, Files: added, Hwdb: true, Reload: Reload{Udev: true}}},
		"catalog":                {file, file, "lib/systemd/catalog/x.catalog", Impact{Kind: Replacing, Files: changed, Reload: Reload{Catalog: true}}},
		"users":                  {none, file, "lib/sysusers.d/x.conf", Impact{Kind: Additive, Files: added, Sysusers: []string{"x.conf"}}},
		"users that go":          {file, none, "lib/sysusers.d/x.conf", Impact{Kind: Replacing, Files: removed}},
		"directories":            {file, file, "lib/tmpfiles.d/x.conf", Impact{Kind: Replacing, Files: changed, Tmpfiles: []string{"x.conf"}}},
		"not a fragment":         {file, file, "lib/tmpfiles.d/README", Impact{Kind: Replacing, Files: changed}},
		"library":                {none, file, "lib/x86_64-linux-gnu/libpq.so.5", Impact{Kind: Additive, Files: added, Libraries: true}},
		"module of a kernel":     {none, file, "lib/modules/6.1/vmlinuz", Impact{Kind: Additive, Files: added, RebootRequired: []string{"kernel"}}},
		"initramfs":              {none, file, "lib/modules/6.1/initramfs.img", Impact{Kind: Additive, Files: added, RebootRequired: []string{"initramfs"}}},
		"kernel arguments":       {none, file, "lib/bootc/kargs.d/10.toml", Impact{Kind: Additive, Files: added, RebootRequired: []string{"boot loader"}}},
		"systemd":                {file, file, "lib/systemd/systemd", Impact{Kind: Replacing, Files: changed, RebootRequired: []string{"systemd"}}},
		"firmware":               {file, file, "lib/firmware/x.bin", Impact{Kind: Replacing, Files: changed, RebootRequired: []string{"firmware"}}},
		"nothing in special":     {none, file, "share/doc/x/copyright", Impact{Kind: Additive, Files: added}},
		"the root by its own":    {directory, directory, "", Impact{Kind: None}},
		"a new directory":        {none, directory, "share/x", Impact{Kind: Additive}},
		"a file for a directory": {directory, file, "share/x", Impact{Kind: Replacing, Files: added}},
		"a directory for a file": {file, directory, "share/x", Impact{Kind: Replacing, Files: removed}},
	} {
		t.Run(name, func(t *testing.T) {
			if test.want.RebootRequired == nil {
				test.want.RebootRequired = []string{}
			}
			got := Of([]treediff.Change{{Path: test.path, Old: test.old, New: test.new}}, &etcmerge.Plan{}, pkgdb.Difference{})
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("impact (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReasonsAndUnitsAreNamedOnce(t *testing.T) {
	got := Of([]treediff.Change{
		{Path: "lib/systemd/systemd", Old: file, New: file},
		{Path: "lib/modules/6.1/b", New: file},
		{Path: "lib/modules/6.1/a", New: file},
		{Path: "lib/systemd/system/x.service.d/b.conf", New: file},
		{Path: "lib/systemd/system/x.service.d/a.conf", New: file},
	}, nil, pkgdb.Difference{})
	if diff := cmp.Diff([]string{"kernel", "systemd"}, got.RebootRequired); diff != "" {
		t.Errorf("reasons (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"x.service"}, got.Units.Changed); diff != "" {
		t.Errorf("units (-want +got):\n%s", diff)
	}
}

func TestWhatIsReadInEtcAndRunIsReloaded(t *testing.T) {
	for path, want := range map[string]Reload{
		"etc/systemd/system/x.service.d/a.conf": {Units: true}, "run/systemd/system/x.service": {Units: true}, "run/udev/rules.d/60-x.rules": {Udev: true},
		"run/udev/data/x": {}, "run/x": {}, "etc/x": {}, "share/x": {},
		"share/polkit-1/actions/x.policy": {Polkit: true}, "etc/polkit-1/rules.d/x.rules": {Polkit: true},
		"lib/systemd/user/x.service": {Users: true}, "lib/environment.d/x.conf": {Users: true}, "etc/xdg/autostart/x.desktop": {Users: true},
		"etc/containers/systemd/web.container": {Units: true}, "share/containers/systemd/web.container": {Units: true}, "etc/fstab": {Units: true}, "etc/init.d/x": {Units: true},
		"etc/rc2.d/S01x": {Units: true}, "lib/systemd/system-environment-generators/10-x": {Units: true}, "etc/systemd/system.conf.d/x.conf": {Units: true},
	} {
		if got := ReloadFor(path); got != want {
			t.Errorf("%s: got %+v, want %+v", path, got, want)
		}
	}
}
