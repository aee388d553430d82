package phase

import (
	"github.com/liveapply/liveapply/internal/partial"
)

// partialRef keeps a commit that was made here from being pruned until it is live.
const partialRef = "liveapply/partial"

// takePart finds out what is to be live: the target, or the commit that has of it what is wanted.
func (p *preparation) takePart() error {
	target, err := p.Repo.Commit(p.plan.Target)
	if err != nil {
		return err
	}
	p.plan.Live = p.plan.Target
	if wanted := p.wanted(); !wanted.IsWhole() {
		booted, err := p.Repo.Commit(p.plan.Booted)
		if err != nil {
			return err
		}
		status("taking packages out of the target")
		if p.plan.Live, err = partial.Draft(p.Repo, booted, target, p.config.PackageDatabase, wanted); err != nil {
			return err
		}
		if target, err = p.Repo.Commit(p.plan.Live); err != nil {
			return err
		}
	}
	p.plan.Partial, err = partial.Of(target)
	return err
}

func (p *preparation) wanted() partial.Wanted {
	return partial.Wanted{Packages: p.config.Packages, Exclude: p.config.Exclude}
}

// keepPart puts the commit that takePart has made into the repo. That is noted first, so that the ref does not outlive a kill.
func (p *preparation) keepPart() error {
	if !p.Repo.IsDraft(p.plan.Live) {
		return nil
	}
	if err := p.lock.Write(p.transaction); err != nil {
		return err
	}
	if err := p.Repo.WriteDrafts(); err != nil {
		return err
	}
	return p.Repo.SetRef(partialRef, p.plan.Live)
}
