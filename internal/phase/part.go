package phase

import (
	"context"
	"os"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/partial"
	"github.com/liveapply/liveapply/internal/report"
)

// takePart finds out what is to be live: the target, or the commit that has of it what is wanted.
func (p *preparation) takePart() error {
	target, err := p.storage.Repo.Commit(p.plan.Target)
	if err != nil {
		return err
	}
	p.plan.Live = p.plan.Target
	if wanted := p.wanted(); !wanted.IsWhole() {
		booted, err := p.storage.Repo.Commit(p.plan.Booted)
		if err != nil {
			return err
		}
		report.Status("taking packages out of the target")
		if p.plan.Live, err = partial.Draft(p.storage.Repo, booted, target, p.config.PackageDatabase, wanted); err != nil {
			return err
		}
		if target, err = p.storage.Repo.Commit(p.plan.Live); err != nil {
			return err
		}
	}
	p.plan.Partial, err = partial.Of(target)
	return err
}

func (p *preparation) wanted() partial.Wanted {
	return partial.Wanted{Packages: p.config.Packages, Exclude: p.config.Exclude}
}

// keepTarget has what is about to be live stay in the repo, and puts it there first if it was made here: until the lock is closed by libostree's own lock, and
// then by the deployment that is staged, or by a ref. That is noted before, so that the ref does not outlive a kill.
func (p *preparation) keepTarget(ctx context.Context) (lock *os.File, err error) {
	if err := p.machine.Lock.Write(p.transaction); err != nil {
		return nil, err
	}
	if lock, err = p.storage.Repo.LockShared(ctx); err != nil {
		return nil, err
	}
	if p.storage.Repo.IsDraft(p.plan.Live) {
		err = p.storage.Repo.WriteDrafts()
	}
	if err == nil && (p.plan.Transient || p.config.LeaveStaged || p.plan.Live != p.plan.NextBoot()) {
		err = p.storage.Repo.SetRef(machine.NextRef, p.plan.Live)
	}
	return lock, err
}
