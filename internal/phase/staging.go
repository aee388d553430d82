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
	origin, err := readOrigin(next)
	if err != nil {
		return err
	}
	// What happens is noted first, so that a kill in between leaves no deployment that nobody owns.
	staging := state.Staging{Commit: target, Replaced: before.Replaced, ReplacedOrigin: before.ReplacedOrigin}
	p.transaction.Staged = &state.StagedBefore{Deployed: target, Staging: before}
	if next.Staged {
		p.transaction.Staged.Commit, p.transaction.Staged.Origin = next.Commit, origin
	}
	if next.Staged && next.Commit != before.Commit {
		staging.Replaced, staging.ReplacedOrigin = next.Commit, origin
	}
	if err := p.State.WriteTransaction(p.transaction); err != nil {
		return err
	}
	if err := p.State.WriteStaging(staging); err != nil {
		return err
	}
	status("staging a deployment of the target")
	// It follows the same origin as the booted one, as an upgrade would.
	if origin, err = readOrigin(p.Booted); err != nil {
		return err
	}
	return p.transaction.Step("stage a deployment", func() error { return p.stage(ctx, target, origin) })
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

// stage stages a deployment of a commit, with an origin file of the given content.
func (m *Machine) stage(ctx context.Context, commit ostree.Checksum, origin string) error {
	args := []string{"admin", "deploy", "--stage", "--no-prune", "--os=" + m.Booted.OSName}
	if origin != "" {
		path := filepath.Join(m.State.Run, scratchPrefix+"origin")
		if err := os.WriteFile(path, []byte(origin), 0o600); err != nil {
			return fmt.Errorf("staging a deployment of commit %s: %w", commit, err)
		}
		defer os.Remove(path)
		args = append(args, "--origin-file="+path)
	}
	if err := runOSTree(ctx, append(args, commit.String())...); err != nil {
		return fmt.Errorf("staging a deployment of commit %s: %w", commit, err)
	}
	return nil
}

// restage drops the staged deployment if it is liveapply's own, of commit ours, and stages one of commit theirs again, with its origin,
// unless that is zero. A deployment that somebody else has staged since stays.
func (m *Machine) restage(ctx context.Context, ours, theirs ostree.Checksum, origin string) error {
	staged, found, err := m.Sysroot.Staged()
	if err != nil {
		return err
	}
	if !found || staged.Commit != ours {
		return nil
	}
	if !theirs.IsZero() {
		return m.stage(ctx, theirs, origin) // takes the place of ours
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
