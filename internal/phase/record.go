package phase

import (
	"context"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/transaction"
)

// Record commits the transaction: from here on the target is what is live, and a failure no longer takes it back.
func Record(ctx context.Context, m *machine.Machine, request string) error {
	t, plan, err := transaction.Resume(ctx, m, "record", request)
	if err != nil {
		return err
	}
	storage, err := m.OpenStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	report.Status("recording")
	if !plan.IsNothing() {
		if err := storage.SetLiveRef(plan.Live); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = lasting(ctx)
	t.End()
	t.Committed = true
	if err := m.Lock.Write(t); err != nil {
		return err
	}
	return complete(ctx, storage, t)
}

// complete brings a committed transaction to its end. It can be run again, and is, by rollback, if record was killed here. The plan
// may be gone by then.
func complete(ctx context.Context, s *machine.Storage, t *state.Transaction) error {
	if err := etcmerge.Fold(s.EtcDirs()); err != nil {
		return err
	}
	if err := s.Machine.State.NoteStoppedUnits(t.Services); err != nil {
		return err
	}
	if t.From != t.Live {
		if err := s.DropLayers(t.Live); err != nil {
			return err
		}
		report.Announce(t, report.MessageApplied, "Commit "+report.Named(t.Target, t.Partial)+" is live", map[string]string{"LIVEAPPLY_RESULT": string(state.Applied)})
		transaction.WriteHistory(s.Machine, state.NewEntry(t, state.Applied, ""))
	}
	return transaction.Conclude(ctx, s.Machine, t, state.Outcome{Result: state.Applied})
}
