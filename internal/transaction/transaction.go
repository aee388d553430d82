// Package transaction says whose turn it is to change the machine.
//
// A process that changes it has the lock ([state.Lock]) until it ends. A transaction takes several processes, one after the other: its file names the unit
// that it belongs to, and only what works for that unit goes on with it. Whoever finds another's under the lock waits for its end if units still work on it, or
// are about to; if none is, it was interrupted, and is taken back first.
package transaction

import (
	"context"
	"errors"
	"fmt"

	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
)

// unitManager is what a place asks of systemd.
type unitManager interface {
	// IsWorkingOn tells whether a unit for which a transaction is made, one of its phases, or its way back runs, or is about to.
	IsWorkingOn(ctx context.Context, unit string) (bool, error)
	// Start starts a unit and waits for its end.
	Start(ctx context.Context, unit string) error
}

// place is where transactions take place: a machine.
type place struct {
	state state.Dirs
	// underWay is Machine.UnderWay.
	underWay func() (*state.Transaction, error)
	with     func(context.Context, func(unitManager) error) error
	status   func(format string, args ...any) // report.Status
}

// lock waits for the lock.
func (p place) lock(ctx context.Context) (*state.Lock, error) {
	end := func() {}
	defer func() { end() }()
	return p.state.Lock(ctx, func() {
		end = report.Waiting()
		if t, err := p.underWay(); t != nil && err == nil {
			p.status("waiting for the transaction of %s to end", t.Request)
		} else {
			p.status("waiting for what changes the machine now")
		}
	})
}

// own is Claim, of the place.
func (p place) own(ctx context.Context, unit, request string) (*state.Lock, *state.Transaction, error) {
	for {
		lock, err := p.lock(ctx)
		if err != nil {
			return nil, nil, err
		}
		if err := ctx.Err(); err != nil { // stopped: nobody would go on with what is begun now
			lock.Close()
			return nil, nil, err
		}
		t, first, err := p.look(ctx, lock, unit, request)
		if err == nil && first == nil {
			return lock, t, nil
		}
		lock.Close()
		if err == nil {
			err = first()
		}
		if err != nil {
			return nil, nil, err
		}
	}
}

// look finds out, under the lock, what is under way. It returns the unit's own transaction, or else what has to be done first, without the lock.
func (p place) look(ctx context.Context, lock *state.Lock, unit, request string) (own *state.Transaction, first func() error, err error) {
	t, err := p.underWay()
	isReset := request == state.ResetRequest
	switch {
	case errors.Is(err, state.ErrDamaged) && isReset:
		own, err = lock.Begin(unit, request)
		return own, nil, err
	case errors.Is(err, state.ErrDamaged):
		return nil, func() error { return p.takeBack(ctx, systemd.ResetUnit, err) }, nil
	case err != nil:
		return nil, nil, err
	case t == nil:
		own, err = lock.Begin(unit, request)
		return own, nil, err
	case systemd.UnitOf(t) == unit && !(t.Switched && systemd.RollbackUnit(t.Request) != unit):
		return t, nil, nil
	}
	rollback := systemd.RollbackUnit(t.Request)
	if systemd.UnitOf(t) != unit { // of its own, what was switched already is taken back: it begins from what was live before
		working, err := p.isWorkingOn(ctx, t)
		if err != nil {
			return nil, nil, err
		}
		if working {
			return nil, func() error { return p.await(ctx, t) }, nil
		}
		if rollback == unit {
			t.Unit = unit
			return t, nil, lock.Write(t)
		}
	}
	return nil, func() error {
		err := p.takeBack(ctx, rollback, fmt.Errorf("the transaction of %s was interrupted", t.Request))
		if err == nil {
			_, err = p.state.TakeOutcome(t.Request) // there is nobody to tell any more
		}
		if err == nil || ctx.Err() != nil || !isReset {
			return err
		}
		// A reset takes all back, whatever stands in the way of taking back a part.
		report.Warn("%v; going back to the booted tree all the same", err)
		return p.give(ctx, t)
	}, nil
}

// takeBack starts the unit that takes back what is under way.
func (p place) takeBack(ctx context.Context, unit string, why error) error {
	defer report.Waiting()()
	report.Warn("%v: starting %s first", why, unit)
	return p.with(ctx, func(manager unitManager) error { return manager.Start(ctx, unit) })
}

// give ends a transaction that cannot be taken back, if it is still under way.
func (p place) give(ctx context.Context, t *state.Transaction) error {
	lock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	return lock.End(t)
}

// await waits until a transaction has ended, on which units work.
func (p place) await(ctx context.Context, t *state.Transaction) error {
	defer report.Waiting()()
	p.status("waiting for the transaction of %s to end", t.Request)
	if err := p.state.AwaitEnd(ctx); err != nil {
		return fmt.Errorf("transaction %s of %s has not ended: wait for it (systemctl list-jobs), or take it back with liveapplyctl reset: %w", t.ID, t.Request, err)
	}
	return nil
}

func (p place) isWorkingOn(ctx context.Context, t *state.Transaction) (working bool, err error) {
	err = p.with(ctx, func(manager unitManager) (err error) {
		working, err = manager.IsWorkingOn(ctx, systemd.UnitOf(t))
		return err
	})
	return working, err
}

// interrupted is Interrupted.
func (p place) interrupted(ctx context.Context) (rollback string, err error) {
	t, err := p.underWay()
	if errors.Is(err, state.ErrDamaged) {
		report.Warn("%v", err)
		return systemd.ResetUnit, nil
	}
	if t == nil || err != nil {
		return "", err
	}
	working, err := p.isWorkingOn(ctx, t)
	if err != nil || working {
		return "", err
	}
	return systemd.RollbackUnit(t.Request), nil
}

// awaitUnderWay is AwaitUnderWay.
func (p place) awaitUnderWay(ctx context.Context) error {
	t, err := p.underWay()
	if errors.Is(err, state.ErrDamaged) {
		return nil
	}
	if err != nil || t == nil {
		return err
	}
	working, err := p.isWorkingOn(ctx, t)
	if err != nil {
		return err
	}
	if !working {
		// Its units may have ended it just now, and another one may have begun.
		if now, err := p.underWay(); err != nil || now == nil || now.ID == t.ID {
			return err
		}
	}
	p.status("waiting for the transaction of %s to end", t.Request)
	return p.state.AwaitEnd(ctx)
}
