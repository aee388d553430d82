package transaction

import (
	"context"
	"errors"
	"time"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/systemd"
)

var errWorking = errors.New("the unit works for somebody else")

// TryAsk starts the unit that applies a commit, with a request for that start alone. It returns nil if units work on that commit for somebody else already: to
// start them would be to join them, whatever was asked for there.
func TryAsk(ctx context.Context, m *machine.Machine, manager *systemd.Manager, target ostree.Checksum, request config.Request) (*systemd.Begun, error) {
	unit := systemd.ApplyUnit(target.String())
	begun, err := ask(ctx, m, manager, unit, request, func() error {
		working, err := manager.IsWorkingOn(ctx, unit)
		if err == nil && working {
			err = errWorking
		}
		return err
	})
	if errors.Is(err, errWorking) {
		return nil, nil
	}
	return begun, err
}

// AskReset starts the unit that goes back to the booted tree. Who asks while it runs joins it.
func AskReset(ctx context.Context, m *machine.Machine, manager *systemd.Manager, request config.Request) (*systemd.Begun, error) {
	return ask(ctx, m, manager, systemd.ResetUnit, request, func() error { return nil })
}

func ask(ctx context.Context, m *machine.Machine, manager *systemd.Manager, unit string, request config.Request, may func() error) (begun *systemd.Begun, err error) {
	write := func(path string) error { return config.WriteRequest(path, request) }
	jobs := func() ([]uint32, error) { return manager.Jobs(ctx) }
	err = m.State.Ask(ctx, unit, write, jobs, func() (uint32, error) {
		if err := may(); err != nil {
			return 0, err
		}
		if begun, err = manager.Begin(ctx, unit); err != nil {
			return 0, err
		}
		return begun.Job, nil
	})
	if err != nil {
		return nil, err
	}
	return begun, nil
}

// TakeRequest reads the configuration with what the start of a unit was asked for.
func TakeRequest(ctx context.Context, m *machine.Machine, unit string) (c *config.Config, err error) {
	job := func() (number uint32, err error) {
		err = systemd.With(ctx, func(manager *systemd.Manager) (err error) {
			number, err = manager.Job(ctx, unit)
			return err
		})
		return number, err
	}
	err = m.State.TakeRequest(ctx, unit, job, func(path string) (err error) {
		c, err = m.Config.Load(path)
		return err
	})
	return c, err
}

// Ask is TryAsk when it is its turn. It calls waiting once if it has to wait for that.
func Ask(ctx context.Context, m *machine.Machine, manager *systemd.Manager, target ostree.Checksum, request config.Request, waiting func()) (*systemd.Begun, error) {
	for {
		if err := manager.Renew(ctx); err != nil {
			return nil, err
		}
		begun, err := TryAsk(ctx, m, manager, target, request)
		if err != nil && manager.IsLost() && ctx.Err() == nil {
			continue
		}
		if begun != nil || err != nil {
			return begun, err
		}
		waiting()
		waiting = func() {}
		if err := AwaitTurn(ctx, m); err != nil {
			return nil, err
		}
	}
}

// askAgain is how long the units of a transaction may take when that has ended.
const askAgain = 50 * time.Millisecond

// AwaitTurn returns when TryAsk may succeed.
func AwaitTurn(ctx context.Context, m *machine.Machine) error {
	if err := m.State.AwaitEnd(ctx); err != nil {
		return err
	}
	select {
	case <-time.After(askAgain):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
