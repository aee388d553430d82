package phase

import (
	"context"

	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
)

// claim begins the transaction of a request, after those that are under way. One that has no unit running any more was
// interrupted, and is rolled back first.
func (m *Machine) claim(ctx context.Context, request string) (*state.Transaction, error) {
	current, err := m.State.Transaction()
	if err != nil {
		return nil, err
	}
	// Of the same request, what was switched already is rolled back: prepare begins from what was live before.
	if current != nil && (current.Request != request || current.Switched) {
		if err := m.finishInterrupted(ctx, current, request); err != nil {
			return nil, err
		}
	}
	t, err := m.State.Claim(ctx, request, func(other *state.Transaction) {
		status("waiting for the transaction of %s to end", other.Request)
	})
	if err != nil {
		return nil, err
	}
	// How an earlier transaction of the same request ended, which nobody asked for: its unit was stopped.
	if _, err := m.State.TakeOutcome(request); err != nil {
		return nil, err
	}
	return t, nil
}

// finishInterrupted rolls a transaction back that nothing works on any more, apart from the unit of request, which asks.
func (m *Machine) finishInterrupted(ctx context.Context, t *state.Transaction, request string) error {
	systemd, err := services.Connect(ctx)
	if err != nil {
		return err
	}
	defer systemd.Close()
	if t.Request != request {
		working, err := systemd.IsWorkingOn(ctx, t.Request)
		if err != nil || working {
			return err
		}
	}
	warn("the transaction of %s was interrupted: starting %s first", t.Request, services.RollbackUnit(t.Request))
	return systemd.Start(ctx, services.RollbackUnit(t.Request))
}
