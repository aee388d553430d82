package phase

import (
	"context"
	"errors"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
	"github.com/liveapply/liveapply/internal/transaction"
)

// Reset goes back to the booted tree, in the reverse order of the phases. It is a transaction like any other, and waits for the one under way. Once
// begun, it does not stop before its end; killed, it can be run again.
func Reset(ctx context.Context, m *machine.Machine, _ string) error {
	t, err := transaction.Claim(ctx, m, systemd.ResetUnit, state.ResetRequest)
	if err != nil {
		return err
	}
	ctx = lasting(ctx)
	c, err := transaction.TakeRequest(ctx, m, systemd.ResetUnit)
	if err != nil {
		report.Warn("it is not known who asked for the reset: %v", err) // it does not depend on that
	} else {
		t.RequestedBy = c.RequestedBy
	}
	// Before anything is taken back: what is in /etc belongs to what /usr shows.
	if err := checkBooted(m); err != nil {
		if len(t.Phases) == 0 {
			err = errors.Join(err, transaction.Release(ctx, m, t))
		}
		return err
	}
	return reset(ctx, m, t, c, "")
}

// checkBooted tells what is in the way of the booted tree. Mounts are, where no overlay is on it.
func checkBooted(m *machine.Machine) error {
	if _, err := m.InspectToSwitch(); err != nil {
		return err
	}
	if overlays, err := m.EnabledOverlays(); err != nil || len(overlays) > 0 {
		return nil // see switchBack
	}
	return m.Usr.CheckDetach()
}

// reset takes back what all transactions have done, and drops all that belonged to the live tree. c says what is done to services; nil if that is
// not known.
func reset(ctx context.Context, m *machine.Machine, t *state.Transaction, c *config.Config, reason string) error {
	live, err := m.Live()
	if err != nil {
		return err
	}
	if live != m.Booted.Commit || t.From.IsZero() { // else, it goes on with what it has begun
		t.From = live
	}
	t.Target, t.Live = m.Booted.Commit, m.Booted.Commit
	if err := transaction.Begin(m, t, "etc"); err != nil {
		return err
	}
	result, err := takeBackEtc(ctx, m, t)
	if err != nil {
		return err
	}
	t.EtcRestored = append(t.EtcRestored, result.Restored...) // by one that was killed, too
	if err := transaction.End(m, t); err != nil {
		return err
	}
	if err := transaction.Begin(m, t, "mount"); err != nil {
		return err
	}
	report.Status("switching /usr back")
	if err := t.Step(state.SwitchStep, func() error { return switchBack(m, m.Booted.Commit, nil) }); err != nil {
		return err
	}
	if err := transaction.End(m, t); err != nil {
		return err
	}
	if err := transaction.Begin(m, t, "record"); err != nil {
		return err
	}
	return endReset(ctx, m, t, c, reason)
}

func endReset(ctx context.Context, m *machine.Machine, t *state.Transaction, c *config.Config, reason string) error {
	storage, err := m.OpenStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	report.Status("reloading")
	if err := reloadAfterReset(ctx, storage, t); err != nil {
		return err
	}
	settleServices(ctx, m, t, c)
	if err := m.State.ForgetStoppedUnits(); err != nil {
		return err
	}
	if err := stopLive(ctx, storage); err != nil {
		return err
	}
	if err := unstage(ctx, storage); err != nil {
		return err
	}
	if err := drop(storage); err != nil {
		return err
	}
	t.End()
	report.Announce(t, report.MessageReset, "The booted commit "+m.Booted.Commit.String()+" is live again", map[string]string{"LIVEAPPLY_RESULT": string(state.Reset)})
	transaction.WriteHistory(m, state.NewEntry(t, state.Reset, reason))
	if err := m.State.RemoveStamp(m.Booted); err != nil {
		return err
	}
	return transaction.Release(ctx, m, t)
}

// stopLive stops what is active while a tree is live. Overlays may still have files in /etc.
func stopLive(ctx context.Context, s *machine.Storage) error {
	return systemd.StopLive(ctx, askedToStop(ctx), s.HasChangesOfEtc())
}

// lasting is a context for what does not stop before its end.
func lasting(ctx context.Context) context.Context {
	return context.WithValue(context.WithoutCancel(ctx), asked{}, ctx)
}

type asked struct{}

// askedToStop is done when a process that goes on all the same was asked to stop, by systemd at shutdown for example.
func askedToStop(ctx context.Context) context.Context {
	if asked, lasts := ctx.Value(asked{}).(context.Context); lasts {
		return asked
	}
	return ctx
}

// unstage drops the staged deployment that is liveapply's own.
func unstage(ctx context.Context, s *machine.Storage) error {
	m := s.Machine
	own, err := m.Staging()
	if err != nil {
		return err
	}
	if !own.Commit.IsZero() {
		if err := s.Restage(ctx, own, own.Replaced); err != nil {
			return err
		}
	}
	return m.State.WriteStaging(state.Staging{})
}

// reloadAfterReset reloads what has read files of the tree that went.
func reloadAfterReset(ctx context.Context, s *machine.Storage, t *state.Transaction) error {
	if t.From == s.Machine.Booted.Commit {
		return nil
	}
	return services.Reload(ctx, s.Machine.ReloadOf(t.From), t.Step)
}

// drop removes all that is kept for the booted deployment, but for what an overlay is still mounted from, and a journal with
// changes of /etc that are not taken back.
func drop(s *machine.Storage) error {
	if err := s.SetLiveRef(s.Machine.Booted.Commit); err != nil {
		return err
	}
	if err := s.DropLayers(ostree.Checksum{}); err != nil {
		return err
	}
	return s.Tidy()
}
