package phase

import (
	"context"
	"errors"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
)

// Reset goes back to the booted tree, in the reverse order of the phases. It is a transaction like any other, and waits for the one under way. Once
// begun, it does not stop before its end; killed, it can be run again.
func (m *Machine) Reset(ctx context.Context, _ string) error {
	t, err := m.claim(ctx, services.ResetUnit, state.ResetRequest)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	c, err := m.takeRequest(ctx, services.ResetUnit)
	if err != nil {
		warn("it is not known who asked for the reset: %v", err) // it does not depend on that
	} else {
		t.RequestedBy = c.RequestedBy
	}
	// Before anything is taken back: what is in /etc belongs to what /usr shows.
	if err := m.checkBooted(); err != nil {
		if len(t.Phases) == 0 {
			err = errors.Join(err, m.release(ctx, t))
		}
		return err
	}
	return m.reset(ctx, t, c, "")
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

// reset takes back what all transactions have done, and drops all that belonged to the live tree. c says what is done to services; nil if that is
// not known.
func (m *Machine) reset(ctx context.Context, t *state.Transaction, c *config.Config, reason string) error {
	live, err := m.Live()
	if err != nil {
		return err
	}
	if live != m.Booted.Commit || t.From.IsZero() { // else, it goes on with what it has begun
		t.From = live
	}
	t.Target, t.Live = m.Booted.Commit, m.Booted.Commit
	if err := m.begin(t, "etc"); err != nil {
		return err
	}
	if _, err := m.takeBackEtc(ctx, t); err != nil {
		return err
	}
	if err := m.end(t); err != nil {
		return err
	}
	if err := m.begin(t, "mount"); err != nil {
		return err
	}
	status("switching /usr back")
	if err := t.Step(state.SwitchStep, func() error { return m.switchBack(m.Booted.Commit, nil) }); err != nil {
		return err
	}
	if err := m.end(t); err != nil {
		return err
	}
	if err := m.begin(t, "record"); err != nil {
		return err
	}
	return m.endReset(ctx, t, c, reason)
}

func (m *Machine) endReset(ctx context.Context, t *state.Transaction, c *config.Config, reason string) error {
	storage, err := m.openStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	status("reloading")
	if err := storage.reloadAfterReset(ctx, t); err != nil {
		return err
	}
	m.settleServices(ctx, t, c)
	if err := storage.stopLive(ctx); err != nil {
		return err
	}
	if err := storage.unstage(ctx); err != nil {
		return err
	}
	if err := storage.drop(); err != nil {
		return err
	}
	t.End()
	announce(t, messageReset, "The booted commit "+m.Booted.Commit.String()+" is live again", map[string]string{"LIVEAPPLY_RESULT": string(state.Reset)})
	m.writeHistory(state.NewEntry(t, state.Reset, reason))
	if err := m.State.RemoveStamp(m.Booted); err != nil {
		return err
	}
	return m.release(ctx, t)
}

// stopLive stops what is active while a tree is live. Overlays may still have files in /etc.
func (s *storage) stopLive(ctx context.Context) error {
	return services.StopLive(ctx, s.hasChangesOfEtc())
}

// hasChangesOfEtc tells whether there is anything in /etc to be taken back, or that may be.
func (s *storage) hasChangesOfEtc() bool {
	for _, dirs := range s.etcDirsOf(s.machine.Booted) {
		if pending, err := etcmerge.Pending(dirs); pending || err != nil {
			return true
		}
	}
	return s.isJournalAbandoned()
}

// unstage drops the staged deployment that is liveapply's own.
func (s *storage) unstage(ctx context.Context) error {
	m := s.machine
	own, err := m.staging()
	if err != nil {
		return err
	}
	if !own.Commit.IsZero() {
		if err := s.restage(ctx, own, own.Replaced); err != nil {
			return err
		}
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
