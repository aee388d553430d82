package systemd

import (
	"context"
	"fmt"
)

// UnitOf returns the unit that a process belongs to; of a user's process, that is the session or the user's own manager.
func (s *Manager) UnitOf(ctx context.Context, pid uint32) (string, error) {
	unit, err := s.Conn.GetUnitNameByPID(ctx, pid)
	if err != nil {
		return "", fmt.Errorf("asking systemd for the unit of process %d: %w", pid, err)
	}
	return unit, nil
}
