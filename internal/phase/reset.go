package phase

import (
	"context"
	"errors"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
)

// A reset goes back to the booted tree, in the reverse order of the phases: ResetEtc, ResetMount, ResetRecord. It is a
// transaction like any other, and waits for the one under way.

// ResetEtc takes back what all transactions have done to /etc.
func (m *Machine) ResetEtc(ctx context.Context, _ string) error {
	// Before anything is taken back: what is in /etc belongs to what /usr shows.
	if err := m.checkBooted(); err != nil {
		return errors.Join(err, m.State.RemoveResetRequest())
	}
	t, err := m.claim(ctx, state.ResetRequest)
	if err != nil {
		return err
	}
	m.noteRequester(t)
	return m.resetEtc(ctx, t)
}

// checkBooted tells what is in the way of the booted tree. Mounts are, where no overlay is on it.
func (m *Machine) checkBooted() error {
	if _, err := m.inspectToSwitch(); err != nil {
		return err
	}
	if overlays, err := m.enabled(); err != nil || len(overlays) > 0 {
		return nil // see switchBack
	}
	return m.Usr.CheckDetach()
}

// noteRequester says in the transaction of a reset who asked for it. A reset does not depend on that.
func (m *Machine) noteRequester(t *state.Transaction) {
	request, err := m.Config.Load(m.State.ResetRequestPath())
	if err != nil {
		warn("it is not known who asked for the reset: %v", err)
		return
	}
	t.RequestedBy = request.RequestedBy
}

func (m *Machine) resetEtc(ctx context.Context, t *state.Transaction) (err error) {
	if t.From, err = m.Live(); err != nil {
		return err
	}
	t.Target, t.Live = m.Booted.Commit, m.Booted.Commit
	if err := m.begin(t, "etc"); err != nil {
		return err
	}
	if _, err := m.takeBackEtc(ctx, t); err != nil {
		return err
	}
	return m.end(t)
}

// ResetMount detaches everything of ours from /usr. It runs in the host's mount namespace.
func (m *Machine) ResetMount(context.Context, string) error {
	t, err := m.State.Transaction()
	if err != nil || t == nil || t.Request != state.ResetRequest {
		return err
	}
	if err := m.begin(t, "mount"); err != nil {
		return err
	}
	status("switching /usr back")
	if err := t.Step(state.SwitchStep, func() error { return m.switchBack(m.Booted.Commit, nil) }); err != nil {
		return err
	}
	return m.end(t)
}

// ResetRecord drops all that belonged to the live tree.
func (m *Machine) ResetRecord(ctx context.Context, _ string) error { return m.resetRecord(ctx, "") }

func (m *Machine) resetRecord(ctx context.Context, reason string) error {
	t, err := m.State.Transaction()
	if err != nil || t == nil || t.Request != state.ResetRequest {
		return err
	}
	if err := m.begin(t, "record"); err != nil {
		return err
	}
	storage, err := m.openStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	status("reloading")
	if err := storage.reloadAfterReset(ctx, t); err != nil {
		return err
	}
	m.settleServices(ctx, t)
	if err := storage.stopLive(ctx); err != nil {
		return err
	}
	if err := m.unstage(ctx); err != nil {
		return err
	}
	if err := storage.drop(); err != nil {
		return err
	}
	t.End()
	announce(t, messageReset, "The booted commit "+m.Booted.Commit.String()+" is live again", map[string]string{"LIVEAPPLY_RESULT": string(state.Reset)})
	if err := m.State.AppendHistory(state.NewEntry(t, state.Reset, reason)); err != nil {
		return err
	}
	if err := m.State.RemoveStamp(m.Booted); err != nil {
		return err
	}
	if err := m.State.RemoveResetRequest(); err != nil {
		return err
	}
	return m.release()
}

// stopLive stops what is active while a tree is live. Overlays may still have files in /etc.
func (s *storage) stopLive(ctx context.Context) error {
	overlays, err := etcmerge.Pending(s.overlayEtcDirs())
	if err != nil {
		warn("%v", err)
	}
	return services.StopLive(ctx, overlays || err != nil)
}

// unstage drops the staged deployment that is liveapply's own.
func (m *Machine) unstage(ctx context.Context) error {
	staging, err := m.staging()
	if err != nil {
		return err
	}
	if err := m.restage(ctx, staging.Commit, staging.Replaced); err != nil {
		return err
	}
	return m.State.WriteStaging(state.Staging{})
}

// reloadAfterReset reloads what has read files of the tree that went.
func (s *storage) reloadAfterReset(ctx context.Context, t *state.Transaction) error {
	if t.From == s.machine.Booted.Commit {
		return nil
	}
	return services.Reload(ctx, s.machine.reloadOf(t.From), t.Step)
}

// drop removes all that is kept for the booted deployment, but for what an overlay is still mounted from, and a journal with
// changes of /etc that are not taken back.
func (s *storage) drop() error {
	if err := s.setLiveRef(s.machine.Booted.Commit); err != nil {
		return err
	}
	if err := s.dropLayers(ostree.Checksum{}); err != nil {
		return err
	}
	return s.tidy()
}
