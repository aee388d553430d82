package phase

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/stale"
	"github.com/liveapply/liveapply/internal/state"
)

// Services makes those read their files again whose files changed, has services restarted as far as the configuration asks for it, and finds out
// whether the machine is well then.
func (m *Machine) Services(ctx context.Context, request string) error {
	t, plan, err := m.resume("services", request)
	if err != nil {
		return err
	}
	if plan.IsNothing() {
		return m.end(t)
	}
	status("reloading")
	if err := services.Reload(ctx, plan.Impact.Reload, t.Step); err != nil {
		return err
	}
	h := handler{Machine: m, transaction: t, plan: plan}
	if err := h.handle(ctx); err != nil {
		return err
	}
	return m.end(t)
}

// handler does what has to be done to services.
type handler struct {
	*Machine
	transaction *state.Transaction
	plan        *state.Plan
	systemd     *services.Systemd
	watch       *services.Watch
	timeout     time.Duration
}

func (h *handler) handle(ctx context.Context) error {
	checks, err := services.Checks()
	if err != nil {
		return err
	}
	acts := h.plan.Services.Restart != string(config.RestartNone) || h.plan.Services.StartNew
	if !acts && len(checks) == 0 {
		return nil // liveapplyctl needs-restart tells those who ask
	}
	if h.systemd, err = services.Connect(ctx); err != nil {
		return err
	}
	defer h.systemd.Close()
	if acts {
		if err := h.decideAndAct(ctx); err != nil {
			return err
		}
	}
	if len(checks) == 0 {
		return nil
	}
	status("running %d health checks", len(checks))
	return h.transaction.Step("check the health", func() error { return h.systemd.RunChecks(ctx, checks) })
}

func (h *handler) decideAndAct(ctx context.Context) error {
	tasks, err := h.decide(ctx)
	if err != nil || len(tasks) == 0 {
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
	all, err := h.systemd.Decide(ctx, services.Rules{Ignore: how.Ignored, Restart: how.Restarted, Reload: how.Reloaded}, how.Caller, changes)
	if err != nil {
		return nil, err
	}
	var tasks []state.Task
	var left []string
	for _, task := range all {
		wanted := how.Restart != string(config.RestartNone)
		if task.Action == state.Start {
			wanted = how.StartNew
		}
		if task.Action == state.Leave || !wanted {
			left = append(left, fmt.Sprintf("%s (%s)", task.Unit, task.Why))
			continue
		}
		tasks = append(tasks, task)
	}
	if len(left) > 0 {
		announce(h.transaction, messageLeft, "Left as they are, though what they use has changed: "+strings.Join(left, ", "), nil)
	}
	return tasks, nil
}

// changes collects what is different now for those who run.
func (h *handler) changes(ctx context.Context) (services.Changes, error) {
	units := h.plan.Impact.Units
	changes := services.Changes{Units: append(units.Changed, units.Removed...), Wants: units.Wanted}
	for _, change := range h.plan.Etc.Changes {
		changes.Etc = append(changes.Etc, "/etc/"+change.Path)
	}
	outdated, err := services.FindOutdated(ctx, stale.System{Proc: "/proc", Usr: h.Usr.Path, Trees: h.Trees})
	changes.Stale = outdated.Units()
	return changes, err
}

// act carries tasks out, having noted what rollback has to undo, and watches the services for as long as the configuration says.
func (h *handler) act(ctx context.Context, tasks []state.Task) (err error) {
	if h.timeout, err = services.TimeSpan(ctx, h.plan.Services.HealthTimeout); err != nil {
		return fmt.Errorf("HealthTimeout=%s: %w", h.plan.Services.HealthTimeout, err)
	}
	h.transaction.Services = tasks
	if err := h.State.WriteTransaction(h.transaction); err != nil {
		return err
	}
	if h.watch, err = services.BeginWatch(ctx); err != nil {
		return err
	}
	defer h.watch.End()
	if h.plan.Services.Restart != string(config.RestartRolling) {
		return h.actAtOnce(ctx, tasks)
	}
	for _, task := range tasks {
		if err := h.actAtOnce(ctx, []state.Task{task}); err != nil {
			return err
		}
	}
	return nil
}

func (h *handler) actAtOnce(ctx context.Context, tasks []state.Task) error {
	var names []string
	for _, task := range tasks {
		names = append(names, string(task.Action)+" "+task.Unit)
	}
	what := strings.Join(names, ", ")
	status("%s", what)
	if err := h.transaction.Step(what, func() error { return h.systemd.Act(ctx, tasks) }); err != nil {
		return err
	}
	status("watching %s for %s", what, h.timeout)
	return h.transaction.Step("watch the services", func() error { return h.watch.Hold(ctx, tasks, h.timeout) })
}

// takeBackServices undoes what was done to services. One that does not come back is told; everything else has to go on.
func takeBackServices(ctx context.Context, t *state.Transaction) {
	if len(t.Services) == 0 {
		return
	}
	status("restarting services on the tree before")
	err := t.Step("restart services on the tree before", func() error {
		systemd, err := services.Connect(ctx)
		if err != nil {
			return err
		}
		defer systemd.Close()
		return systemd.TakeBack(ctx, t.Services)
	})
	if err != nil {
		warn("%v", err)
	}
}
