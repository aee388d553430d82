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

// ensureNextBoot makes the next boot lead to the target, unless the application is to be transient.
func (p *preparation) ensureNextBoot(ctx context.Context) error {
	if p.plan.Transient {
		return nil
	}
	next, err := p.NextBoot()
	if err != nil || next.Commit == p.plan.Target {
		return err
	}
	before, err := p.State.Staging()
	if err != nil {
		return err
	}
	// What happens is noted first, so that a kill in between leaves no deployment that nobody owns.
	staging := state.Staging{Commit: p.plan.Target, Replaced: before.Replaced}
	p.transaction.Staged = &state.StagedBefore{Staging: before}
	if next.Staged {
		p.transaction.Staged.Commit = next.Commit
	}
	if next.Staged && next.Commit != before.Commit {
		staging.Replaced = next.Commit
	}
	if err := p.State.WriteTransaction(p.transaction); err != nil {
		return err
	}
	if err := p.State.WriteStaging(staging); err != nil {
		return err
	}
	status("staging a deployment of the target")
	return p.stage(ctx, p.plan.Target)
}

// stage stages a deployment that follows the same origin as the booted one, as an upgrade would.
func (m *Machine) stage(ctx context.Context, commit ostree.Checksum) error {
	args := []string{"admin", "deploy", "--stage", "--no-prune", "--os=" + m.Booted.OSName}
	origin := filepath.Join(physicalRoot, m.Booted.Path()+".origin")
	if _, err := os.Stat(origin); err == nil {
		args = append(args, "--origin-file="+origin)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("staging a deployment of commit %s: %w", commit, err)
	}
	if err := runOSTree(ctx, nil, append(args, commit.String())...); err != nil {
		return fmt.Errorf("staging a deployment of commit %s: %w", commit, err)
	}
	return nil
}

// restage drops the staged deployment if it is liveapply's own, of commit ours, and stages one of commit theirs again unless that is
// zero. A deployment that somebody else has staged since stays.
func (m *Machine) restage(ctx context.Context, ours, theirs ostree.Checksum) error {
	staged, found, err := m.Sysroot.Staged()
	if err != nil {
		return err
	}
	if !found || staged.Commit != ours {
		return nil
	}
	if !theirs.IsZero() {
		return m.stage(ctx, theirs) // takes the place of ours
	}
	// The staged deployment is always the first.
	if err := runOSTree(ctx, nil, "admin", "undeploy", "0"); err != nil {
		return fmt.Errorf("dropping the staged deployment of commit %s: %w", staged.Commit, err)
	}
	return nil
}

// runOSTree runs the ostree command, which finds extra at file descriptor 3.
func runOSTree(ctx context.Context, extra *os.File, args ...string) error {
	command := exec.CommandContext(ctx, "ostree", args...)
	if extra != nil {
		command.ExtraFiles = []*os.File{extra}
	}
	output, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("ostree %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}

// setLiveRef points the ref at the live commit.
func (s *storage) setLiveRef(ctx context.Context, commit ostree.Checksum) error {
	return runOSTree(ctx, s.sysroot, "refs", "--repo=/proc/self/fd/3/ostree/repo", "--create="+liveRef, "--force", commit.String())
}

// deleteLiveRef removes the ref, if there is one.
func (s *storage) deleteLiveRef(ctx context.Context) error {
	return runOSTree(ctx, s.sysroot, "refs", "--repo=/proc/self/fd/3/ostree/repo", "--delete", liveRef)
}
