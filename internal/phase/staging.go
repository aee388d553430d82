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
		if next.Commit != before.Commit {
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
	return p.transaction.Step("stage a deployment", func() error { return p.stage(ctx, deployment) })
}

// describeStaged tells what it takes to stage a deployment once more that is staged now.
func (m *Machine) describeStaged(staged ostree.Deployment) (state.StagedDeployment, error) {
	origin, err := readOrigin(staged)
	if err != nil {
		return state.StagedDeployment{}, err
	}
	args, err := m.Sysroot.StagedKernelArgs()
	return state.StagedDeployment{Commit: staged.Commit, Origin: origin, KernelArgs: args, Locked: staged.Locked}, err
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

// restage drops the staged deployment if it is liveapply's own, of commit ours, and stages theirs again, if there was one. A deployment that
// somebody else has staged since stays.
func (m *Machine) restage(ctx context.Context, ours ostree.Checksum, theirs state.StagedDeployment) error {
	staged, found, err := m.Sysroot.Staged()
	if err != nil {
		return err
	}
	if !found || staged.Commit != ours {
		return nil
	}
	if !theirs.Commit.IsZero() {
		has, err := m.hasCommit(theirs.Commit)
		if err != nil {
			return err
		}
		if has {
			return m.stage(ctx, theirs) // takes the place of ours
		}
		// While it was not deployed, libostree did not keep it from being pruned.
		warn("commit %s, which was staged before, is no longer in the repo: pull it, and stage it again (ostree admin deploy --stage)", theirs.Commit)
	}
	// The staged deployment is always the first.
	if err := runOSTree(ctx, "admin", "undeploy", "0"); err != nil {
		return fmt.Errorf("dropping the staged deployment of commit %s: %w", staged.Commit, err)
	}
	return nil
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
	return s.Repo.RemoveRef(partialRef)
}
