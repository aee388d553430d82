package phase

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/overlay/follow"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
	"github.com/liveapply/liveapply/internal/transaction"
)

// Rollback takes a transaction back that did not end, in the reverse order of the phases. One that record has committed is brought to its end
// instead. Once begun, it does not stop before its end; killed, it can be run again.
//
// If it is not known what to take back, because the file of the transaction or the journal of /etc is damaged, it becomes a reset.
func Rollback(ctx context.Context, m *machine.Machine, request string) error {
	unit := systemd.ApplyUnit(request)
	if t, err := m.UnderWay(); err == nil && t != nil && systemd.UnitOf(t) != unit {
		return nil // it failed before it was its turn, or has ended: another one is under way, for which nobody has to wait
	}
	if err := transaction.Acquire(ctx, m); err != nil {
		return err
	}
	ctx = lasting(ctx)
	t, err := m.UnderWay()
	if err != nil && !errors.Is(err, state.ErrDamaged) {
		return err
	}
	outcome, failure := failure(m, request, t)
	if failure != nil {
		return failure
	}
	if err != nil {
		report.Warn("%v; going back to the booted tree instead", err)
		if t, err = m.Lock.Begin(unit, state.ResetRequest); err != nil {
			return err
		}
	}
	switch {
	case t == nil: // it has ended, or was killed before it had begun
		return m.Lock.Clear()
	case systemd.UnitOf(t) != unit:
		return nil
	case t.Request == state.ResetRequest:
		return resetInstead(ctx, m, t, request, *outcome)
	}
	storage, err := m.OpenStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	if t.Committed {
		return complete(ctx, storage, t)
	}
	err = takeBack(ctx, storage, t)
	if errors.Is(err, etcmerge.ErrDamaged) {
		report.Warn("%v; going back to the booted tree instead", err)
		t.Request = state.ResetRequest
		return resetInstead(ctx, m, t, request, *outcome)
	}
	if err != nil {
		return err
	}
	return rolledBack(ctx, storage, t, *outcome)
}

// resetInstead makes a reset of the rollback of a request.
func resetInstead(ctx context.Context, m *machine.Machine, t *state.Transaction, request string, outcome state.Outcome) error {
	t.RequestedBy = systemd.RollbackUnit(request)
	c, err := m.Config.Load("")
	if err != nil {
		report.Warn("%v", err)
	}
	return errors.Join(m.State.SetOutcome(request, outcome), reset(ctx, m, t, c, outcome.Reason))
}

// takeBack makes /etc and then /usr what they were when the transaction began.
func takeBack(ctx context.Context, s *machine.Storage, t *state.Transaction) error {
	m := s.Machine
	if !t.Switched { // before the switch, nothing in /etc is changed
		return nil
	}
	err := follow.WithoutOverlays(ctx, s, func(bool) error {
		report.Status("taking back the changes of /etc")
		result, err := etcmerge.Rollback(ctx, s.EtcDirs())
		if err != nil {
			return err
		}
		report.Kept(t, "/etc", result.Kept)
		return nil
	})
	if err != nil {
		return err
	}
	report.Status("switching /usr back")
	if err := switchBack(m, t.From, m.LayersOf(t.From)); err != nil {
		return err
	}
	before, err := m.RemakeStamp()
	if err != nil {
		return err
	}
	return m.UpdateStamp(func(stamp *state.Stamp) {
		before.Transaction, before.Target, before.Phase = stamp.Transaction, stamp.Target, stamp.Phase
		*stamp = *before
	})
}

// rolledBack drops what prepare has made, and tells why.
func rolledBack(ctx context.Context, s *machine.Storage, t *state.Transaction, outcome state.Outcome) error {
	m := s.Machine
	// First, as a cleanup prunes what nothing keeps.
	if !t.Live.IsZero() { // prepare has made a ref, or was about to
		if err := s.SetLiveRef(t.From); err != nil {
			return err
		}
	}
	if t.Switched {
		report.Status("reloading")
		if err := reloadAfterSwitchBack(ctx, s, t); err != nil {
			return err
		}
		takeBackServices(ctx, m, t)
	}
	if t.Staged != nil {
		if err := stageAsBefore(ctx, s, t.Staged); err != nil {
			return err
		}
	}
	if t.Switched && t.From == m.Booted.Commit {
		if err := stopLive(ctx, s); err != nil {
			return err
		}
	}
	if err := s.DropLayers(t.From); err != nil {
		return err
	}
	if err := s.Tidy(); err != nil {
		return err
	}
	report.Announce(t, report.MessageFailed, fmt.Sprintf("Commit %s was not applied (%s): %s", requested(t), outcome.Result, outcome.Reason),
		map[string]string{"LIVEAPPLY_RESULT": string(outcome.Result)})
	entry := state.NewEntry(t, outcome.Result, outcome.Reason)
	entry.Passing = outcome.Passing
	transaction.WriteHistory(m, entry)
	return transaction.Conclude(ctx, m, t, outcome)
}

// stageAsBefore drops what prepare has staged, and brings back what that took the place of.
func stageAsBefore(ctx context.Context, s *machine.Storage, before *state.StagedBefore) error {
	own, err := s.Machine.Staging()
	if err != nil {
		return err
	}
	if own.Commit == before.Deployed {
		if err := s.Restage(ctx, own, before.Replaced); err != nil {
			return err
		}
	}
	if err := s.Machine.State.WriteStaging(before.Staging); err != nil || !before.Staging.IsOwn(before.Replaced) {
		return err
	}
	return s.Machine.NoteOwn(before.Staging) // libostree has made something else of it
}

// reloadAfterSwitchBack reloads what the services phase has, or would have.
func reloadAfterSwitchBack(ctx context.Context, s *machine.Storage, t *state.Transaction) error {
	if _, err := os.Lstat(s.LayerDir(t.Live)); errors.Is(err, os.ErrNotExist) {
		return nil // dropped by a rollback that was killed after this
	}
	return services.Reload(ctx, s.Machine.ReloadOf(t.Live), t.Step)
}

// failure says how a request failed whose transaction is t, if that is known. A phase that was killed could not say why.
func failure(m *machine.Machine, request string, t *state.Transaction) (*state.Outcome, error) {
	outcome, err := m.State.Outcome(request)
	if err != nil {
		return nil, err
	}
	if outcome != nil && (outcome.Result != state.Applied || t == nil || t.Committed) { // else, it is of an earlier transaction, whose unit was stopped
		return outcome, nil
	}
	outcome = &state.Outcome{Result: state.RolledBack, Reason: "a phase was killed; see systemctl status 'liveapply-*'"}
	if t == nil || systemd.UnitOf(t) != systemd.ApplyUnit(request) || len(t.Phases) == 0 {
		return outcome, nil
	}
	last := t.Phases[len(t.Phases)-1]
	outcome.Phase = last.Name
	outcome.Reason = "the phase " + last.Name + " was killed"
	if last.Seconds > 0 {
		outcome.Reason = "it was stopped, or a unit failed, when the phase " + last.Name + " had done its work; see systemctl --failed 'liveapply-*'"
	}
	return outcome, nil
}

// Fail leaves why a phase failed, for the rollback and for liveapply@.service; not if the commit was applied before that.
func Fail(m *machine.Machine, request, phase string, reason error) error {
	if phase == "prepare" {
		return m.State.SetOutcome(request, refusal(reason))
	}
	if outcome, err := m.State.Outcome(request); err == nil && outcome != nil && outcome.Result == state.Applied {
		return nil
	}
	return m.State.SetOutcome(request, state.Outcome{Result: state.RolledBack, Reason: reason.Error(), Phase: phase})
}

// requested names what a transaction was to apply: the commit, if prepare came to know it.
func requested(t *state.Transaction) string {
	if t.Target.IsZero() {
		return t.Request
	}
	return t.Target.String()
}
