package phase

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
)

// A rollback takes a transaction back that did not end, in the reverse order of the phases: RollbackEtc, RollbackMount,
// RollbackRecord. A transaction that record has committed is brought to its end instead.

//
// If it is not known what to take back, because the file of the transaction or the journal of /etc is damaged, it goes back to the booted tree:
// RollbackEtc then makes a reset of it, and the two others go on with that.

// unfinished returns the transaction of a request if it has to be rolled back; nil if not.
func (m *Machine) unfinished(request string) (*state.Transaction, error) {
	t, err := m.transaction()
	if err != nil || t == nil || t.Request != request || t.Committed {
		return nil, err
	}
	return t, nil
}

// RollbackEtc takes back what the transaction has done to /etc.
func (m *Machine) RollbackEtc(ctx context.Context, request string) error {
	t, err := m.unfinished(request)
	if errors.Is(err, state.ErrDamaged) {
		return m.resetInstead(ctx, request, nil, err)
	}
	if err != nil || t == nil || !t.Switched { // before the switch, nothing in /etc is changed
		return err
	}
	err = m.rollbackEtc(ctx, t)
	if errors.Is(err, etcmerge.ErrDamaged) {
		return m.resetInstead(ctx, request, t, err)
	}
	return err
}

func (m *Machine) rollbackEtc(ctx context.Context, t *state.Transaction) error {
	storage, err := m.openStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	return storage.withoutOverlays(ctx, func(bool) error {
		status("taking back the changes of /etc")
		result, err := etcmerge.Rollback(ctx, storage.etcDirs())
		if err != nil {
			return err
		}
		logKept(t, "/etc", result.Kept)
		return nil
	})
}

// resetInstead makes a reset of a rollback. t is the transaction, nil if that is not known.
func (m *Machine) resetInstead(ctx context.Context, request string, t *state.Transaction, why error) error {
	warn("%v; going back to the booted tree instead", why)
	if t == nil {
		var err error
		if t, err = m.State.Claim(ctx, state.ResetRequest, func(*state.Transaction) {}); err != nil {
			return err
		}
	}
	t.Request, t.RequestedBy = state.ResetRequest, services.RollbackUnit(request)
	return m.resetEtc(ctx, t)
}

// isResetInstead tells whether the rollback of a request has become a reset.
func (m *Machine) isResetInstead(request string) (bool, error) {
	t, err := m.transaction()
	return err == nil && t != nil && t.Request == state.ResetRequest && t.RequestedBy == services.RollbackUnit(request), err
}

// RollbackMount switches /usr back to what was live before. It runs in the host's mount namespace.
func (m *Machine) RollbackMount(ctx context.Context, request string) error {
	if reset, err := m.isResetInstead(request); err != nil {
		return err
	} else if reset {
		return m.ResetMount(ctx, request)
	}
	t, err := m.unfinished(request)
	if err != nil || t == nil || !t.Switched {
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

// RollbackRecord drops what prepare has made, and tells why.
func (m *Machine) RollbackRecord(ctx context.Context, request string) error {
	outcome, err := m.failure(request)
	if err != nil {
		return err
	}
	if reset, err := m.isResetInstead(request); err != nil {
		return err
	} else if reset {
		return errors.Join(m.State.SetOutcome(request, *outcome), m.resetRecord(ctx, outcome.Reason))
	}
	t, err := m.transaction()
	if err != nil {
		return err
	}
	if t == nil || t.Request != request {
		// It failed before it was its turn, or another one is under way.
		err := errors.Join(m.State.SetOutcome(request, *outcome), m.State.ClearClaim(), m.dropRequest(request))
		if outcome.Result == state.Applied { // record failed when all was done
			err = errors.Join(err, services.RestartLive(ctx))
		}
		return err
	}
	storage, err := m.openStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	if t.Committed {
		if err := storage.complete(t); err != nil {
			return err
		}
		return services.RestartLive(ctx) // as record's success would have
	}
	return storage.rolledBack(ctx, t, *outcome)
}

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
		if err := m.restage(ctx, t.Staged.Deployed, t.Staged.Replaced); err != nil {
			return err
		}
		if err := m.State.WriteStaging(t.Staged.Staging); err != nil {
			return err
		}
	}
	if t.HasBegun("record") || t.Partial != nil {
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
	if err := m.dropRequest(requested(t)); err != nil {
		return err
	}
	announce(t, messageFailed, fmt.Sprintf("Commit %s was not applied (%s): %s", requested(t), outcome.Result, outcome.Reason),
		map[string]string{"LIVEAPPLY_RESULT": string(outcome.Result)})
	if err := m.State.AppendHistory(state.NewEntry(t, outcome.Result, outcome.Reason)); err != nil {
		return err
	}
	return m.conclude(t, outcome)
}

// dropRequest removes what was asked for with an application that failed, so that it does not count for the next one.
func (m *Machine) dropRequest(name string) error {
	commit, err := ostree.ParseChecksum(name)
	if err != nil {
		return nil // a ref: requests are for commits
	}
	return m.State.RemoveRequest(commit)
}

// reloadAfterSwitchBack reloads what the services phase has, or would have.
func (s *storage) reloadAfterSwitchBack(ctx context.Context, t *state.Transaction) error {
	if _, err := os.Lstat(s.layerDir(t.Live)); errors.Is(err, os.ErrNotExist) {
		return nil // dropped by a rollback that was killed after this
	}
	return services.Reload(ctx, s.machine.reloadOf(t.Live), t.Step)
}

// failure says how a request failed. A phase that was killed could not say why.
func (m *Machine) failure(request string) (*state.Outcome, error) {
	outcome, err := m.State.Outcome(request)
	if err != nil || outcome != nil {
		return outcome, err
	}
	t, err := m.transaction()
	if err != nil && !errors.Is(err, state.ErrDamaged) {
		return nil, err
	}
	outcome = &state.Outcome{Result: state.RolledBack, Reason: "a phase was killed; see systemctl status 'liveapply-*'"}
	if t == nil || t.Request != request || len(t.Phases) == 0 {
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
	result := state.RolledBack
	if phase == "prepare" {
		result = state.Refused
	}
	return m.State.SetOutcome(request, state.Outcome{Result: result, Reason: reason.Error(), Phase: phase})
}

// requested names what a transaction was to apply: the commit, if prepare came to know it.
func requested(t *state.Transaction) string {
	if t.Target.IsZero() {
		return t.Request
	}
	return t.Target.String()
}
