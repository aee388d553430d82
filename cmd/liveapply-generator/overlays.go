package main

import (
	"errors"
	"path/filepath"
	"slices"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/liveapply/liveapply/internal/overlay"
)

// overlays has those that are enabled shown at boot, and to units that alone see some. At boot /var need not be mounted yet: then
// liveapply-overlays.service, which looks for itself, has systemd run this once more.
func overlays(root, dir string) error {
	if err := wantAtBoot(dir, filepath.Join(unitDir, "liveapply-overlays.service")); err != nil {
		return err
	}
	var all []overlay.Placed
	var damaged error
	for _, store := range []overlay.Store{
		{Dir: filepath.Join(root, "var/lib/liveapply/overlays"), Path: "/var/lib/liveapply/overlays"},
		{Dir: filepath.Join(root, "ostree/liveapply/overlays"), Path: "/ostree/liveapply/overlays"},
		{Dir: filepath.Join(root, "run/liveapply/overlays"), Path: "/run/liveapply/overlays"},
	} {
		found, err := overlay.All([]overlay.Store{store})
		damaged = errors.Join(damaged, err) // the others do not suffer
		all = append(all, found...)
	}
	overlay.Sort(all)
	return errors.Join(damaged, extensions(all, dir))
}

// extensions has units see what is for them alone, by ExtensionDirectories= of systemd.exec(5): what is named later lies above. What a unit that runs
// shows of them cannot be told from its mounts, so the directories are also mounted at their own places: as long as one is, it stays.
func extensions(all []overlay.Placed, dir string) error {
	options := map[string][]*unit.UnitOption{}
	for _, o := range slices.Backward(all) {
		if name := o.Scope.Unit(); name != "" && o.Enabled && o.Generation > 0 {
			options[name] = append(options[name],
				unit.NewUnitOption("Service", "ExtensionDirectories", o.Tree()), unit.NewUnitOption("Service", "BindReadOnlyPaths", o.Tree()))
		}
	}
	for name, list := range options {
		if err := write(dir, name+".d/60-liveapply-overlays.conf", list); err != nil {
			return err
		}
	}
	return nil
}
