package transaction

import (
	"context"
	"errors"

	"github.com/liveapply/liveapply/internal/deployments"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/own"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
)

// placeOf is where transactions of this machine take place.
func placeOf(m *machine.Machine) place {
	return place{
		state:    m.State,
		underWay: m.UnderWay,
		with: func(ctx context.Context, do func(unitManager) error) error {
			return systemd.With(ctx, func(manager *systemd.Manager) error { return do(manager) })
		},
		status: report.Status,
	}
}

// Acquire takes the lock, which this process has until it ends.
func Acquire(ctx context.Context, m *machine.Machine) (err error) {
	m.Lock, err = placeOf(m).lock(ctx)
	return err
}

// TryAcquire is Acquire if nobody has the lock.
func TryAcquire(m *machine.Machine) (isFree bool, err error) {
	m.Lock, err = m.State.TryLock()
	return m.Lock != nil, err
}

// Claim takes the lock and begins the transaction of a unit for a request when it is its turn, or goes on with the one that this unit has begun before (its
// process was killed and runs again). One that was interrupted and that the unit itself takes back (services.RollbackUnit) is taken over as it is.
func Claim(ctx context.Context, m *machine.Machine, unit, request string) (t *state.Transaction, err error) {
	if m.Lock, t, err = placeOf(m).own(ctx, unit, request); err != nil {
		return nil, err
	}
	live, err := m.Live()
	if err != nil || !m.IsOSTree() || live == m.Booted.Commit {
		return t, err
	}
	return t, systemd.StopWatch(ctx)
}

// Release removes what the phases of a transaction hand over to each other, has the stamp watched, and lets the next one begin.
func Release(ctx context.Context, m *machine.Machine, t *state.Transaction) error {
	if err := errors.Join(m.State.RemovePlan(), m.RemoveScratch()); err != nil {
		return err
	}
	live, err := m.Live()
	if err != nil {
		return err
	}
	if m.IsOSTree() && !m.InInitrd() {
		if err := settleAround(ctx, m, live); err != nil {
			return err
		}
	}
	if m.IsOSTree() && live != m.Booted.Commit {
		if err := systemd.WatchStamp(ctx); err != nil {
			report.Warn("%v", err) // at shutdown nothing can be started any more
		}
	}
	return m.Lock.End(t)
}

// settleAround makes what there is beside a commit that is live be as it needs it.
func settleAround(ctx context.Context, m *machine.Machine, live ostree.Checksum) error {
	open := m.ViewStorage
	keepsOwn := own.IsKept(m)
	if keepsOwn {
		open = m.OpenStorage
	}
	storage, err := open()
	if err != nil {
		return err
	}
	defer storage.Close()
	if keepsOwn {
		if err := own.Drop(ctx, storage, live); err != nil {
			return err
		}
	}
	return deployments.LeaveEtcToStaged(storage)
}

// Interrupted returns, under the lock, the unit that has to be started to take back what nobody works on any more; "" if there is nothing.
func Interrupted(ctx context.Context, m *machine.Machine) (rollback string, err error) {
	return placeOf(m).interrupted(ctx)
}

// AwaitUnderWay returns when no transaction is under way on which units work. One that was interrupted is not, nor is one whose file is damaged: whoever asks
// for the next one has that taken back.
func AwaitUnderWay(ctx context.Context, m *machine.Machine) error {
	return placeOf(m).awaitUnderWay(ctx)
}
