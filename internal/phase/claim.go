package phase

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/transaction"
)

// transaction returns the transaction under way; nil if there is none. If its file is damaged, or gone while the stamp says that there is
// one, that is state.ErrDamaged: then nobody knows what there is to take back, and all of it has to be.
func (m *Machine) transaction() (*state.Transaction, error) {
	t, err := m.State.Transaction()
	if t != nil || err != nil || !m.IsOSTree() {
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

// place is where transactions of this machine take place.
func (m *Machine) place() transaction.Place {
	return transaction.Place{
		State:    m.State,
		UnderWay: m.transaction,
		With: func(ctx context.Context, do func(transaction.Systemd) error) error {
			return services.With(ctx, func(systemd *services.Systemd) error { return do(systemd) })
		},
		Status: status, Warn: warn, Waiting: waiting,
	}
}

// acquire takes the lock, which this process has until it ends.
func (m *Machine) acquire(ctx context.Context) (err error) {
	m.lock, err = m.place().Lock(ctx)
	return err
}

// claim takes the lock and begins the transaction of a unit for a request, or goes on with it, see [transaction.Place.Own].
func (m *Machine) claim(ctx context.Context, unit, request string) (t *state.Transaction, err error) {
	if m.lock, t, err = m.place().Own(ctx, unit, request); err != nil {
		return nil, err
	}
	live, err := m.Live()
	if err != nil || !m.IsOSTree() || live == m.Booted.Commit {
		return t, err
	}
	return t, services.StopWatch(ctx)
}

// release removes what the phases of a transaction hand over to each other, has the stamp watched, and lets the next one begin.
func (m *Machine) release(ctx context.Context, t *state.Transaction) error {
	if err := errors.Join(m.State.RemovePlan(), m.removeScratch()); err != nil {
		return err
	}
	live, err := m.Live()
	if err != nil {
		return err
	}
	if m.IsOSTree() && !m.inInitrd() {
		if err := m.settleAround(ctx, live); err != nil {
			return err
		}
	}
	if m.IsOSTree() && live != m.Booted.Commit {
		if err := services.WatchStamp(ctx); err != nil {
			warn("%v", err) // at shutdown nothing can be started any more
		}
	}
	return m.lock.End(t)
}

// settleAround makes what there is beside a commit that is live be as it needs it.
func (m *Machine) settleAround(ctx context.Context, live ostree.Checksum) error {
	open := m.viewStorage
	_, own := os.Lstat(m.ownLink())
	if own == nil {
		open = m.openStorage
	}
	storage, err := open()
	if err != nil {
		return err
	}
	defer storage.Close()
	if own == nil {
		if err := storage.dropOwn(ctx, live); err != nil {
			return err
		}
	}
	return storage.leaveEtcToStaged()
}

// AwaitUnderWay returns when no transaction is under way on which units work.
func (m *Machine) AwaitUnderWay(ctx context.Context) error { return m.place().AwaitUnderWay(ctx) }
