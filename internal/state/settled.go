package state

import (
	"errors"
	"path/filepath"
	"slices"
)

// Settled is what has become of a deployment that was made, not staged, while /etc had something of a live commit or of overlays.
type Settled struct {
	Deployment string   `json:"deployment"` // its deployid
	Restored   []string `json:"restored"`   // paths below /etc that are the administrator's own there
	Kept       []string `json:"kept"`       // that were changed since, and stay
	Failure    string   `json:"failure"`    // why it may have kept all; empty if it did not
}

type settledDeployments struct {
	All []Settled `json:"deployments"`
}

func (s *settledDeployments) check() error {
	if slices.ContainsFunc(s.All, func(one Settled) bool { return one.Deployment == "" }) {
		return errors.New("it names no deployment")
	}
	return nil
}

// Settled lists the deployments that were settled. Some may be no more.
func (d Dirs) Settled() ([]Settled, error) {
	var s settledDeployments
	_, err := readJSON(d.settledPath(), &s)
	if errors.Is(err, ErrDamaged) {
		return nil, nil // the journal has it, too
	}
	return s.All, err
}

// NoteSettled adds to what is known of a deployment, and forgets those that are no more.
func (d Dirs) NoteSettled(one Settled, exists func(deployment string) bool) error {
	all, err := d.Settled()
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(one Settled) bool { return !exists(one.Deployment) })
	i := slices.IndexFunc(all, func(other Settled) bool { return other.Deployment == one.Deployment })
	if i < 0 {
		all = append(all, one)
	} else {
		one.Restored = slices.Compact(slices.Sorted(slices.Values(slices.Concat(all[i].Restored, one.Restored))))
		all[i] = one
	}
	return writeJSON(d.settledPath(), 0o644, settledDeployments{all})
}

func (d Dirs) settledPath() string { return filepath.Join(d.Lib, "settled.json") }
