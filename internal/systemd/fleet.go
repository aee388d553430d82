package systemd

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
)

// FleetLockUnit is active while this machine holds a slot of its fleet.
const FleetLockUnit = "liveapply-fleetlock.service"

// FleetLockReleaseUnit gives the slot back.
const FleetLockReleaseUnit = "liveapply-fleetlock-release.service"

// AgainUnit starts liveapply-staged.service once more, some time after it was started itself.
const AgainUnit = "liveapply-again.timer"

// IsWorking tells whether a unit of any transaction runs or is about to.
func (s *Manager) IsWorking(ctx context.Context) (bool, error) {
	units, err := s.transactionUnits(ctx)
	return slices.ContainsFunc(units, func(u dbus.UnitStatus) bool { return u.JobId != 0 || isRunning(u) }), err
}

// FailedSince lists the units that have failed since another one became active; none if that has not become active in this boot, or not when
// it was started last. Those of liveapply are not among them: how a transaction ended is no matter of the machine's health.
func (s *Manager) FailedSince(ctx context.Context, since string) ([]string, error) {
	started, err := s.timestamp(ctx, since, "InactiveExitTimestampMonotonic")
	if err != nil {
		return nil, err
	}
	begin, err := s.timestamp(ctx, since, "ActiveEnterTimestampMonotonic")
	if err != nil || begin == 0 || begin < started {
		return nil, err
	}
	units, err := s.Conn.ListUnitsFilteredContext(ctx, []string{"failed"})
	if err != nil {
		return nil, fmt.Errorf("asking systemd for the units that have failed: %w", err)
	}
	var failed []string
	for _, u := range units {
		if strings.HasPrefix(u.Name, "liveapply") {
			continue
		}
		changed, err := s.timestamp(ctx, u.Name, "StateChangeTimestampMonotonic")
		if err != nil {
			return nil, err
		}
		if changed > begin {
			failed = append(failed, u.Name)
		}
	}
	return failed, nil
}

// timestamp returns a time of a unit, in microseconds since the boot; 0 if there was none.
func (s *Manager) timestamp(ctx context.Context, name, property string) (uint64, error) {
	answer, err := s.Conn.GetUnitPropertyContext(ctx, name, property)
	if err != nil {
		return 0, fmt.Errorf("asking %s for %s: %w", name, property, err)
	}
	at, _ := answer.Value.Value().(uint64)
	return at, nil
}

// FleetLockStatus says what there is to say of the slot: who waits for one, holds one, or could not be given one; "" if nothing. Everybody may ask;
// without a bus, nobody is told.
func FleetLockStatus(ctx context.Context) (string, error) {
	manager, err := ConnectToLook(ctx)
	if err != nil {
		return "", nil
	}
	defer manager.Close()
	for _, name := range []string{FleetLockReleaseUnit, FleetLockUnit} {
		now, err := manager.ActiveState(ctx, name)
		if err != nil {
			return "", err
		}
		if now == "inactive" {
			continue
		}
		if text, err := manager.StatusText(ctx, name); err != nil || text != "" {
			return text, err
		}
	}
	return "", nil
}
