package phase

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/partial"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/underlay"
)

// A layer is <backing>/liveapply/layers/<commit>/: the overlayfs layer in tree, and beside it manifest.json. It is built
// under another name, so a layer that has its name is whole. It never changes after that.
const (
	layersName      = "layers"
	layerTree       = "tree"
	manifestFile    = "manifest.json"
	manifestVersion = 1
)

// manifest says what a layer is, for those who find it later.
type manifest struct {
	Version int             `json:"version"`
	Booted  ostree.Checksum `json:"booted"` // what it is made to lie on
	Commit  ostree.Checksum `json:"commit"` // what it makes of that
	Reload  impact.Reload   `json:"reload"` // what has to be reloaded when it comes or goes

	// What the stamp says of it, should that be lost.
	Partial        *partial.About  `json:"partial,omitempty"`
	Previous       ostree.Checksum `json:"previous"`
	Prepared       time.Time       `json:"prepared"`
	Transient      bool            `json:"transient"`
	RebootRequired []string        `json:"reboot_required"`
}

// newManifest describes the layer of a plan.
func newManifest(plan *state.Plan, reload impact.Reload) manifest {
	return manifest{
		Version: manifestVersion, Booted: plan.Booted, Commit: plan.Live, Partial: plan.Partial, Reload: reload,
		Previous: plan.From, Prepared: time.Now().UTC().Truncate(time.Second), Transient: plan.Transient, RebootRequired: plan.Impact.RebootRequired,
	}
}

func (s *storage) layersDir() string { return filepath.Join(s.dir, layersName) }

func (s *storage) layerDir(commit ostree.Checksum) string {
	return filepath.Join(s.layersDir(), commit.String())
}

// layerDir is where the layer of a commit is for all processes.
func (m *Machine) layerDir(commit ostree.Checksum) string {
	return filepath.Join(physicalRoot, m.Booted.BackingPath(), "liveapply", layersName, commit.String())
}

// layersOf returns what makes the booted tree a commit's, top first, by the path that all processes can use: it is what the
// mount table should show.
func (m *Machine) layersOf(commit ostree.Checksum) []string {
	if commit == m.Booted.Commit {
		return nil
	}
	return []string{filepath.Join(m.layerDir(commit), layerTree)}
}

// writeManifest replaces the manifest beside a layer.
func writeManifest(dir string, m manifest) error {
	content, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("writing the layer's manifest: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(dir, manifestFile), append(content, '\n'), 0o600, renameio.WithTempDir(dir)); err != nil {
		return fmt.Errorf("writing the layer's manifest: %w", err)
	}
	return nil
}

// manifest reads the manifest of a commit's layer.
func (m *Machine) manifest(commit ostree.Checksum) (*manifest, error) {
	path := filepath.Join(m.layerDir(commit), manifestFile)
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest of a layer: %w", err)
	}
	about := &manifest{}
	if err := json.Unmarshal(content, about); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	if about.Version != manifestVersion || about.Commit != commit {
		return nil, fmt.Errorf("%s is damaged: it does not speak of commit %s", path, commit)
	}
	return about, nil
}

// reloadOf tells what has to be reloaded when the layer of a commit comes or goes: all, if that is no longer known.
func (m *Machine) reloadOf(commit ostree.Checksum) impact.Reload {
	about, err := m.manifest(commit)
	if err != nil {
		warn("%v; reloading everything", err)
		return impact.ReloadAll
	}
	return about.Reload
}

// dropLayers deletes the layers that nothing has mounted, but for that of keep, and what a killed prepare left.
func (s *storage) dropLayers(keep ostree.Checksum) error {
	layers, err := os.ReadDir(s.layersDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("dropping old layers: %w", err)
	}
	mounted, err := underlay.MountedSources()
	if err != nil {
		return err
	}
	for _, entry := range layers {
		commit := strings.TrimSuffix(entry.Name(), ".new")
		isMounted := slices.ContainsFunc(mounted, func(source underlay.Source) bool { return source.Live == commit })
		if commit == keep.String() && commit == entry.Name() || isMounted {
			continue
		}
		gone := filepath.Join(s.layersDir(), commit+".new")
		if entry.Name() == commit {
			// A name of its own while it goes: a layer with its name is whole.
			if err := os.Rename(filepath.Join(s.layersDir(), commit), gone); err != nil {
				return fmt.Errorf("dropping old layers: %w", err)
			}
		}
		if err := beneath.Remove(gone); err != nil {
			return err
		}
	}
	return nil
}

// tidy removes the directories of the booted deployment that have nothing in them any more.
func (s *storage) tidy() error {
	pending, err := etcmerge.Pending(s.etcDirs())
	if err != nil && !errors.Is(err, etcmerge.ErrDamaged) {
		return err
	}
	if err == nil && !pending { // with a damaged one, it is not known
		for _, dir := range []string{s.etcDirs().Store, filepath.Join(s.dir, ownEtcName), filepath.Join(s.dir, settledName)} {
			if err := beneath.Remove(dir); err != nil {
				return err
			}
		}
	}
	return removeEmpty(s.layersDir(), s.dir, filepath.Dir(s.dir))
}

// removeEmpty removes directories in which nothing is any more: <backing>/liveapply, <backing>. libostree has its own files there for deployments with a
// transient root. Their parent stays: libostree makes it when it stages a deployment, and needs it to finalize that.
func removeEmpty(dirs ...string) error {
	for _, dir := range dirs {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("removing what is no longer needed: %w", err)
		}
	}
	return nil
}
