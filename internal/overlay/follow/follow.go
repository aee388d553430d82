// Package follow carries out changes of overlays, and makes the system show what their stores say: /usr, /etc, /run, and the units and users that an overlay is
// for.
package follow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/liveapply/liveapply/internal/deployments"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
)

// followed is what the running system shows of overlays, as far as it is not in the mount table: a note in /run.
type followed struct {
	Overlays []shownOverlay `json:"overlays"`
	// Running are units that ran before they were to be restarted, while that is under way.
	Running []string `json:"running,omitempty"`
}

// shownOverlay is an overlay that somebody sees.
type shownOverlay struct {
	Name  string        `json:"name"`
	Scope overlay.Scope `json:"scope"`
	Tree  string        `json:"tree"` // of its content
}

func followedPath(m *machine.Machine) string {
	return filepath.Join(m.State.Run, "overlays-shown.json")
}

// readFollowed reads the note. Without one, or with a damaged one, nothing is known to be shown: then all is looked at.
func readFollowed(m *machine.Machine) (shown followed, found bool) {
	content, err := os.ReadFile(followedPath(m))
	if err != nil || json.Unmarshal(content, &shown) != nil {
		return followed{}, false
	}
	return shown, true
}

// IsFollowed tells whether the files of overlays have been put into /etc in this boot, and do not stand aside.
func IsFollowed(m *machine.Machine) bool {
	_, found := readFollowed(m)
	_, noAside := os.Lstat(asidePath(m))
	return found && noAside != nil
}

func noteFollowed(m *machine.Machine, shown followed) error {
	content, err := json.Marshal(shown)
	if err == nil {
		err = renameio.WriteFile(followedPath(m), content, 0o600, renameio.WithTempDir(m.State.Run))
	}
	if err != nil {
		return fmt.Errorf("noting which overlays are shown: %w", err)
	}
	return nil
}

// showing is the note on overlays that are enabled, and have something.
func showing(all []overlay.Placed) (shown followed) {
	for _, o := range all {
		if o.Enabled && o.Generation > 0 {
			shown.Overlays = append(shown.Overlays, shownOverlay{o.Name, o.Scope, o.Tree()})
		}
	}
	return shown
}

// differing are the overlays that are in one of two notes, and not in the same way in the other.
func differing(a, b followed) []shownOverlay {
	var list []shownOverlay
	for _, pair := range [][2]followed{{a, b}, {b, a}} {
		for _, o := range pair[0].Overlays {
			if !slices.Contains(pair[1].Overlays, o) {
				list = append(list, o)
			}
		}
	}
	return list
}

// errNotRestarted is about units that alone see an overlay. All else is done.
var errNotRestarted = errors.New("a unit does not come up with its overlays")

// goBack is follow for the way back, or on: what a unit makes of it does not keep all others from it.
func goBack(ctx context.Context, m *machine.Machine, t *state.Transaction, all []overlay.Placed) error {
	err := follow(ctx, m, t, all)
	if errors.Is(err, errNotRestarted) {
		report.Warn("%v", err)
		return noteFollowed(m, showing(all))
	}
	return err
}

// follow makes the running system show what the stores say: /usr in one step, then /etc and /run file by file. Whatever an interrupted call has left, it
// ends in the same.
func follow(ctx context.Context, m *machine.Machine, t *state.Transaction, all []overlay.Placed) error {
	shared := overlay.Enabled(all)
	before, _ := readFollowed(m)
	now := showing(all)
	changed, err := changedPaths(differing(before, now))
	if err != nil {
		return err
	}
	if err := t.Step(state.SwitchStep, func() error { return showOverlays(m, shared) }); err != nil {
		return err
	}
	if err := putFiles(ctx, m, t, shared); err != nil {
		return err
	}
	var reload impact.Reload
	for _, path := range changed {
		reload = reload.Union(impact.ReloadFor(strings.TrimPrefix(path, "usr/")))
	}
	if m.InInitrd() {
		return noteFollowed(m, now) // nobody has read anything of it
	}
	if err := tellOthers(ctx, m, t, before, now, reload); err != nil {
		return err
	}
	return noteFollowed(m, now)
}

// tellOthers has those who have read what is different now, or are to see something else, do so.
func tellOthers(ctx context.Context, m *machine.Machine, t *state.Transaction, before, now followed, reload impact.Reload) error {
	units := scopedUnits(differing(before, now))
	running, err := runningOf(ctx, units)
	if err != nil {
		return err
	}
	for _, unit := range before.Running {
		if !slices.Contains(running, unit) {
			running = append(running, unit)
		}
	}
	// Before that is begun: if a service does not come up with the new content, it has to with what it had.
	either := followed{Overlays: slices.Concat(before.Overlays, now.Overlays), Running: running}
	if err := noteFollowed(m, either); err != nil {
		return err
	}
	reload.Units = reload.Units || len(units) > 0 // the generator writes their drop-ins
	if err := services.Reload(ctx, reload, t.Step); err != nil {
		return err
	}
	if reload.Units {
		if err := systemd.WantAgain(ctx); err != nil {
			report.Warn("%v", err)
		}
	}
	return restartScoped(ctx, units, running)
}

// showOverlays switches /usr, unless it shows just this.
func showOverlays(m *machine.Machine, shared overlay.Stack) error {
	usr, err := m.Usr.Inspect()
	if err != nil {
		return err
	}
	live, err := m.Live()
	if err != nil {
		return err
	}
	s, err := m.Stack(live, m.LayersOf(live), shared)
	if err != nil || s.IsShown(usr) {
		return err
	}
	report.Status("switching /usr")
	_, err = m.SwitchTo(s)
	return err
}

// changedPaths are those that the overlays have, or had.
func changedPaths(overlays []shownOverlay) ([]string, error) {
	var paths []string
	for _, o := range overlays {
		entries, err := overlay.ListTree(o.Tree, nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue // an earlier call, which was killed, has come as far as deleting it
		}
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			paths = append(paths, entry.Path)
		}
	}
	return paths, nil
}

// putFiles makes /etc and /run have what the overlays have there, and takes back what they have no more. It tells what stays as it is because it was
// changed locally.
func putFiles(ctx context.Context, m *machine.Machine, t *state.Transaction, shared overlay.Stack) error {
	trees, err := shared.Trees("etc")
	if err != nil {
		return err
	}
	storage, dirs, err := overlayEtc(m)
	if err != nil {
		return err
	}
	if storage != nil {
		defer storage.Close()
		if !m.InInitrd() {
			defer deployments.SettleAndHoldOff(ctx, storage)()
		}
	}
	if len(trees) > 0 && m.IsOSTree() && !m.InInitrd() {
		// Libostree merges /etc at shutdown: as an administrator has it, not as an overlay does.
		if err := deployments.KeepEtcFromStaged(ctx, m); err != nil {
			return err
		}
	}
	result, err := putTrees(ctx, dirs, trees)
	if err != nil {
		return err
	}
	report.Kept(t, "/etc", result.Kept)
	if err := settleAside(m); err != nil {
		return err
	}
	if trees, err = shared.Trees("run"); err != nil {
		return err
	}
	if result, err = putTrees(ctx, m.OverlayRun(), trees); err != nil {
		return err
	}
	report.Kept(t, "/run", result.Kept)
	return nil
}

// putTrees is etcmerge.Put with a directory for the journal.
func putTrees(ctx context.Context, dirs etcmerge.Dirs, trees []string) (*etcmerge.Result, error) {
	if len(trees) > 0 {
		if err := os.MkdirAll(filepath.Dir(dirs.Store), 0o700); err != nil {
			return nil, fmt.Errorf("making room for the journal: %w", err)
		}
	}
	return etcmerge.Put(ctx, dirs, trees)
}

// overlayEtc is what package etcmerge works on for those in /etc: on OSTree the deployment's, with a journal that belongs to the deployment, as that of the
// live commit does.
func overlayEtc(m *machine.Machine) (*machine.Storage, etcmerge.Dirs, error) {
	if !m.IsOSTree() {
		return nil, m.OverlayEtcToRead(), nil
	}
	storage, err := m.OpenStorage()
	if err != nil {
		return nil, etcmerge.Dirs{}, err
	}
	return storage, storage.OverlayEtcDirs(), nil
}

// asidePath is a note that the files of overlays in /etc have been taken back for a moment, and are to be put again.
func asidePath(m *machine.Machine) string { return filepath.Join(m.State.Run, "overlays-aside") }

func settleAside(m *machine.Machine) error {
	if err := os.Remove(asidePath(m)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("noting that the overlays' files are in /etc again: %w", err)
	}
	return nil
}

// WithoutOverlays does something to /etc, as it is without the files of overlays: those step aside. If it fails, or is killed, they
// stay aside until this is called again, as the way back does. aside tells whether there were any.
func WithoutOverlays(ctx context.Context, s *machine.Storage, change func(aside bool) error) error {
	m := s.Machine
	defer deployments.SettleAndHoldOff(ctx, s)()
	pending, err := etcmerge.Pending(s.OverlayEtcDirs())
	if errors.Is(err, etcmerge.ErrDamaged) {
		// What comes from commits can be taken back all the same.
		report.Warn("%v", err)
		return change(false)
	}
	if err != nil {
		return err
	}
	_, noted := os.Lstat(asidePath(m))
	if !pending && noted != nil {
		return change(false)
	}
	if err := os.WriteFile(asidePath(m), nil, 0o600); err != nil {
		return fmt.Errorf("taking the overlays' files out of /etc for a moment: %w", err)
	}
	if _, err := etcmerge.Put(ctx, s.OverlayEtcDirs(), nil); err != nil {
		return err
	}
	if err := change(true); err != nil {
		return err
	}
	if _, shown := readFollowed(m); !shown {
		return settleAside(m) // an earlier boot has left them: liveapply-overlays.service puts those that are enabled now
	}
	overlays, err := m.EnabledOverlays()
	if err != nil {
		return err
	}
	trees, err := overlays.Trees("etc")
	if err != nil {
		return err
	}
	if _, err := putTrees(ctx, s.OverlayEtcDirs(), trees); err != nil {
		return err
	}
	return settleAside(m)
}

// scopedUnits are the units that alone see some of the overlays.
func scopedUnits(overlays []shownOverlay) []string {
	var units []string
	for _, o := range overlays {
		if unit := o.Scope.Unit(); unit != "" && !slices.Contains(units, unit) {
			units = append(units, unit)
		}
	}
	return units
}

// runningOf leaves of units those that run.
func runningOf(ctx context.Context, units []string) (running []string, err error) {
	if len(units) == 0 {
		return nil, nil
	}
	err = systemd.With(ctx, func(manager *systemd.Manager) error {
		for _, unit := range units {
			active, err := manager.IsActive(ctx, unit)
			if err != nil {
				return err
			}
			if active {
				running = append(running, unit)
			}
		}
		return nil
	})
	return running, err
}

// restartScoped restarts units that are to see something else, if they ran. The manager of a user is not: all that the user runs would end.
func restartScoped(ctx context.Context, units, running []string) error {
	var failed []error
	for _, unit := range units {
		if strings.HasPrefix(unit, "user@") {
			report.Warn("%s sees its overlays when it is started next: loginctl terminate-user, or a new login after the last session has ended", unit)
			continue
		}
		if !slices.Contains(running, unit) {
			continue
		}
		if err := systemd.With(ctx, func(manager *systemd.Manager) error { return manager.Restart(ctx, unit) }); err != nil {
			failed = append(failed, fmt.Errorf("%w: %w", errNotRestarted, err))
		}
	}
	return errors.Join(failed...)
}
