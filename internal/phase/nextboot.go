package phase

import (
	"context"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
)

// ensureNextBoot makes the next boot lead to the target, unless the application is to be transient, or is of what somebody else has staged: if that is not
// staged any more, something else is wanted meanwhile.
func (p *preparation) ensureNextBoot(ctx context.Context) error {
	if p.plan.Transient || p.config.LeaveStaged {
		return nil
	}
	// Whoever is about to stage something has done so when it is looked at.
	lock, err := p.storage.LockSysroot(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	next, err := p.machine.NextBoot()
	target := p.plan.NextBoot()
	if err != nil || next.Commit == target {
		return err
	}
	before, err := p.machine.Staging()
	if err != nil {
		return err
	}
	// What happens is noted first, so that a kill in between leaves no deployment that nobody owns.
	staging := state.Staging{Commit: target, Replaced: before.Replaced}
	p.transaction.Staged = &state.StagedBefore{Deployed: target, Staging: before}
	if next.Staged {
		if p.transaction.Staged.Replaced, err = p.machine.DescribeStaged(next); err != nil {
			return err
		}
		if !before.IsOwn(p.transaction.Staged.Replaced) {
			staging.Replaced = p.transaction.Staged.Replaced
		}
	}
	if err := p.machine.Lock.Write(p.transaction); err != nil {
		return err
	}
	if err := p.machine.State.WriteStaging(staging); err != nil {
		return err
	}
	report.Status("staging a deployment of the target")
	// It follows the same origin as the booted one, as an upgrade would.
	origin, err := machine.ReadOrigin(p.machine.Booted)
	if err != nil {
		return err
	}
	deployment := state.StagedDeployment{Commit: target, Origin: ostree.WithoutTransientState(origin)}
	lock.Close() // ostree takes it itself
	if err := p.transaction.Step("stage a deployment", func() error { return p.machine.Stage(ctx, deployment) }); err != nil {
		return err
	}
	return p.machine.NoteOwn(staging)
}
