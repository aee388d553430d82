package phase

import (
	"context"
	"errors"

	"github.com/liveapply/liveapply/internal/deployments"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/overlay/follow"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
	"github.com/liveapply/liveapply/internal/transaction"
)

// Recover brings the machine to a state that an undisturbed transaction leaves, and does nothing where it is in one.
//
// At boot it removes what the last boot left: a live tree ends with the boot that it was applied in. After an orderly shutdown /etc has been
// taken back; after a power cut it is taken back here, before services read it. Later it makes a lost stamp again, and takes back
// what an interrupted transaction left.
func Recover(ctx context.Context, m *machine.Machine, _ string) error {
	if err := transaction.Acquire(ctx, m); err != nil {
		return err
	}
	t, err := m.UnderWay()
	if t != nil || errors.Is(err, state.ErrDamaged) {
		return queueRollback(ctx, m)
	}
	if err != nil {
		return err
	}
	storage, err := m.OpenStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	if storage.HasChangesOfEtc() { // after a power cut, too, if they are not taken back now
		if err := deployments.HoldStaged(m); err != nil {
			return err
		}
	}
	live, err := m.Live()
	if err != nil {
		return err
	}
	if live != m.Booted.Commit {
		return recoverLive(storage, live)
	}
	return recoverBooted(ctx, storage)
}

// queueRollback starts what takes a transaction back that nobody works on any more. It does not wait: a reset comes after recover, and needs the lock.
func queueRollback(ctx context.Context, m *machine.Machine) error {
	unit, err := transaction.Interrupted(ctx, m)
	if err != nil || unit == "" {
		return err
	}
	report.Warn("a transaction was interrupted: starting %s", unit)
	return systemd.With(ctx, func(manager *systemd.Manager) error { return manager.Queue(ctx, unit) })
}

// recoverLive makes what there is besides a live tree fit it.
func recoverLive(s *machine.Storage, live ostree.Checksum) error {
	m := s.Machine
	if stamp, err := m.State.Stamp(m.Booted); stamp == nil || stamp.Live != live {
		if err != nil {
			report.Warn("%v", err)
		}
		report.Warn("making the stamp of commit %s again", live)
		if stamp, err = m.RemakeStamp(); err != nil {
			return err
		}
		if err := m.State.WriteStamp(m.Booted, stamp); err != nil {
			return err
		}
	}
	if err := s.SetLiveRef(live); err != nil {
		return err
	}
	return s.DropLayers(live)
}

// recoverBooted removes whatever belonged to a tree that is not live any more.
func recoverBooted(ctx context.Context, s *machine.Storage) error {
	m := s.Machine
	deployments.SettleOthers(ctx, s)
	result := &etcmerge.Result{}
	if !isEtcRecovered(s) {
		var err error
		if result, err = takeBackEtc(ctx, m, &state.Transaction{Target: m.Booted.Commit, Live: m.Booted.Commit}); err != nil {
			return err
		}
	}
	var reload impact.Reload
	for _, path := range result.Restored {
		reload = reload.Union(impact.ReloadFor("etc/" + path))
	}
	// systemd has read its units before.
	if err := services.Reload(ctx, reload, func(_ string, do func() error) error { return do() }); err != nil {
		return err
	}
	if err := m.State.RemoveStamp(m.Booted); err != nil {
		return err
	}
	if err := s.DropAll(); err != nil {
		return err
	}
	return deployments.LeaveEtcToStaged(s)
}

// isEtcRecovered tells whether there is nothing to be taken back in /etc: overlays have been put there in this boot, and no commit has anything there.
// Their files need not step aside then, while services that start may read them.
func isEtcRecovered(s *machine.Storage) bool {
	pending, err := etcmerge.Pending(s.EtcDirs())
	return follow.IsFollowed(s.Machine) && !s.IsJournalAbandoned() && !pending && err == nil
}
