package state

import (
	"errors"
	"path/filepath"

	"github.com/liveapply/liveapply/internal/ostree"
)

// Staging tells which staged deployment is liveapply's own, to be dropped by reset, and whose place that took. Nothing is
// staged by liveapply if Commit is zero.
type Staging struct {
	Commit   ostree.Checksum  `json:"commit"`
	Replaced StagedDeployment `json:"replaced"` // somebody else's, staged before
}

// StagedDeployment is all that it takes to stage a deployment once more.
type StagedDeployment struct {
	Commit     ostree.Checksum `json:"commit"`      // zero if there is none
	Origin     string          `json:"origin"`      // the content of its origin file
	KernelArgs []string        `json:"kernel_args"` // null if it is to get those of the booted one
	Locked     bool            `json:"locked"`      // not to be finalized
}

// check refuses what no WriteStaging has written.
func (s *Staging) check() error {
	if s.Commit.IsZero() {
		return errors.New("it does not say what was staged")
	}
	return nil
}

// Staging reads what liveapply has staged.
func (d Dirs) Staging() (Staging, error) {
	var s Staging
	_, err := readJSON(d.stagingPath(), &s)
	return s, err
}

// WriteStaging records what liveapply is about to stage, or has dropped (the zero Staging).
func (d Dirs) WriteStaging(s Staging) error {
	if s.Commit.IsZero() {
		return remove(d.stagingPath())
	}
	return writeJSON(d.stagingPath(), 0o600, s)
}

func (d Dirs) stagingPath() string { return filepath.Join(d.Run, "staging.json") }
