package state

import (
	"errors"
	"path/filepath"
	"slices"

	"github.com/liveapply/liveapply/internal/ostree"
)

// Staging tells which staged deployment is liveapply's own, to be dropped by reset, and whose place that took. Nothing is
// staged by liveapply if Commit is zero.
type Staging struct {
	Commit   ostree.Checksum  `json:"commit"`
	Staged   StagedDeployment `json:"staged"`   // what libostree made of it; zero until that is known
	Replaced StagedDeployment `json:"replaced"` // somebody else's, staged before
}

// IsOwn tells whether what is staged is what liveapply has staged. As long as it is not known what libostree made of that, its commit tells.
func (s Staging) IsOwn(staged StagedDeployment) bool {
	if s.Staged.Commit.IsZero() {
		return staged.Commit == s.Commit
	}
	return s.Staged.isSame(staged)
}

// StagedDeployment is all that it takes to stage a deployment once more.
type StagedDeployment struct {
	ID         string          `json:"id"`          // its deployid
	Commit     ostree.Checksum `json:"commit"`      // zero if there is none
	Origin     string          `json:"origin"`      // the content of its origin file
	KernelArgs []string        `json:"kernel_args"` // null if it is to get those of the booted one
	Locked     bool            `json:"locked"`      // not to be finalized
}

func (d StagedDeployment) isSame(other StagedDeployment) bool {
	return d.ID == other.ID && d.Commit == other.Commit && d.Origin == other.Origin && d.Locked == other.Locked && slices.Equal(d.KernelArgs, other.KernelArgs)
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
