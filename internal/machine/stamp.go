package machine

import (
	"errors"

	"github.com/liveapply/liveapply/internal/state"
)

// Status is the stamp, with what the mount table says: that is the ground truth of what is live.
func (m *Machine) Status() (*state.Stamp, error) {
	stamp, err := m.Stamp()
	if err != nil {
		return nil, err
	}
	if stamp.Live, err = m.Live(); err != nil {
		return nil, err
	}
	return stamp, nil
}

// Stamp reads the stamp. One that is damaged, or lost while something is live, is made again.
func (m *Machine) Stamp() (*state.Stamp, error) {
	stamp, err := m.State.Stamp(m.Booted)
	if errors.Is(err, state.ErrDamaged) {
		return m.RemakeStamp()
	}
	if err != nil || stamp != nil {
		return stamp, err
	}
	return m.RemakeStamp()
}

// RemakeStamp makes the stamp from what it speaks of: what is live is in the mount table, and about that, the manifest of its
// layer tells. Without a manifest, or for those who may not read it, it says what is live.
func (m *Machine) RemakeStamp() (*state.Stamp, error) {
	stamp := state.NewStamp(m.Booted)
	live, err := m.Live()
	if err != nil || live == m.Booted.Commit {
		return stamp, err
	}
	stamp.Live, stamp.Previous, stamp.Layers = live, m.Booted.Commit, m.LayersOf(live)
	if about, err := m.manifest(live); err == nil {
		stamp.Partial, stamp.Previous, stamp.Applied = about.Partial, about.Previous, about.Prepared
		stamp.Transient, stamp.RebootRequired = about.Transient, append(stamp.RebootRequired, about.RebootRequired...)
	}
	return stamp, nil
}

// UpdateStamp replaces the stamp by a changed one.
func (m *Machine) UpdateStamp(change func(*state.Stamp)) error {
	stamp, err := m.Stamp()
	if err != nil {
		return err
	}
	change(stamp)
	return m.State.WriteStamp(m.Booted, stamp)
}
