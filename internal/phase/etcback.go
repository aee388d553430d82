package phase

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/deployments"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/overlay/follow"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/transaction"
)

// EtcRevert takes all changes of /etc back when the machine shuts down, before libostree merges /etc into the staged
// deployment. The transaction, if one is under way, has been stopped by then.
func EtcRevert(ctx context.Context, m *machine.Machine, _ string) error {
	storage, err := m.OpenStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	if !storage.HasChangesOfEtc() {
		// Who stops the unit that runs this to end a transaction has the lock, and does this then; or was killed meanwhile.
		if isFree, err := transaction.TryAcquire(m); err != nil || !isFree {
			return err
		}
		return deployments.LeaveEtcToStaged(storage)
	}
	if err := transaction.Acquire(ctx, m); err != nil {
		return err
	}
	if err := deployments.NoteStaged(m); err != nil {
		report.Warn("%v", err)
	}
	// However long that takes, within the limit of the unit: else, nothing is finalized, and the next boot does it.
	lock, err := ostree.LockSysroot(ctx, storage.Root(), func() { report.Status("waiting for libostree's lock of the sysroot") })
	if err != nil {
		return err
	}
	defer lock.Close()
	// If that fails, the journals stay for the next boot, which tries once more.
	if err := deployments.Settle(ctx, storage, m.Booted); err != nil {
		return err
	}
	// Each is tried, whatever the other does. An overlay's file does not belong into the next deployment, either: it is put there when that is booted.
	overlays, overlaysErr := takeBackOverlays(ctx, storage)
	live, liveErr := takeBackLive(ctx, storage)
	if err := errors.Join(overlaysErr, liveErr); err != nil {
		return err
	}
	report.Kept(&state.Transaction{Target: m.Booted.Commit}, "/etc", slices.Concat(overlays.Kept, live.Kept))
	return deployments.LeaveEtcToStaged(storage)
}

// takeBackOverlays takes back what comes from overlays.
func takeBackOverlays(ctx context.Context, s *machine.Storage) (*etcmerge.Result, error) {
	result, err := etcmerge.Put(ctx, s.OverlayEtcDirs(), nil)
	if errors.Is(err, etcmerge.ErrDamaged) {
		report.Warn("%v", err)
		return &etcmerge.Result{}, nil
	}
	return result, err
}

// takeBackEtc makes /etc what it was before the first application, but for what was changed locally since. Without a journal that can
// be read it goes by the defaults.
func takeBackEtc(ctx context.Context, m *machine.Machine, t *state.Transaction) (*etcmerge.Result, error) {
	storage, err := m.OpenStorage()
	if err != nil {
		return nil, err
	}
	defer storage.Close()
	var result *etcmerge.Result
	err = follow.WithoutOverlays(ctx, storage, func(bool) (err error) {
		result, err = takeBackLive(ctx, storage)
		return err
	})
	if err != nil {
		return nil, err
	}
	report.Kept(t, "/etc", result.Kept)
	return result, nil
}

// takeBackLive takes back what comes from commits.
func takeBackLive(ctx context.Context, s *machine.Storage) (*etcmerge.Result, error) {
	report.Status("taking back the changes of /etc")
	result, err := etcmerge.Reset(ctx, s.EtcDirs())
	if errors.Is(err, etcmerge.ErrDamaged) {
		if err = abandonJournal(s, err); err == nil {
			result = &etcmerge.Result{}
		}
	}
	if err == nil && s.IsJournalAbandoned() {
		result, err = takeBackByDefaults(ctx, s)
	}
	return result, err
}

// abandonJournal puts a damaged journal aside; if it was made while there was one aside, it goes.
func abandonJournal(s *machine.Storage, damage error) error {
	report.Warn("%v", damage)
	if s.IsJournalAbandoned() {
		return beneath.Remove(s.EtcDirs().Store)
	}
	if err := os.Rename(s.EtcDirs().Store, s.AbandonedJournal()); err != nil {
		return fmt.Errorf("putting the damaged journal aside: %w", err)
	}
	return nil
}

// takeBackByDefaults is the way back without a journal: what /etc has just as the defaults of a live commit have it becomes what the booted
// commit's have. Accounts that systemd-sysusers has made stay.
func takeBackByDefaults(ctx context.Context, s *machine.Storage) (*etcmerge.Result, error) {
	report.Warn("taking /etc back by the defaults of the commits; accounts that were made for them stay")
	if err := s.OpenRepo(); err != nil {
		return nil, err
	}
	commits, err := livedCommits(s)
	if err != nil {
		return nil, err
	}
	booted, err := s.Tree(s.Machine.Booted.Commit, machine.EtcTree)
	if err != nil {
		return nil, err
	}
	all := &etcmerge.Result{}
	for _, commit := range commits {
		defaults, err := s.Tree(commit, machine.EtcTree)
		if err != nil {
			return nil, fmt.Errorf("%w; compare /etc with /usr/etc (ostree admin config-diff), copy back what is needed, and remove %s", err, s.EtcDirs().StoreName+machine.DamagedSuffix)
		}
		plan, err := etcmerge.MakePlan(ctx, s.Repo, defaults, booted, s.EtcDirs())
		if err != nil {
			return nil, err
		}
		result, err := etcmerge.Apply(ctx, s.Repo, plan, s.EtcDirs(), nil)
		if err != nil {
			return nil, err
		}
		all.Restored = append(all.Restored, result.Changed...)
		all.Kept = append(all.Kept, result.Kept...)
		// Nobody wants to take that back: from here on it is as it was before.
		if err := etcmerge.Fold(s.EtcDirs()); err != nil {
			return nil, err
		}
		if err := beneath.Remove(s.EtcDirs().Store); err != nil {
			return nil, err
		}
	}
	return all, beneath.Remove(s.AbandonedJournal())
}

// livedCommits are those whose defaults may be in /etc: a layer is there of each.
func livedCommits(s *machine.Storage) ([]ostree.Checksum, error) {
	layers, err := os.ReadDir(s.LayersDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("looking for what was live: %w", err)
	}
	var commits []ostree.Checksum
	for _, entry := range layers {
		commit, err := ostree.ParseChecksum(strings.TrimSuffix(entry.Name(), ".new"))
		if err == nil && !slices.Contains(commits, commit) {
			commits = append(commits, commit)
		}
	}
	return commits, nil
}

// Deployments settles what was deployed.
func Deployments(ctx context.Context, m *machine.Machine, _ string) error {
	// It is libostree that has touched /ostree/deploy, and not come to its end yet.
	if err := awaitLibostree(ctx, m); err != nil {
		return err
	}
	if err := transaction.Acquire(ctx, m); err != nil {
		return err
	}
	storage, err := m.OpenStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	defer deployments.HoldOff(ctx, storage)()
	return deployments.Settle(ctx, storage, m.Booted)
}
