package phase

import (
	"context"
	"errors"
	"fmt"

	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
)

// transaction returns the transaction under way; nil if there is none. If its file is damaged, or gone while the stamp says that there is
// one, that is state.ErrDamaged: then nobody knows what there is to take back, and all of it has to be.
func (m *Machine) transaction() (*state.Transaction, error) {
	t, err := m.State.Transaction()
	if t != nil || err != nil {
		return t, err
	}
	stamp, err := m.State.Stamp(m.Booted)
	if err != nil || stamp == nil || stamp.Phase == "" {
		return nil, nil // a damaged stamp says nothing
	}
	// One that has begun meanwhile was written before its stamp.
	if t, err = m.State.Transaction(); t != nil || err != nil {
		return t, err
	}
	return nil, fmt.Errorf("the file of transaction %s is gone: %w", stamp.Transaction, state.ErrDamaged)
}

// claim begins the transaction of a request, after those that are under way. One that has no unit running any more was
// interrupted, and is rolled back first.
func (m *Machine) claim(ctx context.Context, request string) (*state.Transaction, error) {
	current, err := m.transaction()
	switch {
	case errors.Is(err, state.ErrDamaged):
		err = m.replaceDamaged(ctx, request, err)
	case err == nil && current != nil && (current.Request != request || current.Switched):
		// Of the same request, what was switched already is rolled back: prepare begins from what was live before.
		err = m.finishInterrupted(ctx, current, request)
		if err != nil && ctx.Err() == nil && request == state.ResetRequest {
			// A reset takes all back, whatever stands in the way of taking back a part.
			warn("%v; going back to the booted tree all the same", err)
			err = m.State.EndTransaction()
		}
	}
	if err != nil {
		return nil, err
	}
	t, err := m.State.Claim(ctx, request, func(other *state.Transaction) {
		status("waiting for the transaction of %s to end", other.Request)
	})
	if err != nil {
		return nil, err
	}
	if live, err := m.Live(); err != nil {
		return nil, err
	} else if live != m.Booted.Commit {
		if err := services.StopWatch(ctx); err != nil {
			return nil, err
		}
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
		abandoned, err := m.isAbandoned(ctx, systemd, t)
		if err != nil || !abandoned {
			return err
		}
	}
	warn("the transaction of %s was interrupted: starting %s first", t.Request, services.RollbackUnit(t.Request))
	if err := systemd.Start(ctx, services.RollbackUnit(t.Request)); err != nil {
		return err
	}
	_, err = m.State.TakeOutcome(t.Request) // there is nobody to tell any more
	return err
}

// AwaitUnderWay returns when no transaction is under way. One that was interrupted is not, nor is one whose file is damaged: whoever asks
// for the next one has that taken back.
func (m *Machine) AwaitUnderWay(ctx context.Context) error {
	t, err := m.transaction()
	if errors.Is(err, state.ErrDamaged) {
		return nil
	}
	if err != nil || t == nil {
		return err
	}
	systemd, err := services.Connect(ctx)
	if err != nil {
		return err
	}
	defer systemd.Close()
	if abandoned, err := m.isAbandoned(ctx, systemd, t); err != nil || abandoned {
		return err
	}
	return m.State.AwaitEnd(ctx)
}

// isAbandoned tells whether a transaction that is under way has no unit that works on it.
func (m *Machine) isAbandoned(ctx context.Context, systemd *services.Systemd, t *state.Transaction) (bool, error) {
	working, err := systemd.IsWorkingOn(ctx, t.Request)
	if err != nil || working {
		return false, err
	}
	// Its units may have ended it just now.
	now, err := m.State.Transaction()
	return err == nil && now != nil && now.ID == t.ID, err
}

// replaceDamaged makes way for a request where the file of the transaction is damaged. The phases that still run fail for that, and their
// rollback goes back to the booted tree; if none does, a reset does that. A reset itself just takes the file's place.
func (m *Machine) replaceDamaged(ctx context.Context, request string, damage error) error {
	systemd, err := services.Connect(ctx)
	if err != nil {
		return err
	}
	defer systemd.Close()
	working, err := systemd.IsChanging(ctx, request)
	switch {
	case err != nil:
		return err
	case working:
		status("waiting for other transactions to end")
		return m.State.AwaitEnd(ctx)
	case request == state.ResetRequest:
		return nil
	}
	warn("%v: starting %s first", damage, services.ResetUnit)
	return systemd.Start(ctx, services.ResetUnit)
}
