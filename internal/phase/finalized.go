package phase

import (
	"context"
	"os"
	"time"

	"github.com/liveapply/liveapply/internal/deployments"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/state"
)

// Finalized tells, when ostree-finalize-staged.service has ended, if what was staged is still so or was lost, and why.
func Finalized(_ context.Context, m *machine.Machine, _ string) error {
	commit, err := m.State.Finalizing()
	if err != nil {
		return err
	}
	// For a command of that unit, systemd mounts nothing-staged, too; not for the first process.
	sysroot, err := ostree.OpenSysroot("/proc/1/root")
	if err != nil {
		return err
	}
	staged, found, err := sysroot.Staged()
	if err != nil {
		return err
	}
	reason := "libostree could not finalize the deployment that was staged (journalctl -b -1 -u ostree-finalize-staged.service): stage it again"
	switch _, noted := os.Lstat(deployments.NothingStaged(m)); {
	case found && staged.Locked:
		return nil
	case found:
		commit = staged.Commit
		if noted == nil {
			reason = "/etc had changes of a live commit or of overlays that were not taken back (journalctl -b -1 -u liveapply-etc-revert.service), which its deployment would have kept: stage it again"
		}
	case os.Getenv("SERVICE_RESULT") == "success": // systemd.exec(5)
		return nil
	}
	return m.State.AppendHistory(state.Entry{
		Transaction: state.NewID(), From: m.Booted.Commit, Target: commit, Started: time.Now().UTC(),
		Result: state.NotFinalized, Reason: reason,
	})
}
