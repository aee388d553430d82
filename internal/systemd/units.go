package systemd

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/unit"

	"github.com/liveapply/liveapply/internal/state"
)

// ResetUnit goes back to the booted tree.
const ResetUnit = "liveapply-reset.service"

// OverlaysUnit makes the system what the stores of overlays say.
const OverlaysUnit = "liveapply-overlays.service"

// UpdatesUnit applies the updates images that the kernel command line names by URL, or those by path.
func UpdatesUnit(byURL bool) string {
	if byURL {
		return "liveapply-updates-url.service"
	}
	return "liveapply-updates.service"
}

// etcRevertUnit takes the changes of /etc back when it is stopped, at shutdown at the latest.
const etcRevertUnit = "liveapply-etc-revert.service"

// liveTarget is reached when a tree has been applied.
const liveTarget = "liveapply.target"

// recoverPath watches the stamp, between transactions.
const recoverPath = "liveapply-recover.path"

// liveUnits are active while a tree other than the booted one is live.
var liveUnits = []string{liveTarget, recoverPath, etcRevertUnit}

// StartEtcRevert makes sure that changes of /etc will be taken back at shutdown. No unit of a transaction requires it: it would be
// started for one that is refused, and stopping it after a rollback would stop a transaction that waits for its turn. While it is being stopped this fails: that
// waits for what calls this to end.
func StartEtcRevert(ctx context.Context) error {
	return With(ctx, func(manager *Manager) error {
		begun, err := manager.begin(ctx, etcRevertUnit, "fail")
		if err != nil {
			return err
		}
		return begun.Wait(ctx)
	})
}

// StopWatch stops watching the stamp: a transaction, which changes it in every phase, begins.
func StopWatch(ctx context.Context) error {
	return With(ctx, func(manager *Manager) error { return manager.Stop(ctx, recoverPath) })
}

// WatchStamp starts to watch the stamp, if something is live: a transaction has ended. It does not wait.
func WatchStamp(ctx context.Context) error {
	return With(ctx, func(manager *Manager) error { return manager.Queue(ctx, recoverPath) })
}

// RestartLive tells those who wait for it that a tree has been applied: what liveapply.target wants is started, and what is also a part of it is
// restarted if it runs. It does not wait for that.
func RestartLive(ctx context.Context) error {
	return With(ctx, func(manager *Manager) error {
		if _, err := manager.Conn.RestartUnitContext(ctx, liveTarget, "replace", nil); err != nil {
			return fmt.Errorf("restarting %s: %w", liveTarget, err)
		}
		return nil
	})
}

// StopLive stops the units that are active while a tree other than the booted one is live. With keepEtc, /etc still has changes to be taken
// back at shutdown. It does not wait any more when asked, the context of a caller that goes on all the same, is done.
func StopLive(ctx, asked context.Context, keepEtc bool) error {
	manager, err := Connect(ctx)
	if err != nil {
		return err
	}
	defer manager.Close()
	units := slices.Clone(liveUnits)
	if keepEtc {
		units = slices.DeleteFunc(units, func(unit string) bool { return unit == etcRevertUnit })
	}
	for _, unit := range units {
		// At shutdown, that of etc-revert waits for what calls this to end.
		if err := manager.stop(ctx, asked, unit); err != nil && asked.Err() == nil {
			return err
		}
	}
	return nil
}

// ApplyUnit is the unit that applies what request names.
func ApplyUnit(request string) string { return instance("liveapply@", request) }

// OverlayUnit is the unit that carries out a request to change overlays.
func OverlayUnit(id string) string { return instance("liveapply-overlay@", id) }

// MainUnit is the unit that others start, and wait for, to have request done.
func MainUnit(request string) string {
	if unit := onlyUnit(request); unit != "" {
		return unit
	}
	return ApplyUnit(request)
}

// UnitOf is the unit that a transaction belongs to.
func UnitOf(t *state.Transaction) string {
	if t.Unit == "" { // before units were noted
		return MainUnit(t.Request)
	}
	return t.Unit
}

// onlyUnit is the unit of a request that has only one; "" for the application of a commit.
func onlyUnit(request string) string {
	id, isOverlay := state.IsOverlayRequest(request)
	switch {
	case request == state.ResetRequest:
		return ResetUnit
	case isOverlay && id != "":
		return OverlayUnit(id)
	case isOverlay:
		return OverlaysUnit
	}
	return ""
}

// RollbackUnit is the unit that takes a transaction of request back that did not end. A reset goes on instead; of overlays, the stores say
// whether it came true.
func RollbackUnit(request string) string {
	if _, isOverlay := state.IsOverlayRequest(request); isOverlay {
		return OverlaysUnit
	}
	if request == state.ResetRequest {
		return ResetUnit
	}
	return instance("liveapply-rollback@", request)
}

func instance(prefix, request string) string {
	return prefix + unit.UnitNameEscape(request) + ".service"
}

// PhaseUnit is the unit that runs a phase of a request. Those of a reset are all run by one.
func PhaseUnit(request, phase string) string {
	if unit := onlyUnit(request); unit != "" {
		return unit
	}
	return instance("liveapply-"+phase+"@", request)
}

// StopPhases has the phases of a request run once more with its next start: those that have run are active until then.
func StopPhases(ctx context.Context, request string) error {
	guard := "liveapply-guard@" + unit.UnitNameEscape(request) + ".target" // which all of them require
	return With(ctx, func(manager *Manager) error { return manager.Stop(ctx, guard) })
}

// WantAgain has a boot that is still under way look again for what it is to start: units may be wanted that were not there when it began.
func WantAgain(ctx context.Context) error {
	return With(ctx, func(manager *Manager) error {
		state, err := manager.Conn.SystemStateContext(ctx)
		if err != nil {
			return fmt.Errorf("asking systemd how far the boot has come: %w", err)
		}
		if state.Value.Value() != "initializing" {
			return nil
		}
		return manager.Queue(ctx, "default.target")
	})
}

// isOf tells whether a unit works for the one that a transaction belongs to: it is that one, a phase, or the way back.
func isOf(name, unit string) bool {
	_, instance, isInstance := strings.Cut(unit, "@")
	return name == unit || isInstance && strings.HasPrefix(name, "liveapply-") && strings.HasSuffix(name, "@"+instance)
}

// IsWorkingOn tells whether a unit, one of its phases or its way back runs or is about to.
func (s *Manager) IsWorkingOn(ctx context.Context, unit string) (bool, error) {
	units, err := s.transactionUnits(ctx)
	return slices.ContainsFunc(units, func(u dbus.UnitStatus) bool { return isOf(u.Name, unit) && (u.JobId != 0 || isRunning(u)) }), err
}

// transactionUnits lists the units of all transactions. (Patterns for the units of one request would have to be escaped once more: an instance can
// have backslashes.)
func (s *Manager) transactionUnits(ctx context.Context) ([]dbus.UnitStatus, error) {
	units, err := s.Conn.ListUnitsByPatternsContext(ctx, nil, []string{"liveapply@*.service", "liveapply-*@*.service", ResetUnit, OverlaysUnit, "liveapply-updates*.service"})
	if err != nil {
		return nil, fmt.Errorf("asking systemd for the units of transactions: %w", err)
	}
	return units, nil
}
