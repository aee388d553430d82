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
	if current != nil && current.Request != request {
		if err := m.finishInterrupted(ctx, current); err != nil {
			return nil, err
		}
	}
	return m.State.Claim(ctx, request, func(other *state.Transaction) {
		status("waiting for the transaction of %s to end", other.Request)
	})
}

// finishInterrupted rolls a transaction back that nothing works on any more.
func (m *Machine) finishInterrupted(ctx context.Context, t *state.Transaction) error {
	systemd, err := services.Connect(ctx)
	if err != nil {
		return err
	}
	defer systemd.Close()
	working, err := systemd.IsWorkingOn(ctx, t.Request)
	if err != nil || working {
		return err
	}
	warn("the transaction of %s was interrupted, rolling it back first", t.Request)
	return systemd.Start(ctx, services.RollbackUnit(t.Request))
}
