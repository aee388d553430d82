package phase

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/treediff"
)

func TestEffectsFollowThePathsThatChanged(t *testing.T) {
	file, directory, none := ostree.Entry{Kind: ostree.KindFile}, ostree.Entry{Kind: ostree.KindDirectory}, ostree.Entry{}
	for name, test := range map[string]struct {
		old, new ostree.Entry
		path     string
		want     effects
	}{
		"unit":                {none, file, "lib/systemd/system/nginx.service", effects{reload: state.Reload{Units: true}}},
		"removed unit":        {file, none, "lib/systemd/system/nginx.service", effects{reload: state.Reload{Units: true}}},
		"directory of units":  {directory, directory, "lib/systemd/system/x.service.d", effects{}},
		"bus policy":          {none, file, "share/dbus-1/system.d/x.conf", effects{reload: state.Reload{DBus: true}}},
		"udev rule":           {none, file, "lib/udev/rules.d/60-x.rules", effects{reload: state.Reload{Udev: true}}},
		"hwdb source":         {none, file, "lib/udev/hwdb.d/60-x.hwdb", effects{hwdb: true, reload: state.Reload{Udev: true}}},
		"catalog":             {file, file, "lib/systemd/catalog/x.catalog", effects{reload: state.Reload{Catalog: true}}},
		"users":               {none, file, "lib/sysusers.d/x.conf", effects{sysusers: []string{"x.conf"}}},
		"users that go":       {file, none, "lib/sysusers.d/x.conf", effects{}},
		"directories":         {file, file, "lib/tmpfiles.d/x.conf", effects{tmpfiles: []string{"x.conf"}}},
		"not a fragment":      {file, file, "lib/tmpfiles.d/README", effects{}},
		"library":             {none, file, "lib/x86_64-linux-gnu/libpq.so.5", effects{libraries: true}},
		"module of a kernel":  {none, file, "lib/modules/6.1/vmlinuz", effects{reboot: []string{"kernel"}}},
		"systemd":             {file, file, "lib/systemd/systemd", effects{reboot: []string{"systemd"}}},
		"firmware":            {file, file, "lib/firmware/x.bin", effects{reboot: []string{"firmware"}}},
		"nothing in special":  {none, file, "share/doc/x/copyright", effects{}},
		"the root by its own": {directory, directory, "", effects{}},
	} {
		t.Run(name, func(t *testing.T) {
			got := effectsOf([]treediff.Change{{Path: test.path, Old: test.old, New: test.new}}, &etcmerge.Plan{})
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(effects{})); diff != "" {
				t.Errorf("effects (-want +got):\n%s", diff)
			}
		})
	}
}
