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
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/state"
)

// EtcRevert takes all changes of /etc back when the machine shuts down, before libostree merges /etc into the staged
// deployment. The transaction, if one is under way, has been stopped by then.
func (m *Machine) EtcRevert(ctx context.Context, _ string) error {
	storage, err := m.openStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	// Also what ends a transaction stops the unit that runs this, and has the lock.
	if !storage.hasChangesOfEtc() {
		return nil
	}
	if err := m.acquire(ctx); err != nil {
		return err
	}
	if err := m.noteStaged(); err != nil {
		warn("%v", err)
	}
	storage.settleDeploymentsOrTell(ctx)
	// Each is tried, whatever the other does. An overlay's file does not belong into the next deployment, either: it is put there when that is booted.
	overlays, overlaysErr := storage.takeBackOverlays(ctx)
	live, liveErr := storage.takeBackLive(ctx)
	if err := errors.Join(overlaysErr, liveErr); err != nil {
		return err
	}
	logKept(&state.Transaction{Target: m.Booted.Commit}, "/etc", slices.Concat(overlays.Kept, live.Kept))
	return storage.leaveEtcToStaged()
}

// takeBackOverlays takes back what comes from overlays.
func (s *storage) takeBackOverlays(ctx context.Context) (*etcmerge.Result, error) {
	result, err := etcmerge.Put(ctx, s.overlayEtcDirs(), nil)
	if errors.Is(err, etcmerge.ErrDamaged) {
		warn("%v", err)
		return &etcmerge.Result{}, nil
	}
	return result, err
}

// takeBackEtc makes /etc what it was before the first application, but for what was changed locally since. Without a journal that can
// be read it goes by the defaults.
func (m *Machine) takeBackEtc(ctx context.Context, t *state.Transaction) (*etcmerge.Result, error) {
	storage, err := m.openStorage()
	if err != nil {
		return nil, err
	}
	defer storage.Close()
	var result *etcmerge.Result
	err = storage.withoutOverlays(ctx, func(bool) (err error) {
		result, err = storage.takeBackLive(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	logKept(t, "/etc", result.Kept)
	return result, nil
}

// takeBackLive takes back what comes from commits.
func (s *storage) takeBackLive(ctx context.Context) (*etcmerge.Result, error) {
	status("taking back the changes of /etc")
	result, err := etcmerge.Reset(ctx, s.etcDirs())
	if errors.Is(err, etcmerge.ErrDamaged) {
		if err = s.abandonJournal(err); err == nil {
			result = &etcmerge.Result{}
		}
	}
	if err == nil && s.isJournalAbandoned() {
		result, err = s.takeBackByDefaults(ctx)
	}
	return result, err
}

// abandonedJournal is where a damaged journal goes, beside its place, until /etc has been taken back without it: by that name, a way back
// that was interrupted is known.
func (s *storage) abandonedJournal() string { return s.etcDirs().Store + damagedSuffix }

const damagedSuffix = ".damaged"

func (s *storage) isJournalAbandoned() bool {
	_, err := os.Lstat(s.abandonedJournal())
	return err == nil
}

// abandonJournal puts a damaged journal aside; if it was made while there was one aside, it goes.
func (s *storage) abandonJournal(damage error) error {
	warn("%v", damage)
	if s.isJournalAbandoned() {
		return beneath.Remove(s.etcDirs().Store)
	}
	if err := os.Rename(s.etcDirs().Store, s.abandonedJournal()); err != nil {
		return fmt.Errorf("putting the damaged journal aside: %w", err)
	}
	return nil
}

// takeBackByDefaults is the way back without a journal: what /etc has just as the defaults of a live commit have it becomes what the booted
// commit's have. Accounts that systemd-sysusers has made stay.
func (s *storage) takeBackByDefaults(ctx context.Context) (*etcmerge.Result, error) {
	warn("taking /etc back by the defaults of the commits; accounts that were made for them stay")
	if err := s.openRepo(); err != nil {
		return nil, err
	}
	commits, err := s.livedCommits()
	if err != nil {
		return nil, err
	}
	booted, err := s.tree(s.machine.Booted.Commit, etcTree)
	if err != nil {
		return nil, err
	}
	all := &etcmerge.Result{}
	for _, commit := range commits {
		defaults, err := s.tree(commit, etcTree)
		if err != nil {
			return nil, fmt.Errorf("%w; compare /etc with /usr/etc (ostree admin config-diff), copy back what is needed, and remove %s", err, s.etcDirs().StoreName+damagedSuffix)
		}
		plan, err := etcmerge.MakePlan(ctx, s.Repo, defaults, booted, s.etcDirs())
		if err != nil {
			return nil, err
		}
		result, err := etcmerge.Apply(ctx, s.Repo, plan, s.etcDirs(), nil)
		if err != nil {
			return nil, err
		}
		all.Restored = append(all.Restored, result.Changed...)
		all.Kept = append(all.Kept, result.Kept...)
		// Nobody wants to take that back: from here on it is as it was before.
		if err := etcmerge.Fold(s.etcDirs()); err != nil {
			return nil, err
		}
		if err := beneath.Remove(s.etcDirs().Store); err != nil {
			return nil, err
		}
	}
	return all, beneath.Remove(s.abandonedJournal())
}

// livedCommits are those whose defaults may be in /etc: a layer is there of each.
func (s *storage) livedCommits() ([]ostree.Checksum, error) {
	layers, err := os.ReadDir(s.layersDir())
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
