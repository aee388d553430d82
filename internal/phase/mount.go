package phase

import (
	"context"
	"fmt"
	"time"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/transaction"
	"github.com/liveapply/liveapply/internal/underlay"
)

// Mount switches /usr to the target. It runs in the host's mount namespace.
func Mount(ctx context.Context, m *machine.Machine, request string) error {
	t, plan, err := transaction.Resume(ctx, m, "mount", request)
	if err != nil {
		return err
	}
	if plan.IsNothing() {
		return transaction.End(m, t)
	}
	// The etc phase waits for libostree, and the time between the two is to be short.
	if err := awaitLibostree(ctx, m); err != nil {
		return err
	}
	report.Status("switching /usr")
	t.Switched = true
	if err := m.Lock.Write(t); err != nil {
		return err
	}
	overlays, err := m.EnabledOverlays()
	if err != nil {
		return err
	}
	var switched underlay.Switched
	if err := t.Step(state.SwitchStep, func() (err error) {
		switched, err = m.Show(plan.Live, plan.Layers, overlays)
		return err
	}); err != nil {
		return err
	}
	if err := showLive(m, plan); err != nil {
		return err
	}
	announceSwitch(t, switched)
	return transaction.End(m, t)
}

// awaitLibostree waits until nobody has libostree's lock of the sysroot.
func awaitLibostree(ctx context.Context, m *machine.Machine) error {
	storage, err := m.OpenStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	lock, err := storage.LockSysroot(ctx)
	if err != nil {
		return err
	}
	lock.Close()
	return nil
}

// showLive says in the stamp what /usr shows now.
func showLive(m *machine.Machine, plan *state.Plan) error {
	return m.UpdateStamp(func(stamp *state.Stamp) {
		stamp.Previous, stamp.Live, stamp.Layers = plan.From, plan.Live, plan.Layers
		stamp.Partial = plan.Partial
		stamp.Applied = time.Now().UTC().Truncate(time.Second)
		stamp.Transient, stamp.RebootRequired = plan.Transient, plan.Impact.RebootRequired
	})
}

// switchBack makes /usr show a commit that was live before. What is wrong with an overlay does not keep it from that.
func switchBack(m *machine.Machine, commit ostree.Checksum, layers []string) error {
	overlays, err := m.EnabledOverlays()
	if err != nil {
		report.Warn("%v; going back without overlays", err)
	}
	if _, err = m.Show(commit, layers, overlays); err != nil && len(overlays) > 0 {
		report.Warn("%v; going back without overlays", err)
		_, err = m.Show(commit, layers, nil)
	}
	return err
}

func announceSwitch(t *state.Transaction, switched underlay.Switched) {
	message := fmt.Sprintf("/usr shows commit %s now", report.Named(t.Target, t.Partial))
	if switched.Stacked {
		message += ", on top of the tree before, which this kernel cannot take away beneath it"
	}
	report.Announce(t, report.MessageSwitched, message, nil)
}
