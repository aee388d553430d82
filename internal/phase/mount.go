package phase

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/underlay"
)

// Mount switches /usr to the target. It runs in the host's mount namespace.
func (m *Machine) Mount(ctx context.Context, request string) error {
	t, plan, err := m.resume(ctx, "mount", request)
	if err != nil {
		return err
	}
	if plan.IsNothing() {
		return m.end(t)
	}
	status("switching /usr")
	t.Switched = true
	if err := m.lock.Write(t); err != nil {
		return err
	}
	overlays, err := m.enabled()
	if err != nil {
		return err
	}
	var switched underlay.Switched
	if err := t.Step(state.SwitchStep, func() (err error) {
		switched, err = m.show(plan.Live, plan.Layers, overlays)
		return err
	}); err != nil {
		return err
	}
	if err := m.showLive(plan); err != nil {
		return err
	}
	announceSwitch(t, switched)
	return m.end(t)
}

// showLive says in the stamp what /usr shows now.
func (m *Machine) showLive(plan *state.Plan) error {
	return m.updateStamp(func(stamp *state.Stamp) {
		stamp.Previous, stamp.Live, stamp.Layers = plan.From, plan.Live, plan.Layers
		stamp.Partial = plan.Partial
		stamp.Applied = time.Now().UTC().Truncate(time.Second)
		stamp.Transient, stamp.RebootRequired = plan.Transient, plan.Impact.RebootRequired
	})
}

// switchBack makes /usr show a commit that was live before. What is wrong with an overlay does not keep it from that.
func (m *Machine) switchBack(commit ostree.Checksum, layers []string) error {
	overlays, err := m.enabled()
	if err != nil {
		warn("%v; going back without overlays", err)
	}
	if _, err = m.show(commit, layers, overlays); err != nil && len(overlays) > 0 {
		warn("%v; going back without overlays", err)
		_, err = m.show(commit, layers, nil)
	}
	return err
}

// rememberTree notes what /usr shows now. Only needs-restart knows less without that.
func (m *Machine) rememberTree(commit ostree.Checksum) {
	if err := m.Trees.Shows(m.Usr.Path, commit); err != nil {
		warn("%v", err)
	}
}

// unlockedFlag is libostree's own mark of a deployment with something on its /usr that the next boot will not have
// (ostree_sysroot_deployment_unlock): `ostree admin status` shows it, and `ostree admin unlock` refuses.
func (m *Machine) unlockedFlag() string {
	return filepath.Join(m.State.DeploymentDir(m.Booted), "unlocked-transient")
}

func (m *Machine) setUnlocked() error {
	if err := os.MkdirAll(filepath.Dir(m.unlockedFlag()), 0o755); err != nil {
		return fmt.Errorf("marking the deployment as unlocked: %w", err)
	}
	if err := os.WriteFile(m.unlockedFlag(), nil, 0o644); err != nil {
		return fmt.Errorf("marking the deployment as unlocked: %w", err)
	}
	return nil
}

func (m *Machine) clearUnlocked() error {
	if err := os.Remove(m.unlockedFlag()); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("marking the deployment as locked again: %w", err)
	}
	return nil
}

func announceSwitch(t *state.Transaction, switched underlay.Switched) {
	message := fmt.Sprintf("/usr shows commit %s now", named(t.Target, t.Partial))
	if switched.Stacked {
		message += ", on top of the tree before, which this kernel cannot take away beneath it"
	}
	announce(t, messageSwitched, message, nil)
}
