package phase

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
)

// Recover brings the machine to a state that an undisturbed transaction leaves, and does nothing where it is in one.
//
// At boot it removes what the last boot left: a live tree ends with the boot that it was applied in. After an orderly shutdown /etc has been
// taken back; after a power cut it is taken back here, before services read it. Later it makes a lost stamp again, and takes back
// what an interrupted transaction left.
func (m *Machine) Recover(ctx context.Context, _ string) error {
	if err := m.acquire(ctx); err != nil {
		return err
	}
	t, err := m.transaction()
	if t != nil || errors.Is(err, state.ErrDamaged) {
		return m.queueRollback(ctx)
	}
	if err != nil {
		return err
	}
	storage, err := m.openStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	if storage.hasChangesOfEtc() { // after a power cut, too, if they are not taken back now
		if err := m.holdStaged(); err != nil {
			return err
		}
	}
	live, err := m.Live()
	if err != nil {
		return err
	}
	if live != m.Booted.Commit {
		return storage.recoverLive(live)
	}
	return storage.recoverBooted(ctx)
}

// queueRollback starts what takes a transaction back that nobody works on any more. It does not wait: a reset comes after recover, and needs the lock.
func (m *Machine) queueRollback(ctx context.Context) error {
	unit, err := m.place().Interrupted(ctx)
	if err != nil || unit == "" {
		return err
	}
	warn("a transaction was interrupted: starting %s", unit)
	return services.With(ctx, func(systemd *services.Systemd) error { return systemd.Queue(ctx, unit) })
}

// recoverLive makes what there is besides a live tree fit it.
func (s *storage) recoverLive(live ostree.Checksum) error {
	m := s.machine
	if stamp, err := m.State.Stamp(m.Booted); stamp == nil || stamp.Live != live {
		if err != nil {
			warn("%v", err)
		}
		warn("making the stamp of commit %s again", live)
		if stamp, err = m.remakeStamp(); err != nil {
			return err
		}
		if err := m.State.WriteStamp(m.Booted, stamp); err != nil {
			return err
		}
	}
	if err := s.setLiveRef(live); err != nil {
		return err
	}
	return s.dropLayers(live)
}

// recoverBooted removes whatever belonged to a tree that is not live any more.
func (s *storage) recoverBooted(ctx context.Context) error {
	m := s.machine
	s.settleOthers(ctx)
	result := &etcmerge.Result{}
	if !s.isEtcRecovered() {
		var err error
		if result, err = m.takeBackEtc(ctx, &state.Transaction{Target: m.Booted.Commit, Live: m.Booted.Commit}); err != nil {
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
	if err := s.dropAll(); err != nil {
		return err
	}
	return s.leaveEtcToStaged()
}

// isEtcRecovered tells whether there is nothing to be taken back in /etc: overlays have been put there in this boot, and no commit has anything there.
// Their files need not step aside then, while services that start may read them.
func (s *storage) isEtcRecovered() bool {
	_, isShown := s.machine.followed()
	_, noAside := os.Lstat(s.machine.asidePath())
	pending, err := etcmerge.Pending(s.etcDirs())
	return isShown && noAside != nil && !s.isJournalAbandoned() && !pending && err == nil
}

// dropAll removes what liveapply keeps for any deployment. Only the journal of /etc outlives that, for a deployment that lost power
// while its /etc was changed and was not booted since: it is taken back when it is.
func (s *storage) dropAll() error {
	if err := s.setLiveRef(s.machine.Booted.Commit); err != nil {
		return err
	}
	deployments, err := s.machine.Sysroot.Deployments()
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, deployment := range deployments {
		kept[deployment.BackingPath()] = true
	}
	root := s.root()
	dirs, err := filepath.Glob(filepath.Join(root, "ostree/deploy/*/backing/*/liveapply"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		backing, err := filepath.Rel(root, filepath.Dir(dir))
		if err != nil {
			return err
		}
		leftovers := []string{dir}
		if kept[backing] {
			leftovers = []string{filepath.Join(dir, layersName), filepath.Join(dir, ownName), filepath.Join(dir, ownEtcName)}
		}
		for _, leftover := range leftovers {
			if err := beneath.Remove(leftover); err != nil {
				return err
			}
		}
		if err := removeEmpty(dir, filepath.Dir(dir)); err != nil {
			return err
		}
	}
	return s.tidy()
}
