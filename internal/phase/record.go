package phase

import (
	"context"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
)

// Record commits the transaction: from here on the target is what is live, and a failure no longer takes it back.
func (m *Machine) Record(ctx context.Context, request string) error {
	t, plan, err := m.resume(ctx, "record", request)
	if err != nil {
		return err
	}
	storage, err := m.openStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	status("recording")
	if !plan.IsNothing() {
		if err := storage.setLiveRef(plan.Live); err != nil {
			return err
		}
	}
	t.End()
	t.Committed = true
	if err := m.lock.Write(t); err != nil {
		return err
	}
	return storage.complete(ctx, t)
}

// complete brings a committed transaction to its end. It can be run again, and is, by rollback, if record was killed here. The plan
// may be gone by then.
func (s *storage) complete(ctx context.Context, t *state.Transaction) error {
	if err := etcmerge.Fold(s.etcDirs()); err != nil {
		return err
	}
	if t.From != t.Live {
		if err := s.dropLayers(t.Live); err != nil {
			return err
		}
		announce(t, messageApplied, "Commit "+named(t.Target, t.Partial)+" is live", map[string]string{"LIVEAPPLY_RESULT": string(state.Applied)})
		s.machine.writeHistory(state.NewEntry(t, state.Applied, ""))
	}
	return s.machine.conclude(ctx, t, state.Outcome{Result: state.Applied})
}

// writeHistory adds a line to the history. That it cannot be written, as /var may be full, keeps no transaction from ending.
func (m *Machine) writeHistory(entry state.Entry) {
	if err := m.State.AppendHistory(entry); err != nil {
		warn("transaction %s of commit %s (%s) is not in the history: %v", entry.Transaction, entry.Target, entry.Result, err)
	}
}

// conclude tells how a transaction ended, and lets the next one begin.
func (m *Machine) conclude(ctx context.Context, t *state.Transaction, outcome state.Outcome) error {
	stamp, err := m.stamp()
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
		if err := services.RestartLive(ctx); err != nil {
			warn("%v", err) // the commit is live all the same; at shutdown nothing can be started any more
		}
	}
	return m.release(ctx, t)
}
