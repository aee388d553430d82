package state

import (
	"errors"
	"path/filepath"
	"slices"
)

// stoppedUnits are units that applications have stopped because their files were gone, and that are to run where these are there again.
type stoppedUnits struct {
	Units []string `json:"units"`
}

func (s *stoppedUnits) check() error {
	if slices.Contains(s.Units, "") {
		return errors.New("a unit has no name")
	}
	return nil
}

// StoppedUnits lists them. If that is no longer known, there are none.
func (d Dirs) StoppedUnits() ([]string, error) {
	var s stoppedUnits
	_, err := readJSON(d.stoppedUnitsPath(), &s)
	if errors.Is(err, ErrDamaged) {
		return nil, nil
	}
	return s.Units, err
}

// NoteStoppedUnits notes what was done to units: those that were stopped are added, those that were started are no longer among them.
func (d Dirs) NoteStoppedUnits(tasks []Task) error {
	before, err := d.StoppedUnits()
	if err != nil {
		return err
	}
	units := slices.Clone(before)
	for _, task := range tasks {
		switch i := slices.Index(units, task.Unit); {
		case task.Action == Stop && i < 0:
			units = append(units, task.Unit)
		case task.Action == Start && i >= 0:
			units = slices.Delete(units, i, i+1)
		}
	}
	switch {
	case slices.Equal(units, before):
		return nil
	case len(units) == 0:
		return d.ForgetStoppedUnits()
	}
	return writeJSON(d.stoppedUnitsPath(), 0o600, stoppedUnits{units})
}

// ForgetStoppedUnits forgets them all.
func (d Dirs) ForgetStoppedUnits() error { return remove(d.stoppedUnitsPath()) }

func (d Dirs) stoppedUnitsPath() string { return filepath.Join(d.Run, "stopped-units.json") }
