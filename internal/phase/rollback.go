package phase

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
)

// Rollback takes a transaction back that did not end, in the reverse order of the phases. One that record has committed is brought to its end
// instead. Once begun, it does not stop before its end; killed, it can be run again.
//
// If it is not known what to take back, because the file of the transaction or the journal of /etc is damaged, it becomes a reset.
func (m *Machine) Rollback(ctx context.Context, request string) error {
	unit := services.ApplyUnit(request)
	if t, err := m.transaction(); err == nil && t != nil && services.UnitOf(t) != unit {
		return nil // it failed before it was its turn, or has ended: another one is under way, for which nobody has to wait
	}
	if err := m.acquire(ctx); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	t, err := m.transaction()
	if err != nil && !errors.Is(err, state.ErrDamaged) {
		return err
	}
	outcome, failure := m.failure(request, t)
	if failure != nil {
		return failure
	}
	if err != nil {
		warn("%v; going back to the booted tree instead", err)
		if t, err = m.lock.Begin(unit, state.ResetRequest); err != nil {
			return err
		}
	}
	switch {
	case t == nil: // it has ended, or was killed before it had begun
		return m.lock.Clear()
	case services.UnitOf(t) != unit:
		return nil
	case t.Request == state.ResetRequest:
		return m.resetInstead(ctx, t, request, *outcome)
	}
	storage, err := m.openStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	if t.Committed {
		return storage.complete(ctx, t)
	}
	err = storage.takeBack(ctx, t)
	if errors.Is(err, etcmerge.ErrDamaged) {
		warn("%v; going back to the booted tree instead", err)
		t.Request = state.ResetRequest
		return m.resetInstead(ctx, t, request, *outcome)
	}
	if err != nil {
		return err
	}
	return storage.rolledBack(ctx, t, *outcome)
}

// resetInstead makes a reset of the rollback of a request.
func (m *Machine) resetInstead(ctx context.Context, t *state.Transaction, request string, outcome state.Outcome) error {
	t.RequestedBy = services.RollbackUnit(request)
	c, err := m.Config.Load("")
	if err != nil {
		warn("%v", err)
	}
	return errors.Join(m.State.SetOutcome(request, outcome), m.reset(ctx, t, c, outcome.Reason))
}

// takeBack makes /etc and then /usr what they were when the transaction began.
func (s *storage) takeBack(ctx context.Context, t *state.Transaction) error {
	m := s.machine
	if !t.Switched { // before the switch, nothing in /etc is changed
		return nil
	}
	err := s.withoutOverlays(ctx, func(bool) error {
		status("taking back the changes of /etc")
		result, err := etcmerge.Rollback(ctx, s.etcDirs())
		if err != nil {
			return err
		}
		logKept(t, "/etc", result.Kept)
		return nil
	})
	if err != nil {
		return err
	}
	status("switching /usr back")
	if err := m.switchBack(t.From, m.layersOf(t.From)); err != nil {
		return err
	}
	before, err := m.remakeStamp()
	if err != nil {
		return err
	}
	return m.updateStamp(func(stamp *state.Stamp) {
		before.Transaction, before.Target, before.Phase = stamp.Transaction, stamp.Target, stamp.Phase
		*stamp = *before
	})
}

// rolledBack drops what prepare has made, and tells why.
func (s *storage) rolledBack(ctx context.Context, t *state.Transaction, outcome state.Outcome) error {
	m := s.machine
	if t.Switched {
		status("reloading")
		if err := s.reloadAfterSwitchBack(ctx, t); err != nil {
			return err
		}
		takeBackServices(ctx, t)
	}
	if t.Staged != nil {
		if err := s.stageAsBefore(ctx, t.Staged); err != nil {
			return err
		}
	}
	if !t.Live.IsZero() { // prepare has made a ref, or was about to
		if err := s.setLiveRef(t.From); err != nil {
			return err
		}
	}
	if t.Switched && t.From == m.Booted.Commit {
		if err := s.stopLive(ctx); err != nil {
			return err
		}
	}
	if err := s.dropLayers(t.From); err != nil {
		return err
	}
	if err := s.tidy(); err != nil {
		return err
	}
	announce(t, messageFailed, fmt.Sprintf("Commit %s was not applied (%s): %s", requested(t), outcome.Result, outcome.Reason),
		map[string]string{"LIVEAPPLY_RESULT": string(outcome.Result)})
	entry := state.NewEntry(t, outcome.Result, outcome.Reason)
	entry.Passing = outcome.Passing
	m.writeHistory(entry)
	return m.conclude(ctx, t, outcome)
}

// stageAsBefore drops what prepare has staged, and brings back what that took the place of.
func (s *storage) stageAsBefore(ctx context.Context, before *state.StagedBefore) error {
	own, err := s.machine.staging()
	if err != nil {
		return err
	}
	if own.Commit == before.Deployed {
		if err := s.restage(ctx, own, before.Replaced); err != nil {
			return err
		}
	}
	if err := s.machine.State.WriteStaging(before.Staging); err != nil || !before.Staging.IsOwn(before.Replaced) {
		return err
	}
	return s.machine.noteOwn(before.Staging) // libostree has made something else of it
}

// reloadAfterSwitchBack reloads what the services phase has, or would have.
func (s *storage) reloadAfterSwitchBack(ctx context.Context, t *state.Transaction) error {
	if _, err := os.Lstat(s.layerDir(t.Live)); errors.Is(err, os.ErrNotExist) {
		return nil // dropped by a rollback that was killed after this
	}
	return services.Reload(ctx, s.machine.reloadOf(t.Live), t.Step)
}

// failure says how a request failed whose transaction is t, if that is known. A phase that was killed could not say why.
func (m *Machine) failure(request string, t *state.Transaction) (*state.Outcome, error) {
	outcome, err := m.State.Outcome(request)
	if err != nil || outcome != nil {
		return outcome, err
	}
	outcome = &state.Outcome{Result: state.RolledBack, Reason: "a phase was killed; see systemctl status 'liveapply-*'"}
	if t == nil || services.UnitOf(t) != services.ApplyUnit(request) || len(t.Phases) == 0 {
		return outcome, nil
	}
	last := t.Phases[len(t.Phases)-1]
	outcome.Phase = last.Name
	outcome.Reason = "the phase " + last.Name + " was killed"
	if last.Seconds > 0 {
		outcome.Reason = "a unit failed when the phase " + last.Name + " had done its work; see systemctl --failed 'liveapply-*'"
	}
	return outcome, nil
}

// Fail leaves why a phase failed, for the rollback and for liveapply@.service; not if the commit was applied before that.
func (m *Machine) Fail(request, phase string, reason error) error {
	if outcome, err := m.State.Outcome(request); err == nil && outcome != nil && outcome.Result == state.Applied {
		return nil
	}
	if phase == "prepare" {
		return m.State.SetOutcome(request, refusal(reason))
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
