package phase

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/stale"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
	"github.com/liveapply/liveapply/internal/transaction"
)

// Services makes those read their files again whose files changed, has services restarted as far as the configuration asks for it, and finds out
// whether the machine is well then.
func Services(ctx context.Context, m *machine.Machine, request string) error {
	t, plan, err := transaction.Resume(ctx, m, "services", request)
	if err != nil {
		return err
	}
	if plan.IsNothing() {
		return transaction.End(m, t)
	}
	h := handler{Machine: m, transaction: t, plan: plan}
	if err := h.stopGone(ctx); err != nil {
		return err
	}
	report.Status("reloading")
	if err := services.Reload(ctx, plan.Impact.Reload, t.Step); err != nil {
		return err
	}
	if err := h.handle(ctx); err != nil {
		return err
	}
	return transaction.End(m, t)
}

// handler does what has to be done to services.
type handler struct {
	*machine.Machine
	transaction *state.Transaction
	plan        *state.Plan
	watch       *services.Watch
}

func (h *handler) handle(ctx context.Context) error {
	checks, err := services.Checks()
	if err != nil {
		return err
	}
	if acts(h.plan.Services) || slices.ContainsFunc(h.plan.Impact.Units.All(), services.IsSocket) { // else, liveapply-needs-restart.service tells what would need it
		if err := h.decideAndAct(ctx); err != nil {
			return err
		}
	}
	if len(checks) == 0 {
		return nil
	}
	report.Status("running %d health checks", len(checks))
	return h.transaction.Step("check the health", func() error {
		return systemd.With(ctx, func(manager *systemd.Manager) error { return services.RunChecks(ctx, manager, checks) })
	})
}

// stopGone stops what has no unit file any more, as long as systemd knows how to. One that resists runs on, as one without a unit file does.
func (h *handler) stopGone(ctx context.Context) error {
	how := h.plan.Services
	removed := h.plan.Impact.Units.Removed
	if how.Restart == string(config.RestartNone) || len(removed) == 0 {
		return nil
	}
	return systemd.With(ctx, func(manager *systemd.Manager) error {
		tasks, err := services.DecideGone(ctx, manager, rulesOf(how), how.Caller, removed)
		if err != nil || len(tasks) == 0 {
			return err
		}
		h.transaction.Services = append(h.transaction.Services, tasks...)
		if err := h.Lock.Write(h.transaction); err != nil {
			return err
		}
		report.Status("stopping services that are gone")
		err = h.transaction.Step("stop services that are gone", func() error { return services.ActOnAll(ctx, manager, tasks) })
		if err != nil {
			report.Warn("%v", err)
		}
		return nil
	})
}

func rulesOf(how state.Handling) services.Rules {
	return services.Rules{Ignore: how.Ignored, Restart: how.Restarted, Reload: how.Reloaded}
}

func (h *handler) decideAndAct(ctx context.Context) error {
	tasks, err := h.decide(ctx)
	if err != nil {
		return err
	}
	return h.act(ctx, tasks)
}

// decide returns what is to be done now, and tells what is left.
func (h *handler) decide(ctx context.Context) ([]state.Task, error) {
	how := h.plan.Services
	changes, err := h.changes(ctx)
	if err != nil {
		return nil, err
	}
	stopped, err := h.State.StoppedUnits()
	if err != nil {
		return nil, err
	}
	all, err := decideServices(ctx, how, changes, stopped)
	if err != nil {
		return nil, err
	}
	var tasks []state.Task
	var left []string
	for _, task := range all {
		// systemd has closed a socket that is to listen elsewhere when it read its units again, and says that it listens.
		wanted := how.Restart != string(config.RestartNone) || task.Idle
		if task.Action == state.Start && !slices.Contains(stopped, task.Unit) {
			wanted = how.StartNew
		}
		if task.Action == state.Leave || !wanted {
			left = append(left, fmt.Sprintf("%s (%s)", task.Unit, task.Why))
			continue
		}
		tasks = append(tasks, task)
	}
	if len(left) > 0 {
		report.Announce(h.transaction, report.MessageLeft, "Left as they are, though what they use has changed: "+strings.Join(left, ", "), nil)
	}
	return tasks, nil
}

// decideServices asks systemd what there is to be done.
func decideServices(ctx context.Context, how state.Handling, changes services.Changes, stopped []string) (tasks []state.Task, err error) {
	err = systemd.With(ctx, func(manager *systemd.Manager) error {
		back, err := services.DecideBack(ctx, manager, stopped)
		if err != nil {
			return err
		}
		tasks, err = services.Decide(ctx, manager, rulesOf(how), how.Caller, changes)
		tasks = slices.Concat(tasks, back)
		return err
	})
	return tasks, err
}

// acts tells whether something may be done to services.
func acts(how state.Handling) bool {
	return how.Restart != string(config.RestartNone) || how.StartNew
}

// changes collects what is different now for those who run.
func (h *handler) changes(ctx context.Context) (services.Changes, error) {
	changes, err := outdated(ctx, h.Machine, h.plan.Services)
	units := h.plan.Impact.Units
	changes.Units, changes.Wants = slices.Concat(units.Changed, units.Removed), units.Wanted
	for _, change := range h.plan.Etc.Changes {
		changes.Etc = append(changes.Etc, "/etc/"+change.Path)
	}
	return changes, err
}

// outdated finds the units that run on what /usr does not have any more, if something may be done to them.
func outdated(ctx context.Context, m *machine.Machine, how state.Handling) (services.Changes, error) {
	if !acts(how) {
		return services.Changes{}, nil
	}
	found, err := services.FindOutdated(ctx, stale.System{Proc: "/proc", Usr: m.Usr.Path, Trees: m.Trees})
	return services.Changes{Stale: found.Units()}, err
}

// act carries tasks out, at once or one after the other.
func (h *handler) act(ctx context.Context, tasks []state.Task) (err error) {
	if tasks, err = withoutReexec(ctx, h.transaction, tasks); err != nil || len(tasks) == 0 {
		return err
	}
	if h.watch, err = services.BeginWatch(ctx); err != nil {
		return err
	}
	defer h.watch.End()
	together := len(tasks)
	if h.plan.Services.Restart == string(config.RestartRolling) {
		together = 1
	}
	for some := range slices.Chunk(tasks, together) {
		if err := h.actAtOnce(ctx, some); err != nil {
			return err
		}
	}
	return nil
}

// actAtOnce carries tasks out, having noted what rollback has to undo, and watches the services for as long as the configuration says.
func (h *handler) actAtOnce(ctx context.Context, tasks []state.Task) error {
	h.transaction.Services = append(h.transaction.Services, tasks...)
	if err := h.Lock.Write(h.transaction); err != nil {
		return err
	}
	var names []string
	for _, task := range tasks {
		names = append(names, string(task.Action)+" "+task.Unit)
	}
	what := strings.Join(names, ", ")
	report.Status("%s", what)
	err := h.transaction.Step(what, func() error {
		return systemd.With(ctx, func(manager *systemd.Manager) error { return services.Act(ctx, manager, tasks) })
	})
	if err != nil {
		return err
	}
	timeout := h.plan.Services.HealthTimeout
	report.Status("watching the services for %s", timeout)
	return h.transaction.Step("watch the services", func() error { return h.watch.Hold(ctx, tasks, timeout) })
}

// withoutReexec has systemd itself executed again, if that is to be done, when all is over for those who wait for the transaction, and returns what else
// is to be done.
func withoutReexec(ctx context.Context, t *state.Transaction, tasks []state.Task) (others []state.Task, err error) {
	others = slices.DeleteFunc(slices.Clone(tasks), func(task state.Task) bool { return task.Action == state.Reexec })
	if len(others) == len(tasks) {
		return others, nil
	}
	return others, systemd.With(ctx, func(manager *systemd.Manager) error {
		return services.QueueReexec(ctx, manager, systemd.MainUnit(t.Request))
	})
}

// takeBackServices undoes what was done to services. One that does not come back is told; everything else has to go on.
func takeBackServices(ctx context.Context, m *machine.Machine, t *state.Transaction) {
	if !slices.ContainsFunc(t.Phases, func(phase state.PhaseRun) bool { return phase.Name == "services" }) {
		return
	}
	units := m.UnitsOf(t.Live)
	if len(t.Services) == 0 && !slices.ContainsFunc(units, services.IsSocket) {
		return
	}
	report.Status("restarting services on the tree before")
	err := t.Step("restart services on the tree before", func() error {
		return systemd.With(ctx, func(manager *systemd.Manager) error { return services.TakeBack(ctx, manager, t.Services, units) })
	})
	if err != nil {
		report.Warn("%v", err)
	}
}

// settleServices restarts, after a reset, what runs on the tree that was live, if the configuration says so. The reset does not depend on it.
func settleServices(ctx context.Context, m *machine.Machine, t *state.Transaction, c *config.Config) {
	if c == nil || c.RestartServices == config.RestartNone && !slices.ContainsFunc(m.UnitsOf(t.From), services.IsSocket) {
		return
	}
	if err := settle(ctx, m, t, handling(c)); err != nil {
		report.Warn("%v", err)
	}
}

func settle(ctx context.Context, m *machine.Machine, t *state.Transaction, how state.Handling) error {
	report.Status("restarting services on the booted tree")
	changes, err := outdated(ctx, m, how)
	if err != nil {
		return err
	}
	changes.Units = m.UnitsOf(t.From)
	for _, path := range t.EtcRestored {
		changes.Etc = append(changes.Etc, "/etc/"+path)
	}
	stopped, err := m.State.StoppedUnits()
	if err != nil {
		return err
	}
	tasks, err := decideServices(ctx, how, changes, stopped)
	if err != nil {
		return err
	}
	tasks = slices.DeleteFunc(tasks, func(task state.Task) bool {
		return task.Action == state.Leave || how.Restart == string(config.RestartNone) && !task.Idle
	})
	if tasks, err = withoutReexec(ctx, t, tasks); err != nil || len(tasks) == 0 {
		return err
	}
	return t.Step("restart services on the booted tree", func() error {
		return systemd.With(ctx, func(manager *systemd.Manager) error { return services.ActOnAll(ctx, manager, tasks) })
	})
}
