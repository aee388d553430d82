package deployments

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/systemd"
)

// libostree merges /etc, as it is then, into the staged deployment at shutdown. It must not while /etc has anything of a live commit or of overlays in it,
// also where taking that back fails, is killed, runs out of time, or is never begun. So from before the first change until after the last has been taken back
// there is a directory, which a drop-in of ostree-finalize-staged.service has systemd mount over /run/ostree for that service: libostree finds nothing staged
// there. (Its own lock, a file in /run/ostree, does not do: it goes when something else is staged, and it may be somebody else's.)

// NothingStaged is that directory.
func NothingStaged(m *machine.Machine) string { return filepath.Join(m.State.Run, "nothing-staged") }

// KeepEtcFromStaged is called before /etc is changed: what takes that back at shutdown is active then, and libostree merges nothing before that.
func KeepEtcFromStaged(ctx context.Context, m *machine.Machine) error {
	if err := HoldStaged(m); err != nil {
		return err
	}
	return systemd.StartEtcRevert(ctx)
}

// HoldStaged keeps libostree from finalizing what is staged.
func HoldStaged(m *machine.Machine) error {
	if err := os.MkdirAll(NothingStaged(m), 0o755); err != nil {
		return fmt.Errorf("keeping the changes of /etc out of the next deployment: %w", err)
	}
	return nil
}

// LeaveEtcToStaged lets libostree merge /etc again, if there is nothing of ours in it.
func LeaveEtcToStaged(s *machine.Storage) error {
	if s.HasChangesOfEtc() {
		return nil
	}
	if err := os.RemoveAll(NothingStaged(s.Machine)); err != nil {
		return fmt.Errorf("leaving /etc to the next deployment: %w", err)
	}
	return nil
}

// NoteStaged writes down what is about to be finalized: libostree forgets it before it merges /etc, which may fail.
func NoteStaged(m *machine.Machine) error {
	staged, found, err := m.Sysroot.Staged()
	if err != nil || !found || staged.Locked {
		return err
	}
	return m.State.WriteFinalizing(staged.Commit)
}
