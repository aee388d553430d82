package transaction

import (
	"context"
	"fmt"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
)

// Resume takes a transaction over from the phase before, and says so in the stamp and in the unit's status.
func Resume(ctx context.Context, m *machine.Machine, phase, request string) (*state.Transaction, *state.Plan, error) {
	if err := Acquire(ctx, m); err != nil {
		return nil, nil, err
	}
	t, err := m.UnderWay()
	if err != nil {
		return nil, nil, err
	}
	if t == nil || systemd.UnitOf(t) != systemd.ApplyUnit(request) {
		return nil, nil, fmt.Errorf("no transaction for %s is under way: start liveapply@%s.service, which runs all phases", request, request)
	}
	plan, err := m.State.Plan(t)
	if err != nil {
		return nil, nil, err
	}
	return t, plan, Begin(m, t, phase)
}

// Begin notes in the transaction and in the stamp that a phase starts.
func Begin(m *machine.Machine, t *state.Transaction, phase string) error {
	t.Begin(phase)
	if err := m.Lock.Write(t); err != nil {
		return err
	}
	return m.UpdateStamp(func(stamp *state.Stamp) {
		stamp.Transaction, stamp.Target, stamp.Phase = t.ID, t.Target, phase
	})
}

// End notes that the phase has done its work.
func End(m *machine.Machine, t *state.Transaction) error {
	t.End()
	return m.Lock.Write(t)
}

// WriteHistory adds a line to the history. That it cannot be written, as /var may be full, keeps no transaction from ending.
func WriteHistory(m *machine.Machine, entry state.Entry) {
	if err := m.State.AppendHistory(entry); err != nil {
		report.Warn("transaction %s of commit %s (%s) is not in the history: %v", entry.Transaction, entry.Target, entry.Result, err)
	}
}

// Conclude tells how a transaction ended, and lets the next one begin.
func Conclude(ctx context.Context, m *machine.Machine, t *state.Transaction, outcome state.Outcome) error {
	stamp, err := m.Stamp()
	if err != nil {
		return err
	}
	if stamp.Transaction, stamp.Target, stamp.Phase = t.ID, (ostree.Checksum{}), ""; stamp.IsApplied() {
		err = m.State.WriteStamp(m.Booted, stamp)
	} else {
		err = m.State.RemoveStamp(m.Booted)
	}
	if err != nil {
		return err
	}
	if err := m.State.SetOutcome(t.Request, outcome); err != nil {
		return err
	}
	if outcome.Result == state.Applied && t.From != t.Live {
		if err := systemd.RestartLive(ctx); err != nil {
			report.Warn("%v", err) // the commit is live all the same; at shutdown nothing can be started any more
		}
	}
	return Release(ctx, m, t)
}
