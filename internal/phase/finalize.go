package phase

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
)

// libostree merges /etc, as it is then, into the staged deployment at shutdown. It must not while /etc has anything of a live commit or of overlays in it,
// also where taking that back fails, is killed, runs out of time, or is never begun. So from before the first change until after the last has been taken back
// there is a directory, which a drop-in of ostree-finalize-staged.service has systemd mount over /run/ostree for that service: libostree finds nothing staged
// there. (Its own lock, a file in /run/ostree, does not do: it goes when something else is staged, and it may be somebody else's.)

// nothingStaged is that directory.
func (m *Machine) nothingStaged() string { return filepath.Join(m.State.Run, "nothing-staged") }

// keepEtcFromStaged is called before /etc is changed: what takes that back at shutdown is active then, and libostree merges nothing before that.
func (m *Machine) keepEtcFromStaged(ctx context.Context) error {
	if err := m.holdStaged(); err != nil {
		return err
	}
	return services.StartEtcRevert(ctx)
}

func (m *Machine) holdStaged() error {
	if err := os.MkdirAll(m.nothingStaged(), 0o755); err != nil {
		return fmt.Errorf("keeping the changes of /etc out of the next deployment: %w", err)
	}
	return nil
}

// leaveEtcToStaged lets libostree merge /etc again, if there is nothing of ours in it.
func (s *storage) leaveEtcToStaged() error {
	if s.hasChangesOfEtc() {
		return nil
	}
	if err := os.RemoveAll(s.machine.nothingStaged()); err != nil {
		return fmt.Errorf("leaving /etc to the next deployment: %w", err)
	}
	return nil
}

// noteStaged writes down what is about to be finalized: libostree forgets it before it merges /etc, which may fail.
func (m *Machine) noteStaged() error {
	staged, found, err := m.Sysroot.Staged()
	if err != nil || !found || staged.Locked {
		return err
	}
	return m.State.WriteFinalizing(staged.Commit)
}

// Finalized tells, when ostree-finalize-staged.service has ended, if what was staged is still so or was lost, and why.
func (m *Machine) Finalized(context.Context, string) error {
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
	reason := "libostree could not finalize its deployment (journalctl -b -1 -u ostree-finalize-staged.service): stage it again"
	switch _, noted := os.Lstat(m.nothingStaged()); {
	case found && staged.Locked:
		return nil
	case found:
		commit = staged.Commit
		if noted == nil {
			reason = "/etc had changes of a live commit or of overlays that were not taken back (journalctl -b -1 -u liveapply-etc-revert.service), which its deployment would have kept: stage it again"
		}
	case os.Getenv("SERVICE_RESULT") == "success" || commit.IsZero(): // systemd.exec(5)
		return nil
	}
	return m.State.AppendHistory(state.Entry{
		Transaction: state.NewID(), From: m.Booted.Commit, Target: commit, Started: time.Now().UTC(),
		Result: state.NotFinalized, Reason: reason,
	})
}
