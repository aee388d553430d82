package bus

import (
	"context"
	"time"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/phase"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
	"github.com/liveapply/liveapply/internal/transaction"
)

// Machine is the running system.
type Machine struct{ *machine.Machine }

// Transaction returns the one under way; nil if there is none.
func (m Machine) Transaction() (*state.Transaction, error) { return m.State.Transaction() }

// DryRun makes the plan of an application, or says why it would be refused.
func (m Machine) DryRun(ctx context.Context, rev string, request config.Request) (*state.Plan, error) {
	return phase.DryRun(ctx, m.Machine, rev, request)
}

// LastEntry returns what the history ends with; nil if it is empty.
func (m Machine) LastEntry() (*state.Entry, error) { return m.State.LastEntry() }

// Share returns how much of a phase under way has been done.
func (m Machine) Share(ctx context.Context, request, phase string) float64 {
	manager, err := systemd.Connect(ctx)
	if err != nil {
		return 0
	}
	defer manager.Close()
	text, err := manager.StatusText(ctx, systemd.PhaseUnit(request, phase))
	if err != nil {
		return 0
	}
	share, _ := report.Share(text)
	return share
}

// lookEvery is how often a phase under way is asked how far it is.
const lookEvery = time.Second / 2

// Watch calls changed whenever the stamp may have changed, and, as long as a phase is under way, regularly: it may count.
func (m Machine) Watch(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	look := time.NewTicker(lookEvery)
	look.Stop()
	go func() {
		for {
			select {
			case <-look.C:
				changed()
			case <-ctx.Done():
				return
			}
		}
	}()
	defer look.Stop()
	return m.State.WatchStamp(ctx, m.Booted, func(stamp *state.Stamp) {
		if look.Stop(); stamp.Phase != "" {
			look.Reset(lookEvery)
		}
		changed()
	})
}

// Start starts a unit with a request, and returns when that has ended. The reason of a failure is what the unit last said.
func (m Machine) Start(ctx context.Context, unit string, target ostree.Checksum, request config.Request) error {
	manager, err := systemd.Connect(ctx)
	if err != nil {
		return err
	}
	defer manager.Close()
	var begun *systemd.Begun
	if unit == systemd.ResetUnit {
		begun, err = transaction.AskReset(ctx, m.Machine, manager, request)
	} else {
		begun, err = transaction.Ask(ctx, m.Machine, manager, target, request, func() {})
	}
	if err != nil {
		return err
	}
	return begun.Outcome(ctx)
}

// UnitOf returns the unit that a process belongs to.
func (m Machine) UnitOf(ctx context.Context, pid uint32) (string, error) {
	manager, err := systemd.Connect(ctx)
	if err != nil {
		return "", err
	}
	defer manager.Close()
	return manager.UnitOf(ctx, pid)
}
