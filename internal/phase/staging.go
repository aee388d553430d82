package phase

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/state"
)

// ensureNextBoot makes the next boot lead to the target, unless the application is to be transient, or is of what somebody else has staged: if that is not
// staged any more, something else is wanted meanwhile.
func (p *preparation) ensureNextBoot(ctx context.Context) error {
	if p.plan.Transient || p.config.LeaveStaged {
		return nil
	}
	next, err := p.NextBoot()
	target := p.plan.NextBoot()
	if err != nil || next.Commit == target {
		return err
	}
	before, err := p.staging()
	if err != nil {
		return err
	}
	// What happens is noted first, so that a kill in between leaves no deployment that nobody owns.
	staging := state.Staging{Commit: target, Replaced: before.Replaced}
	p.transaction.Staged = &state.StagedBefore{Deployed: target, Staging: before}
	if next.Staged {
		if p.transaction.Staged.Replaced, err = p.describeStaged(next); err != nil {
			return err
		}
		if !before.IsOwn(p.transaction.Staged.Replaced) {
			staging.Replaced = p.transaction.Staged.Replaced
		}
	}
	if err := p.lock.Write(p.transaction); err != nil {
		return err
	}
	if err := p.State.WriteStaging(staging); err != nil {
		return err
	}
	status("staging a deployment of the target")
	// It follows the same origin as the booted one, as an upgrade would.
	origin, err := readOrigin(p.Booted)
	if err != nil {
		return err
	}
	deployment := state.StagedDeployment{Commit: target, Origin: ostree.WithoutTransientState(origin)}
	if err := p.transaction.Step("stage a deployment", func() error { return p.stage(ctx, deployment) }); err != nil {
		return err
	}
	return p.noteOwn(staging)
}

// noteOwn notes what libostree has made of what was staged: by that it is told from what others stage, of the same commit, too.
func (m *Machine) noteOwn(staging state.Staging) error {
	staged, found, err := m.Sysroot.Staged()
	if err != nil || !found || staged.Commit != staging.Commit {
		return err // somebody else has been quick
	}
	if staging.Staged, err = m.describeStaged(staged); err != nil {
		return err
	}
	return m.State.WriteStaging(staging)
}

// describeStaged tells what it takes to stage a deployment once more that is staged now.
func (m *Machine) describeStaged(staged ostree.Deployment) (state.StagedDeployment, error) {
	origin, err := readOrigin(staged)
	if err != nil {
		return state.StagedDeployment{}, err
	}
	args, err := m.Sysroot.StagedKernelArgs()
	return state.StagedDeployment{ID: staged.ID(), Commit: staged.Commit, Origin: origin, KernelArgs: args, Locked: staged.Locked}, err
}

// staging reads what liveapply has staged. If that is no longer known, what is staged is somebody else's, and stays.
func (m *Machine) staging() (state.Staging, error) {
	staging, err := m.State.Staging()
	if errors.Is(err, state.ErrDamaged) {
		warn("%v; a deployment that is staged now stays (ostree admin undeploy 0 drops it)", err)
		return state.Staging{}, nil
	}
	return staging, err
}

// readOrigin returns the content of a deployment's origin file, "" if it has none.
func readOrigin(deployment ostree.Deployment) (string, error) {
	content, err := os.ReadFile(filepath.Join(physicalRoot, deployment.Path()+".origin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading the origin of deployment %s: %w", deployment.ID(), err)
	}
	return string(content), nil
}

// stage stages a deployment.
func (m *Machine) stage(ctx context.Context, d state.StagedDeployment) error {
	args := []string{"admin", "deploy", "--stage", "--no-prune", "--os=" + m.Booted.OSName}
	if d.Locked {
		args = append(args, "--lock-finalization")
	}
	if d.KernelArgs != nil {
		args = append(args, "--karg-none")
	}
	for _, arg := range d.KernelArgs {
		args = append(args, "--karg-append="+arg)
	}
	if d.Origin != "" {
		path := filepath.Join(m.State.Run, scratchPrefix+"origin")
		if err := os.WriteFile(path, []byte(d.Origin), 0o600); err != nil {
			return fmt.Errorf("staging a deployment of commit %s: %w", d.Commit, err)
		}
		defer os.Remove(path)
		args = append(args, "--origin-file="+path)
	}
	if err := runOSTree(ctx, append(args, d.Commit.String())...); err != nil {
		return fmt.Errorf("staging a deployment of commit %s: %w", d.Commit, err)
	}
	return nil
}

// restage drops the staged deployment if it is liveapply's own, and stages theirs again, if there was one. A deployment that somebody else has staged since
// stays.
func (s *storage) restage(ctx context.Context, own state.Staging, theirs state.StagedDeployment) error {
	comesBack := false
	if !theirs.Commit.IsZero() {
		var err error
		if comesBack, err = s.machine.hasCommit(theirs.Commit); err != nil {
			return err
		}
		if !comesBack { // while it was not deployed, libostree did not keep it from being pruned
			warn("commit %s, which was staged before, is no longer in the repo: pull it, and stage it again (ostree admin deploy --stage)", theirs.Commit)
		}
	}
	isOwn, err := s.dropStaged(ctx, own, comesBack)
	switch {
	case err != nil || !isOwn:
		return err
	case comesBack:
		return s.machine.stage(ctx, theirs) // takes the place of ours
	}
	if err := runOSTree(ctx, "admin", "cleanup"); err != nil {
		return fmt.Errorf("dropping the staged deployment of commit %s: %w", own.Commit, err)
	}
	return nil
}

// dropStaged drops the staged deployment, unless another one is to take its place, if it is liveapply's own. That is looked at under libostree's lock, so that
// nobody stages something meanwhile.
func (s *storage) dropStaged(ctx context.Context, own state.Staging, replaced bool) (isOwn bool, err error) {
	lock, err := ostree.LockSysroot(ctx, s.root())
	if err != nil {
		return false, err
	}
	defer lock.Close()
	staged, found, err := s.machine.Sysroot.Staged()
	if err != nil || !found {
		return err == nil && !replaced, err // one that was dropped by a process that was killed then is to be cleaned up
	}
	description, err := s.machine.describeStaged(staged)
	if err != nil || !own.IsOwn(description) || replaced {
		return err == nil && own.IsOwn(description), err
	}
	return true, s.machine.Sysroot.DropStaged()
}

// runOSTree runs the ostree command.
func runOSTree(ctx context.Context, args ...string) error {
	output, err := exec.CommandContext(ctx, "ostree", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ostree %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}

// setLiveRef makes the ref name the live commit. With the booted one, which its deployment keeps, there is no ref.
func (s *storage) setLiveRef(commit ostree.Checksum) error {
	if s.Repo == nil {
		if err := s.openRepo(); err != nil {
			return err
		}
	}
	var err error
	if commit == s.machine.Booted.Commit {
		err = s.Repo.RemoveRef(liveRef)
	} else {
		err = s.Repo.SetRef(liveRef, commit)
	}
	if err != nil {
		return err
	}
	return s.Repo.RemoveRef(nextRef)
}
