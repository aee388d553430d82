// Package services finds out what is to be done to services that run on files which are replaced, does that, and sees whether they stand it; and it has systemd
// and others read again what they have read.
package services

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/unit"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sync/errgroup"

	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
)

// Decide tells what is to be done to the units that run, and which new ones are to be started, after systemd has read its unit files again. What needs
// something, and is left alone, is among it. The tasks are sorted by the names of the units.
func Decide(ctx context.Context, s *systemd.Manager, rules Rules, caller string, changes Changes) ([]state.Task, error) {
	if len(changes.Units)+len(changes.Etc)+len(changes.Wants)+len(changes.Stale) == 0 {
		return nil, nil
	}
	units, err := s.Conn.ListUnitsContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking systemd for its units: %w", err)
	}
	var tasks []state.Task
	active := map[string]bool{}
	for _, u := range units {
		active[u.Name] = u.ActiveState == "active" || u.ActiveState == "reloading"
	}
	for _, u := range units {
		if !active[u.Name] || !slices.Contains(handledTypes, path.Ext(u.Name)) {
			continue
		}
		if path.Ext(u.Name) != ".service" && !changes.concernUnit(u.Name) {
			continue // only its file matters, and aliases have that of their own name
		}
		known, err := factsOf(ctx, s, u.Name)
		if err != nil {
			return nil, err
		}
		if task, needed := rules.decide(known, caller, changes); needed {
			tasks = append(tasks, task)
		}
	}
	if tasks, err = withSockets(ctx, s, tasks, active); err != nil {
		return nil, err
	}
	for _, stale := range changes.Stale {
		if stale.Unit == initScope && !matchesAny(rules.Ignore, initScope) {
			tasks = append(tasks, state.Task{Unit: initScope, Action: state.Reexec, Why: stale.Why})
		}
	}
	started, err := newlyWanted(ctx, s, rules, changes.Wants, active)
	tasks = append(tasks, started...)
	slices.SortFunc(tasks, func(a, b state.Task) int { return strings.Compare(a.Unit, b.Unit) })
	return tasks, err
}

// DecideGone tells which units are to be stopped before systemd reads its unit files again, of those with these names whose files are gone: afterwards it does not know
// how to stop them any more (ExecStop=).
func DecideGone(ctx context.Context, s *systemd.Manager, rules Rules, caller string, names []string) ([]state.Task, error) {
	units, err := s.Conn.ListUnitsContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking systemd for its units: %w", err)
	}
	removed := Changes{Units: names}
	var tasks []state.Task
	for _, u := range units {
		if u.ActiveState != "active" || !slices.Contains(handledTypes, path.Ext(u.Name)) || !removed.concernUnit(u.Name) {
			continue
		}
		known, err := factsOf(ctx, s, u.Name)
		if err != nil {
			return nil, err
		}
		if _, err := os.Lstat(known.fragment); err == nil {
			continue // it has another one, in /etc for example
		}
		known.isGone, known.wish = true, "" // systemd forgets the drop-ins of what is gone, too
		if task, _ := rules.decide(known, caller, removed); task.Action == state.Stop {
			task.Why = "its unit file is gone"
			tasks = append(tasks, task)
		}
	}
	return tasks, nil
}

// DecideBack tells which of units that were stopped because their files were gone are to be started, as they are there again.
func DecideBack(ctx context.Context, s *systemd.Manager, names []string) ([]state.Task, error) {
	var tasks []state.Task
	for _, name := range names {
		all, err := s.Conn.GetUnitPropertiesContext(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("asking systemd about %s: %w", name, err)
		}
		if all["LoadState"] == "loaded" && all["ActiveState"] == "inactive" {
			tasks = append(tasks, state.Task{Unit: name, Action: state.Start, Why: "it ran before its unit file was gone"})
		}
	}
	return tasks, nil
}

// handledTypes are the types of units that something is done to. The others follow a reload by themselves (targets, slices), or what they are for would go (mounts).
var handledTypes = []string{".service", ".socket", ".timer", ".path"}

// IsSocket tells whether a unit is one.
func IsSocket(unit string) bool { return path.Ext(unit) == ".socket" }

// withSockets leaves out the services that are restarted together with a socket of theirs, and finds out which sockets nothing runs for.
func withSockets(ctx context.Context, s *systemd.Manager, tasks []state.Task, active map[string]bool) ([]state.Task, error) {
	var together []string
	for i, task := range tasks {
		if task.Action != state.Restart || !IsSocket(task.Unit) {
			continue
		}
		triggered, err := s.Triggers(ctx, task.Unit)
		if err != nil {
			return nil, err
		}
		running := slices.DeleteFunc(triggered, func(unit string) bool { return !active[unit] })
		tasks[i].Idle = len(running) == 0
		together = append(together, running...)
	}
	return slices.DeleteFunc(tasks, func(task state.Task) bool {
		return task.Action == state.Restart && slices.Contains(together, task.Unit)
	}), nil
}

// initScope is the unit of process 1.
const initScope = "init.scope"

// factsOf asks systemd about a unit.
func factsOf(ctx context.Context, s *systemd.Manager, name string) (facts, error) {
	all, err := s.Conn.GetAllPropertiesContext(ctx, name)
	if err != nil {
		return facts{}, fmt.Errorf("asking systemd about %s: %w", name, err)
	}
	aliases, _ := all["Names"].([]string)
	known := facts{
		names:         append([]string{name}, slices.DeleteFunc(slices.Clone(aliases), func(alias string) bool { return alias == name })...),
		isOneshot:     all["Type"] == "oneshot",
		canReload:     all["CanReload"] == true,
		canRestart:    all["CanStop"] == true && all["CanStart"] == true && all["RefuseManualStop"] != true && all["RefuseManualStart"] != true,
		isGone:        all["LoadState"] == "not-found",
		configuration: configurationOf(all),
	}
	known.fragment, _ = all["FragmentPath"].(string)
	dropIns, _ := all["DropInPaths"].([]string)
	known.wish = wishIn(append([]string{known.fragment}, dropIns...))
	return known, nil
}

// configurationOf lists what a service reads below /etc, as far as its unit names that.
func configurationOf(all map[string]any) []string {
	var paths []string
	directories, _ := all["ConfigurationDirectory"].([]string)
	for _, dir := range directories {
		paths = append(paths, filepath.Join("/etc", dir))
	}
	files, _ := all["EnvironmentFiles"].([][]any) // a(sb): the path, and whether it may be missing
	for _, file := range files {
		if path, ok := file[0].(string); ok {
			paths = append(paths, path)
		}
	}
	for _, key := range []string{"ExecStart", "ExecStartPre"} {
		commands, _ := all[key].([][]any) // a(sasbttttuii): the path, the arguments, …
		for _, command := range commands {
			arguments, _ := command[1].([]string)
			for _, argument := range arguments {
				if i := strings.Index(argument, "/etc/"); i >= 0 { // as in --config=/etc/x
					paths = append(paths, argument[i:])
				}
			}
		}
	}
	return paths
}

// wishIn returns what the files of a unit want to be done to it, X-LiveApply= in [Unit]; the last one counts.
func wishIn(files []string) (wish string) {
	for _, file := range files {
		content, err := os.Open(file)
		if err != nil {
			continue // generated, or gone
		}
		options, _ := unit.DeserializeOptions(content) // up to a line that only systemd can read, such as a very long one
		content.Close()
		for _, option := range options {
			if option.Section == "Unit" && option.Name == "X-LiveApply" {
				wish = option.Value
			}
		}
	}
	return wish
}

// newlyWanted lists the units to be started, of those that something has come to want: something that is active does.
func newlyWanted(ctx context.Context, s *systemd.Manager, rules Rules, names []string, active map[string]bool) ([]state.Task, error) {
	var tasks []state.Task
	for _, name := range names {
		if active[name] || matchesAny(rules.Ignore, name) {
			continue
		}
		all, err := s.Conn.GetUnitPropertiesContext(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("asking systemd about %s: %w", name, err)
		}
		for _, key := range []string{"WantedBy", "RequiredBy"} {
			by, _ := all[key].([]string)
			if i := slices.IndexFunc(by, func(name string) bool { return active[name] }); i >= 0 && all["LoadState"] == "loaded" && all["RefuseManualStart"] != true {
				tasks = append(tasks, state.Task{Unit: name, Action: state.Start, Why: "it is new, and wanted by " + by[i]})
				break
			}
		}
	}
	return tasks, nil
}

// reexecUnit has systemd execute itself again.
const reexecUnit = "liveapply-reexec.service"

// QueueReexec has systemd execute itself again when the job of a unit has ended, well or not: those who wait for that over systemd's
// own socket, as systemctl does, would lose their connection.
func QueueReexec(ctx context.Context, s *systemd.Manager, after string) error {
	systemctl, err := exec.LookPath("systemctl")
	if err == nil {
		_, err = s.Conn.StartTransientUnitContext(ctx, reexecUnit, "replace", []dbus.Property{
			dbus.PropDescription("Execute systemd again, which a commit has brought"),
			dbus.PropType("oneshot"), dbus.PropAfter(after), dbus.PropExecStart([]string{systemctl, "daemon-reexec"}, false),
			{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
		}, nil)
	}
	if err != nil {
		return fmt.Errorf("having systemd executed again: %w", err)
	}
	return nil
}

// Act carries tasks out, as one set of jobs, which systemd orders by the dependencies of the units, and waits for all of them, or for the first one that fails: every
// moment counts then.
func Act(ctx context.Context, s *systemd.Manager, tasks []state.Task) error {
	waits := make([]wait, len(tasks))
	for i, task := range tasks {
		var err error
		if waits[i], err = queue(ctx, s, task); err != nil {
			return err
		}
	}
	jobs, ctx := errgroup.WithContext(ctx)
	for i, task := range tasks {
		jobs.Go(func() error {
			if err := waits[i](ctx); err != nil {
				return fmt.Errorf("%s %s (%s): %w: see systemctl status %s", task.Action, task.Unit, task.Why, err, task.Unit)
			}
			return nil
		})
	}
	return jobs.Wait()
}

// wait returns when a task is done.
type wait func(context.Context) error

// queue has systemd begin with a task. A socket takes several jobs, one after the other, which are made while it is waited for, and all of them: in the midst, what runs
// for it would stay stopped.
func queue(ctx context.Context, s *systemd.Manager, task state.Task) (wait, error) {
	if task.Action == state.Restart && IsSocket(task.Unit) {
		return func(context.Context) error { return restartSocket(ctx, s, task.Unit) }, nil
	}
	result := make(chan string, 1)
	var err error
	switch task.Action {
	case state.Restart:
		forgetStarts(ctx, s, task.Unit)
		_, err = s.Conn.TryRestartUnitContext(ctx, task.Unit, "replace", result)
	case state.Reload:
		_, err = s.Conn.ReloadUnitContext(ctx, task.Unit, "replace", result)
	case state.Stop:
		_, err = s.Conn.StopUnitContext(ctx, task.Unit, "replace", result)
	case state.Start:
		_, err = s.Conn.StartUnitContext(ctx, task.Unit, "replace", result)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", task.Action, task.Unit, err)
	}
	return func(ctx context.Context) error { return s.Await(ctx, result) }, nil
}

// restartSocket restarts a socket. systemd does not do that while its services run, which are stopped before, and started after.
func restartSocket(ctx context.Context, s *systemd.Manager, socket string) error {
	triggered, err := s.Triggers(ctx, socket)
	if err != nil {
		return err
	}
	var running []string
	for _, unit := range triggered {
		active, err := s.IsActive(ctx, unit)
		if err != nil {
			return err
		}
		if active {
			running = append(running, unit)
		}
	}
	if err := s.Stop(ctx, running...); err != nil {
		return err
	}
	err = s.Restart(ctx, socket)
	for _, unit := range running {
		forgetStarts(ctx, s, unit)
		err = errors.Join(err, s.Start(ctx, unit))
	}
	return err
}

// TakeBack undoes tasks, when what they were for is not live any more: what was started is stopped, what was only reloaded is so again, all other
// units are restarted. Sockets may be among the units that systemd has closed when it read them there and back. It goes on after one that resists.
func TakeBack(ctx context.Context, s *systemd.Manager, tasks []state.Task, units []string) error {
	var back []state.Task
	var failed []error
	for _, unit := range units {
		if !IsSocket(unit) || slices.ContainsFunc(tasks, func(task state.Task) bool { return task.Unit == unit }) {
			continue
		}
		active, err := s.IsActive(ctx, unit)
		if err == nil && active {
			err = restartSocket(ctx, s, unit)
		}
		failed = append(failed, err)
	}
	for _, task := range tasks {
		if IsSocket(task.Unit) && task.Action == state.Restart {
			failed = append(failed, restartSocket(ctx, s, task.Unit))
			continue
		}
		if task.Action == state.Start {
			if err := s.Stop(ctx, task.Unit); err != nil {
				failed = append(failed, err)
			}
			continue
		}
		forgetStarts(ctx, s, task.Unit)
		back = append(back, task)
	}
	// Whatever they do now: one that was active may have failed, and is started.
	failed = append(failed, all(ctx, back, func(task state.Task) (wait, error) {
		bring := s.Conn.RestartUnitContext
		if task.Action == state.Reload {
			bring = s.Conn.ReloadOrRestartUnitContext
		}
		result := make(chan string, 1)
		if _, err := bring(ctx, task.Unit, "replace", result); err != nil {
			return nil, fmt.Errorf("restarting %s: %w", task.Unit, err)
		}
		return func(ctx context.Context) error { return s.Await(ctx, result) }, nil
	}))
	return errors.Join(failed...)
}

// ActOnAll is Act that goes on after a task that fails.
func ActOnAll(ctx context.Context, s *systemd.Manager, tasks []state.Task) error {
	return all(ctx, tasks, func(task state.Task) (wait, error) { return queue(ctx, s, task) })
}

// all queues jobs for tasks and waits for all of them.
func all(ctx context.Context, tasks []state.Task, queue func(state.Task) (wait, error)) error {
	var failed []error
	waits := make([]wait, len(tasks)) // nil where there is no job
	for i, task := range tasks {
		var err error
		if waits[i], err = queue(task); err != nil {
			failed = append(failed, err)
		}
	}
	for i, task := range tasks {
		if waits[i] == nil {
			continue
		}
		if err := waits[i](ctx); err != nil {
			failed = append(failed, fmt.Errorf("restarting %s: %w: see systemctl status %s", task.Unit, err, task.Unit))
		}
	}
	return errors.Join(failed...)
}

// forgetStarts lets a unit be started whatever it has been through: what is done here is not what the limit of its starts is for.
func forgetStarts(ctx context.Context, s *systemd.Manager, name string) {
	_ = s.Conn.ResetFailedUnitContext(ctx, name) // if the unit is gone meanwhile, that is told when it is restarted
}
