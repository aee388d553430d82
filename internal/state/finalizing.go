package state

import (
	"errors"
	"path/filepath"

	"github.com/liveapply/liveapply/internal/ostree"
)

// finalizing is what libostree is about to finalize, at shutdown.
type finalizing struct {
	Commit ostree.Checksum `json:"commit"`
}

// check refuses what no WriteFinalizing has written.
func (f *finalizing) check() error {
	if f.Commit.IsZero() {
		return errors.New("it does not say what was staged")
	}
	return nil
}

// WriteFinalizing notes the commit of the deployment that libostree is about to finalize.
func (d Dirs) WriteFinalizing(commit ostree.Checksum) error {
	return writeJSON(d.finalizingPath(), 0o600, finalizing{commit})
}

// Finalizing reads it; zero if nothing is known.
func (d Dirs) Finalizing() (ostree.Checksum, error) {
	var f finalizing
	_, err := readJSON(d.finalizingPath(), &f)
	if errors.Is(err, ErrDamaged) {
		return ostree.Checksum{}, nil
	}
	return f.Commit, err
}

func (d Dirs) finalizingPath() string { return filepath.Join(d.Run, "finalizing.json") }
