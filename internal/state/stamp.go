package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/partial"
)

// stampVersion is the form of the stamp that this code reads and writes.
const stampVersion = 1

// Stamp says what is live. It is world-readable, at
// /run/ostree/deployment-state/<deployid>/liveapply.json, beside libostree's own flags of the deployment.
type Stamp struct {
	Version        int             `json:"version"`
	Booted         ostree.Checksum `json:"booted"`
	Live           ostree.Checksum `json:"live"`              // the tree that /usr shows; Booted when nothing is applied
	Partial        *partial.About  `json:"partial,omitempty"` // what Live is, if it was made of a part of a target
	Previous       ostree.Checksum `json:"previous"`          // what was live before Live
	Target         ostree.Checksum `json:"target"`            // of the transaction under way, else empty
	Phase          string          `json:"phase"`             // of the transaction under way, else empty
	Transaction    string          `json:"transaction"`
	Transient      bool            `json:"transient"` // the next boot leads elsewhere
	Applied        time.Time       `json:"applied,omitzero"`
	Layers         []string        `json:"layers"` // top first, without the booted tree
	RebootRequired []string        `json:"reboot_required"`
}

// IsApplied tells whether a tree other than the booted one is live.
func (s *Stamp) IsApplied() bool { return s.Live != s.Booted }

// check refuses what no WriteStamp has written.
func (s *Stamp) check() error {
	if s.Version < 1 || s.Booted.IsZero() || s.Live.IsZero() {
		return errors.New("it does not say what is live")
	}
	return nil
}

// NewStamp is the stamp of a deployment on which nothing is applied: the booted commit is live.
func NewStamp(deployment ostree.Deployment) *Stamp {
	return &Stamp{Version: stampVersion, Booted: deployment.Commit, Live: deployment.Commit, Layers: []string{}, RebootRequired: []string{}}
}

// Stamp reads the stamp of a deployment; nil if there is none.
func (d Dirs) Stamp(deployment ostree.Deployment) (*Stamp, error) {
	stamp := &Stamp{}
	found, err := readJSON(d.stampPath(deployment), stamp)
	if err != nil || !found {
		return nil, err
	}
	if stamp.Version != stampVersion {
		return nil, fmt.Errorf("%s has version %d, and this liveapply knows version %d only: reboot, or install the version that wrote it",
			d.stampPath(deployment), stamp.Version, stampVersion)
	}
	return stamp, nil
}

// WriteStamp replaces the stamp of a deployment.
func (d Dirs) WriteStamp(deployment ostree.Deployment, stamp *Stamp) error {
	path := d.stampPath(deployment)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("writing the stamp: %w", err)
	}
	stamp.Version = stampVersion
	// Empty lists, not null, for those who read it.
	stamp.Layers = append([]string{}, stamp.Layers...)
	stamp.RebootRequired = append([]string{}, stamp.RebootRequired...)
	if err := writeJSON(path, 0o644, stamp); err != nil {
		return err
	}
	return d.linkStamp(path)
}

// linkStamp makes a link to the stamp that has the same name whatever is booted: liveapply-recover.path watches it.
func (d Dirs) linkStamp(path string) error {
	err := os.Symlink(path, d.stampLink())
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("writing the stamp: %w", err)
	}
	return nil
}

func (d Dirs) stampLink() string { return filepath.Join(d.Run, "stamp") }

// RemoveStamp removes the stamp: nothing is applied, and no transaction is under way.
func (d Dirs) RemoveStamp(deployment ostree.Deployment) error {
	for _, path := range []string{d.stampLink(), d.stampPath(deployment)} {
		if err := remove(path); err != nil {
			return fmt.Errorf("removing the stamp: %w", err)
		}
	}
	return nil
}

func (d Dirs) stampPath(deployment ostree.Deployment) string {
	return filepath.Join(d.DeploymentDir(deployment), "liveapply.json")
}

// DeploymentDir is where libostree, and liveapply beside it, keep the flags of a deployment for this boot.
func (d Dirs) DeploymentDir(deployment ostree.Deployment) string {
	return filepath.Join(d.Deployments, deployment.ID())
}

// WatchStamp calls changed with the stamp of a deployment, now and whenever it has been replaced, until ctx is done.
func (d Dirs) WatchStamp(ctx context.Context, deployment ostree.Deployment, changed func(*Stamp)) error {
	dir := d.DeploymentDir(deployment)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("watching the stamp: %w", err)
	}
	return watch(ctx, dir, unix.IN_MOVED_TO|unix.IN_DELETE, func() (bool, error) {
		stamp, err := d.Stamp(deployment)
		switch {
		case errors.Is(err, ErrDamaged): // until it is replaced
			return false, nil
		case err != nil:
			return false, err
		case stamp == nil:
			stamp = NewStamp(deployment)
		}
		changed(stamp)
		return false, nil
	})
}
