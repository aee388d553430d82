package phase

import (
	"context"
	"time"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/services"
)

// TryAsk leaves a request to apply a commit, and starts the unit that does. It returns nil if units work on that commit for somebody else already: to start
// them would be to join them, whatever was asked for there, and they may take this request for theirs, or drop it.
func (m *Machine) TryAsk(ctx context.Context, systemd *services.Systemd, target ostree.Checksum, request config.Request) (begun *services.Begun, err error) {
	err = m.State.Locked(func() error {
		working, err := systemd.IsWorkingOn(ctx, target.String())
		if err != nil || working {
			return err
		}
		if err := config.WriteRequest(m.State.RequestPath(target), request); err != nil {
			return err
		}
		begun, err = systemd.Begin(ctx, services.ApplyUnit(target.String()))
		return err
	})
	return begun, err
}

// Ask is TryAsk when it is its turn. It calls waiting once if it has to wait for that.
func (m *Machine) Ask(ctx context.Context, systemd *services.Systemd, target ostree.Checksum, request config.Request, waiting func()) (*services.Begun, error) {
	for {
		begun, err := m.TryAsk(ctx, systemd, target, request)
		if begun != nil || err != nil {
			return begun, err
		}
		waiting()
		waiting = func() {}
		if err := m.AwaitTurn(ctx); err != nil {
			return nil, err
		}
	}
}

// askAgain is how long the units of a transaction may take when that has ended.
const askAgain = 50 * time.Millisecond

// AwaitTurn returns when TryAsk may succeed.
func (m *Machine) AwaitTurn(ctx context.Context) error {
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
