// Package own keeps this machine's own liveapply where the live commit has none that could carry on.
//
// From the switch on, the helper, the units and liveapplyctl are those of the target. prepare finds out whether that can carry on. If not, and if the commit is
// forced, the machine keeps its own: programs beside the layers, since /run may forbid to execute any, and units in /run, which come before those in /usr.
package own

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/services"
)

// Where the programs and the units of liveapply are in a tree, and where a link leads to the machine's own.
const (
	HelperPath = "usr/libexec/liveapply/liveapply-helper"
	ctlPath    = "usr/bin/liveapplyctl"
	UnitDir    = "usr/lib/systemd/system"
	ownUnitDir = "/run/systemd/system"
	// finalizeDropIn is in both directories of units.
	finalizeDropIn = "ostree-finalize-staged.service.d/50-liveapply.conf"
)

// OtherPaths are what a tree has to have besides the helper and the units: what a person takes things back with, and what keeps libostree from finalizing.
var OtherPaths = []string{ctlPath, UnitDir + "/" + finalizeDropIn}

// IsOurUnit tells whether a unit is of what applies and takes back: all but what other programs of liveapply are for, and timers.
func IsOurUnit(name string) bool {
	kept := []string{".service", ".path", ".target"}
	return strings.HasPrefix(name, "liveapply") && slices.Contains(kept, filepath.Ext(name)) &&
		!strings.HasPrefix(name, "liveapply-bus") && !strings.HasPrefix(name, "liveapply-fleetlock") && !strings.HasPrefix(name, "liveapply-update")
}

// needName is the file beside the machine's own programs with the commits that need them.
const needName = "commits"

// Link leads to them, by a name that is known to people and units.
func Link(m *machine.Machine) string { return filepath.Join(m.State.Run, machine.OwnName) }

// IsKept tells whether there are any, or the beginning of them.
func IsKept(m *machine.Machine) bool {
	_, err := os.Lstat(programs(m))
	return err == nil
}

// programs is their directory.
func programs(m *machine.Machine) string {
	return filepath.Join(m.PhysicalRoot(), m.Booted.BackingPath(), "liveapply", machine.OwnName)
}

func dir(s *machine.Storage) string { return filepath.Join(s.Dir, machine.OwnName) }

// Keep has what runs now be there when a commit is live. It is written down for which commit before.
func Keep(ctx context.Context, s *machine.Storage, commit ostree.Checksum) error {
	link := Link(s.Machine)
	isInUse, err := isNeeded(s)
	if err == nil && isInUse {
		return noteNeed(s, commit) // what runs is what was kept before; in /usr, there is the live commit's
	}
	if err == nil {
		err = os.MkdirAll(dir(s), 0o755)
	}
	if err == nil {
		err = noteNeed(s, commit)
	}
	if err == nil {
		err = copyOwnPrograms(s)
	}
	if err == nil {
		_ = os.Remove(link)
		err = os.Symlink(programs(s.Machine), link)
	}
	if err == nil {
		err = writeOwnUnits(link)
	}
	if err != nil {
		return fmt.Errorf("keeping this machine's own liveapply: %w", err)
	}
	return reloadUnits(ctx)
}

// needing lists the commits that need them; nil if none was noted.
func needing(s *machine.Storage) ([]string, error) {
	noted, err := os.ReadFile(filepath.Join(dir(s), needName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.Fields(string(noted)), err
}

// isNeeded tells whether the commit that is live now needs them.
func isNeeded(s *machine.Storage) (bool, error) {
	live, err := s.Machine.Live()
	if err != nil {
		return false, err
	}
	commits, err := needing(s)
	return slices.Contains(commits, live.String()), err
}

// noteNeed adds a commit to those that need the machine's own.
func noteNeed(s *machine.Storage, commit ostree.Checksum) error {
	commits, err := needing(s)
	if err != nil {
		return err
	}
	content := strings.Join(append(commits, commit.String()), "\n") + "\n"
	return renameio.WriteFile(filepath.Join(dir(s), needName), []byte(content), 0o644, renameio.WithTempDir(dir(s)))
}

// copyOwnPrograms copies what runs now, unless that is the machine's own already.
func copyOwnPrograms(s *machine.Storage) error {
	for _, path := range []string{HelperPath, ctlPath} {
		to := filepath.Join(dir(s), filepath.Base(path))
		program, err := os.ReadFile(filepath.Join("/", path))
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Lstat(to); err == nil {
				continue // a commit is live that lacks it
			}
		}
		if err == nil {
			err = renameio.WriteFile(to, program, 0o755, renameio.WithTempDir(dir(s))) // what is there may run
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ownMark begins the units that are written here.
const ownMark = "# Written by liveapply: the commit that is live has no unit that could go on.\n"

// writeOwnUnits writes the units that are in /usr now, with the programs of a directory.
func writeOwnUnits(programs string) error {
	units, err := os.ReadDir(filepath.Join("/", UnitDir))
	if err != nil {
		return err
	}
	names := []string{finalizeDropIn}
	for _, unit := range units {
		if IsOurUnit(unit.Name()) {
			names = append(names, unit.Name())
		}
	}
	replaced := strings.NewReplacer("/"+HelperPath, filepath.Join(programs, filepath.Base(HelperPath)), "/"+ctlPath, filepath.Join(programs, filepath.Base(ctlPath)))
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join("/", UnitDir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		path := filepath.Join(ownUnitDir, name)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(path), 0o755)
		}
		if err == nil {
			err = os.WriteFile(path, []byte(ownMark+replaced.Replace(string(content))), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Drop removes what Keep has made, if what is live can do without. systemd knows no unit of it any more when the programs go.
func Drop(ctx context.Context, s *machine.Storage, live ostree.Checksum) error {
	commits, err := needing(s)
	if err == nil && slices.Contains(commits, live.String()) {
		return nil
	}
	if err == nil {
		err = removeOwnUnits()
	}
	if err == nil {
		err = reloadUnits(ctx)
	}
	if err == nil {
		err = errors.Join(beneath.Remove(dir(s)), os.RemoveAll(Link(s.Machine)))
	}
	if err != nil {
		return fmt.Errorf("dropping this machine's own liveapply, which what is live has: %w", err)
	}
	return nil
}

func removeOwnUnits() error {
	paths, err := filepath.Glob(filepath.Join(ownUnitDir, "liveapply*"))
	if err != nil {
		return err
	}
	for _, path := range append(paths, filepath.Join(ownUnitDir, finalizeDropIn)) {
		content, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(content), ownMark) {
			continue // somebody else's, such as a directory of drop-ins
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Dir(filepath.Join(ownUnitDir, finalizeDropIn))); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

func reloadUnits(ctx context.Context) error {
	return services.Reload(ctx, impact.Reload{Units: true}, func(_ string, do func() error) error { return do() })
}
