package machine

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
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
)

// NoteOwn notes what libostree has made of what was staged: by that it is told from what others stage, of the same commit, too.
func (m *Machine) NoteOwn(staging state.Staging) error {
	staged, found, err := m.Sysroot.Staged()
	if err != nil || !found || staged.Commit != staging.Commit {
		return err // somebody else has been quick
	}
	if staging.Staged, err = m.DescribeStaged(staged); err != nil {
		return err
	}
	return m.State.WriteStaging(staging)
}

// DescribeStaged tells what it takes to stage a deployment once more that is staged now.
func (m *Machine) DescribeStaged(staged ostree.Deployment) (state.StagedDeployment, error) {
	origin, err := ReadOrigin(staged)
	if err != nil {
		return state.StagedDeployment{}, err
	}
	args, err := m.Sysroot.StagedKernelArgs()
	return state.StagedDeployment{ID: staged.ID(), Commit: staged.Commit, Origin: origin, KernelArgs: args, Locked: staged.Locked}, err
}

// Staging reads what liveapply has staged. If that is no longer known, what is staged is somebody else's, and stays.
func (m *Machine) Staging() (state.Staging, error) {
	staging, err := m.State.Staging()
	if errors.Is(err, state.ErrDamaged) {
		report.Warn("%v; a deployment that is staged now stays (ostree admin undeploy 0 drops it)", err)
		return state.Staging{}, nil
	}
	return staging, err
}

// ReadOrigin returns the content of a deployment's origin file, "" if it has none.
func ReadOrigin(deployment ostree.Deployment) (string, error) {
	content, err := os.ReadFile(filepath.Join(PhysicalRoot, deployment.Path()+".origin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading the origin of deployment %s: %w", deployment.ID(), err)
	}
	return string(content), nil
}

// Stage stages a deployment.
func (m *Machine) Stage(ctx context.Context, d state.StagedDeployment) error {
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
		path := filepath.Join(m.State.Run, ScratchPrefix+"origin")
		if err := os.WriteFile(path, []byte(d.Origin), 0o600); err != nil {
			return fmt.Errorf("staging a deployment of commit %s: %w", d.Commit, err)
		}
		defer os.Remove(path)
		args = append(args, "--origin-file="+path)
	}
	if err := RunOSTree(ctx, append(args, d.Commit.String())...); err != nil {
		return fmt.Errorf("staging a deployment of commit %s: %w", d.Commit, err)
	}
	return nil
}

// Restage drops the staged deployment if it is liveapply's own, and stages theirs again, if there was one. A deployment that somebody else has staged since
// stays.
func (s *Storage) Restage(ctx context.Context, own state.Staging, theirs state.StagedDeployment) error {
	comesBack := false
	if !theirs.Commit.IsZero() {
		var err error
		if comesBack, err = s.Machine.hasCommit(theirs.Commit); err != nil {
			return err
		}
		if !comesBack { // while it was not deployed, libostree did not keep it from being pruned
			report.Warn("commit %s, which was staged before, is no longer in the repo: pull it, and stage it again (ostree admin deploy --stage)", theirs.Commit)
		}
	}
	isOwn, err := s.dropStaged(ctx, own, comesBack)
	switch {
	case err != nil || !isOwn:
		return err
	case comesBack:
		return s.Machine.Stage(ctx, theirs) // takes the place of ours
	}
	if err := RunOSTree(ctx, "admin", "cleanup"); err != nil {
		return fmt.Errorf("dropping the staged deployment of commit %s: %w", own.Commit, err)
	}
	return nil
}

// dropStaged drops the staged deployment, unless another one is to take its place, if it is liveapply's own. That is looked at under libostree's lock, so that
// nobody stages something meanwhile.
func (s *Storage) dropStaged(ctx context.Context, own state.Staging, replaced bool) (isOwn bool, err error) {
	lock, err := s.LockSysroot(ctx)
	if err != nil {
		return false, err
	}
	defer lock.Close()
	staged, found, err := s.Machine.Sysroot.Staged()
	if err != nil || !found {
		return err == nil && !replaced, err // one that was dropped by a process that was killed then is to be cleaned up
	}
	description, err := s.Machine.DescribeStaged(staged)
	if err != nil || !own.IsOwn(description) || replaced {
		return err == nil && own.IsOwn(description), err
	}
	return true, s.Machine.Sysroot.DropStaged()
}

// LockSysroot takes libostree's lock. Whoever has it may be pulling a commit: the time that is waited is no time to work.
func (s *Storage) LockSysroot(ctx context.Context) (*ostree.SysrootLock, error) {
	end := func() {}
	defer func() { end() }()
	return ostree.LockSysroot(ctx, s.Root(), func() {
		report.Status("waiting for the lock of the sysroot, which libostree or an upgrade has")
		end = report.Waiting()
	})
}

// RunOSTree runs the ostree command.
func RunOSTree(ctx context.Context, args ...string) error {
	defer report.Waiting()() // it takes the lock of the sysroot
	output, err := exec.CommandContext(ctx, "ostree", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ostree %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
