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

	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
)

// Systemd is what a place asks of systemd.
type Systemd interface {
	// IsWorkingOn tells whether a unit for which a transaction is made, one of its phases, or its way back runs, or is about to.
	IsWorkingOn(ctx context.Context, unit string) (bool, error)
	// Start starts a unit and waits for its end.
	Start(ctx context.Context, unit string) error
}

// Place is where transactions take place: a machine.
type Place struct {
	State state.Dirs
	// UnderWay reads the transaction that is not ended; nil if there is none. state.ErrDamaged: there is one, and it is not known what it has done.
	UnderWay func() (*state.Transaction, error)
	With     func(context.Context, func(Systemd) error) error
	Status   func(format string, args ...any)
	Warn     func(format string, args ...any)
	// Waiting is called when waiting begins, and what it returns when that ends.
	Waiting func() (end func())
}

// Lock waits for the lock.
func (p Place) Lock(ctx context.Context) (*state.Lock, error) {
	end := func() {}
	defer func() { end() }()
	return p.State.Lock(ctx, func() {
		end = p.Waiting()
		if t, err := p.UnderWay(); t != nil && err == nil {
			p.Status("waiting for the transaction of %s to end", t.Request)
		} else {
			p.Status("waiting for what changes the machine now")
		}
	})
}

// Own begins a transaction of a unit for a request when it is its turn, or goes on with the one that this unit has begun before (its process was killed and
// runs again). One that was interrupted and that the unit itself takes back (services.RollbackUnit) is taken over as it is.
func (p Place) Own(ctx context.Context, unit, request string) (*state.Lock, *state.Transaction, error) {
	for {
		lock, err := p.Lock(ctx)
		if err != nil {
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
func (p Place) look(ctx context.Context, lock *state.Lock, unit, request string) (own *state.Transaction, first func() error, err error) {
	t, err := p.UnderWay()
	isReset := request == state.ResetRequest
	switch {
	case errors.Is(err, state.ErrDamaged) && isReset:
		own, err = lock.Begin(unit, request)
		return own, nil, err
	case errors.Is(err, state.ErrDamaged):
		return nil, func() error { return p.takeBack(ctx, services.ResetUnit, err) }, nil
	case err != nil:
		return nil, nil, err
	case t == nil:
		own, err = lock.Begin(unit, request)
		return own, nil, err
	case services.UnitOf(t) == unit && !(t.Switched && services.RollbackUnit(t.Request) != unit):
		return t, nil, nil
	}
	rollback := services.RollbackUnit(t.Request)
	if services.UnitOf(t) != unit { // of its own, what was switched already is taken back: it begins from what was live before
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
			_, err = p.State.TakeOutcome(t.Request) // there is nobody to tell any more
		}
		if err == nil || ctx.Err() != nil || !isReset {
			return err
		}
		// A reset takes all back, whatever stands in the way of taking back a part.
		p.Warn("%v; going back to the booted tree all the same", err)
		return p.give(ctx, t)
	}, nil
}

// takeBack starts the unit that takes back what is under way.
func (p Place) takeBack(ctx context.Context, unit string, why error) error {
	defer p.Waiting()()
	p.Warn("%v: starting %s first", why, unit)
	return p.With(ctx, func(systemd Systemd) error { return systemd.Start(ctx, unit) })
}

// give ends a transaction that cannot be taken back, if it is still under way.
func (p Place) give(ctx context.Context, t *state.Transaction) error {
	lock, err := p.Lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	return lock.End(t)
}

// await waits until a transaction has ended, on which units work.
func (p Place) await(ctx context.Context, t *state.Transaction) error {
	defer p.Waiting()()
	p.Status("waiting for the transaction of %s to end", t.Request)
	if err := p.State.AwaitEnd(ctx); err != nil {
		return fmt.Errorf("transaction %s of %s has not ended: wait for it (systemctl list-jobs), or take it back with liveapplyctl reset: %w", t.ID, t.Request, err)
	}
	return nil
}

func (p Place) isWorkingOn(ctx context.Context, t *state.Transaction) (working bool, err error) {
	err = p.With(ctx, func(systemd Systemd) (err error) {
		working, err = systemd.IsWorkingOn(ctx, services.UnitOf(t))
		return err
	})
	return working, err
}

// Interrupted returns, under the lock, the unit that has to be started to take back what nobody works on any more; "" if there is nothing.
func (p Place) Interrupted(ctx context.Context) (rollback string, err error) {
	t, err := p.UnderWay()
	if errors.Is(err, state.ErrDamaged) {
		p.Warn("%v", err)
		return services.ResetUnit, nil
	}
	if t == nil || err != nil {
		return "", err
	}
	working, err := p.isWorkingOn(ctx, t)
	if err != nil || working {
		return "", err
	}
	return services.RollbackUnit(t.Request), nil
}

// AwaitUnderWay returns when no transaction is under way. One that was interrupted is not, nor is one whose file is damaged: whoever asks for the next one has
// that taken back.
func (p Place) AwaitUnderWay(ctx context.Context) error {
	t, err := p.UnderWay()
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
		if now, err := p.UnderWay(); err != nil || now == nil || now.ID == t.ID {
			return err
		}
	}
	return p.State.AwaitEnd(ctx)
}
