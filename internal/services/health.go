package services

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/unit"

	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
)

// Watch tells whether the services of the system stay well. It is begun before anything is done to them.
type Watch struct {
	systemd *systemd.Manager // over the bus, which has the signals
	active  map[string]bool
	changed chan *dbus.PropertiesUpdate
	errors  chan error
}

// BeginWatch begins to watch the units that are active now.
func BeginWatch(ctx context.Context) (*Watch, error) {
	manager, err := systemd.ConnectToLook(ctx)
	if err != nil {
		return nil, err
	}
	w := &Watch{systemd: manager, active: map[string]bool{}, changed: make(chan *dbus.PropertiesUpdate, 1024), errors: make(chan error, 16)}
	if err := manager.Conn.Subscribe(); err != nil {
		manager.Close()
		return nil, fmt.Errorf("watching the units of systemd: %w", err)
	}
	manager.Conn.SetPropertiesSubscriber(w.changed, w.errors)
	units, err := manager.Conn.ListUnitsContext(ctx)
	if err != nil {
		manager.Close()
		return nil, fmt.Errorf("asking systemd for its units: %w", err)
	}
	for _, u := range units {
		w.active[u.Name] = u.ActiveState == "active" || u.ActiveState == "reloading"
	}
	return w, nil
}

// End ends the watch.
func (w *Watch) End() { w.systemd.Close() }

// Hold waits for a time, in which none of the units that were active, and none of the tasks' units, may fail, or be restarted because it ended. As soon as one
// is, that is an error. What has come to them by the tasks themselves, a service that fails when it is stopped to be restarted for example, does not count.
func (w *Watch) Hold(ctx context.Context, tasks []state.Task, length time.Duration) error {
	timer := time.NewTimer(length)
	defer timer.Stop()
	w.forget()
	if err := w.look(ctx, tasks); err != nil {
		return err
	}
	for {
		select {
		case <-timer.C:
			return w.look(ctx, tasks)
		case <-ctx.Done():
			return ctx.Err()
		case <-w.errors: // some signals were lost; look instead
			if err := w.look(ctx, tasks); err != nil {
				return err
			}
		case update := <-w.changed:
			if !w.concerns(tasks, update.UnitName) {
				continue
			}
			active, sub := textOf(update, "ActiveState"), textOf(update, "SubState")
			if active == "failed" { // which may be of before; it does not go away by itself
				var err error
				if active, err = w.systemd.ActiveState(ctx, update.UnitName); err != nil {
					return err
				}
			}
			if why := sickness(active, sub); why != "" {
				return sick(update.UnitName, why)
			}
		}
	}
}

// forget drops the signals that have come.
func (w *Watch) forget() {
	for {
		select {
		case <-w.changed:
		case <-w.errors:
		default:
			return
		}
	}
}

func (w *Watch) concerns(tasks []state.Task, name string) bool {
	return w.active[name] || slices.ContainsFunc(tasks, func(task state.Task) bool { return task.Unit == name })
}

// look asks for the state of all units.
func (w *Watch) look(ctx context.Context, tasks []state.Task) error {
	units, err := w.systemd.Conn.ListUnitsContext(ctx)
	if err != nil {
		return fmt.Errorf("asking systemd for its units: %w", err)
	}
	for _, u := range units {
		if why := sickness(u.ActiveState, u.SubState); why != "" && w.concerns(tasks, u.Name) {
			return sick(u.Name, why)
		}
	}
	return nil
}

func textOf(update *dbus.PropertiesUpdate, name string) string {
	text, _ := update.Changed[name].Value().(string)
	return text
}

// sickness tells from a unit's state whether it has failed, which systemd may be about to mend.
func sickness(active, sub string) string {
	switch {
	case active == "failed":
		return "has failed"
	case sub == "auto-restart" || sub == "auto-restart-queued":
		return "has ended, and is restarted"
	}
	return ""
}

func sick(name, why string) error {
	return fmt.Errorf("%s %s: see systemctl status %s and journalctl --unit=%s", name, why, name, name)
}

// checkDirs are where an administrator, and the tree, have programs that tell whether the machine is well: this project's, and those of greenboot. The same
// name in an earlier directory hides one in a later one.
var checkDirs = []string{
	"/etc/liveapply/health.d", "/usr/lib/liveapply/health.d",
	"/etc/greenboot/check/required.d", "/usr/lib/greenboot/check/required.d",
}

// Checks lists the programs that tell whether the machine is well. One that somebody other than root could have put there is an error.
func Checks() ([]string, error) { return checksIn(checkDirs) }

func checksIn(dirs []string) ([]string, error) {
	var paths []string
	known := map[string]bool{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("looking for health checks: %w", err)
		}
		for _, entry := range entries {
			if known[entry.Name()] {
				continue
			}
			known[entry.Name()] = true
			path := filepath.Join(dir, entry.Name())
			if runs, err := isCheck(path); err != nil {
				return nil, err
			} else if runs {
				paths = append(paths, path)
			}
		}
	}
	return paths, nil
}

// isCheck tells whether a path is a program, and not /dev/null, which hides one.
func isCheck(path string) (bool, error) {
	info, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("looking for health checks: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return false, nil
	}
	if strings.ContainsAny(path, `'"\`) {
		return false, fmt.Errorf("the health check %q has a quote or a backslash in its name, and systemd starts no such program: rename it", path)
	}
	if uid, ok := ownerOf(info); !ok || uid != 0 || info.Mode().Perm()&0o022 != 0 {
		return false, fmt.Errorf("the health check %s can be changed by others than root: chown root and chmod go-w it", path)
	}
	return true, nil
}

// RunChecks runs programs, side by side, each in a unit of its own, and tells which failed.
func RunChecks(ctx context.Context, s *systemd.Manager, paths []string) error {
	results := make([]chan string, len(paths))
	for i, path := range paths {
		results[i] = make(chan string, 1)
		if _, err := s.Conn.StartUnitContext(ctx, checkUnit(path), "replace", results[i]); err != nil {
			return fmt.Errorf("starting the health check %s: %w", path, err)
		}
	}
	var failed []error
	for i, path := range paths {
		if err := s.Await(ctx, results[i]); err != nil {
			failed = append(failed, fmt.Errorf("the health check %s failed: see journalctl --unit=%s", path, checkUnit(path)))
		}
	}
	return errors.Join(failed...)
}

func checkUnit(path string) string {
	return "liveapply-health@" + unit.UnitNamePathEscape(path) + ".service"
}

func ownerOf(info fs.FileInfo) (uid uint32, ok bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return stat.Uid, true
}
