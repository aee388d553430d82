package phase

import (
	"context"
	"path/filepath"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/layer"
	"github.com/liveapply/liveapply/internal/state"
)

// Recover removes what an earlier boot left: a live tree ends with the boot that it was applied in. After an orderly shutdown
// /etc has been taken back; after a power cut it is taken back here, before services read it.
func (m *Machine) Recover(ctx context.Context, _ string) error {
	usr, err := m.Usr.Inspect()
	if err != nil || usr.Live != "" {
		return err // not at boot: something is live
	}
	storage, err := m.openStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	if err := m.takeBackEtc(ctx, &state.Transaction{Target: m.Booted.Commit}); err != nil {
		return err
	}
	return storage.dropAll(ctx)
}

// EtcRevert takes all changes of /etc back when the machine shuts down, before libostree merges /etc into the staged
// deployment. The transaction, if one is under way, has been stopped by then.
func (m *Machine) EtcRevert(ctx context.Context, _ string) error {
	return m.takeBackEtc(ctx, &state.Transaction{Target: m.Booted.Commit})
}

// takeBackEtc makes /etc what it was before the first application, but for what was changed locally since.
func (m *Machine) takeBackEtc(ctx context.Context, t *state.Transaction) error {
	storage, err := m.openStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	status("taking back the changes of /etc")
	result, err := etcmerge.Reset(ctx, storage.etcDirs())
	if err != nil {
		return err
	}
	logKept(t, result.Kept)
	return nil
}

// dropAll removes what liveapply keeps for any deployment. Only the journal of /etc outlives that, for a deployment that lost power
// while its /etc was changed and was not booted since: it is taken back when it is.
func (s *storage) dropAll(ctx context.Context) error {
	if err := s.setLiveRef(ctx, s.machine.Booted.Commit); err != nil {
		return err
	}
	deployments, err := s.machine.Sysroot.Deployments()
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, deployment := range deployments {
		kept[deployment.BackingPath()] = true
	}
	root := s.root()
	dirs, err := filepath.Glob(filepath.Join(root, "ostree/deploy/*/backing/*/liveapply"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		backing, err := filepath.Rel(root, filepath.Dir(dir))
		if err != nil {
			return err
		}
		leftover := dir
		if kept[backing] {
			leftover = filepath.Join(dir, layersName)
		}
		if err := layer.Remove(leftover); err != nil {
			return err
		}
		if err := removeEmpty(dir, filepath.Dir(dir)); err != nil {
			return err
		}
	}
	return s.tidy()
}
