package machine

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

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/partial"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/underlay"
)

// A layer is <backing>/liveapply/layers/<commit>/: the overlayfs layer in tree, and beside it manifest.json. It is built
// under another name, so a layer that has its name is whole. It never changes after that.
const (
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
	Units   []string        `json:"units"`  // whose files differ from the booted ones

	// What the stamp says of it, should that be lost.
	Partial        *partial.About  `json:"partial,omitempty"`
	Previous       ostree.Checksum `json:"previous"`
	Prepared       time.Time       `json:"prepared"`
	Transient      bool            `json:"transient"`
	RebootRequired []string        `json:"reboot_required"`
}

// LayersDir is where the layers of the booted deployment are, through the view.
func (s *Storage) LayersDir() string { return filepath.Join(s.Dir, layersName) }

// LayerDir is where that of a commit is, or is going to be.
func (s *Storage) LayerDir(commit ostree.Checksum) string {
	return filepath.Join(s.LayersDir(), commit.String())
}

// layerDir is where the layer of a commit is for all processes.
func (m *Machine) layerDir(commit ostree.Checksum) string {
	return filepath.Join(PhysicalRoot, m.Booted.BackingPath(), "liveapply", layersName, commit.String())
}

// LayersOf returns what makes the booted tree a commit's, top first, by the path that all processes can use: it is what the
// mount table should show.
func (m *Machine) LayersOf(commit ostree.Checksum) []string {
	if commit == m.Booted.Commit {
		return nil
	}
	return []string{filepath.Join(m.layerDir(commit), layerTree)}
}

// BuildLayer makes the layer of a plan, aside, and moves it to its place when it is whole. One that is there already is whole, then, and may be in use: it is
// what an earlier application of the same commit made, and only its manifest is replaced. reload is what has to be reloaded when it comes or goes, units are those whose
// files differ from the booted ones; build makes the tree.
func (s *Storage) BuildLayer(plan *state.Plan, reload impact.Reload, units []string, build func(tree string) error) error {
	about := manifest{
		Version: manifestVersion, Booted: plan.Booted, Commit: plan.Live, Partial: plan.Partial, Reload: reload, Units: units,
		Previous: plan.From, Prepared: time.Now().UTC().Truncate(time.Second), Transient: plan.Transient, RebootRequired: plan.Impact.RebootRequired,
	}
	dir := s.LayerDir(plan.Live)
	if _, err := os.Lstat(dir); err == nil {
		return about.write(dir)
	}
	aside := dir + ".new"
	if err := beneath.Remove(aside); err != nil {
		return err
	}
	if err := os.MkdirAll(aside, 0o700); err != nil { // and, the first time, the directory of the booted deployment
		return fmt.Errorf("building the layer: %w", err)
	}
	if err := build(filepath.Join(aside, layerTree)); err != nil {
		return err
	}
	if err := about.write(aside); err != nil {
		return err
	}
	if err := os.Rename(aside, dir); err != nil {
		return fmt.Errorf("building the layer: %w", err)
	}
	return nil
}

// write replaces the manifest beside a layer.
func (m manifest) write(dir string) error {
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

// ReloadOf tells what has to be reloaded when the layer of a commit comes or goes: all, if that is no longer known.
func (m *Machine) ReloadOf(commit ostree.Checksum) impact.Reload {
	about, err := m.manifest(commit)
	if err != nil {
		report.Warn("%v; reloading everything", err)
		return impact.ReloadAll
	}
	return about.Reload
}

// UnitsOf are the units whose files a commit has otherwise than the booted one; none if that is not known.
func (m *Machine) UnitsOf(commit ostree.Checksum) []string {
	about, err := m.manifest(commit)
	if err != nil {
		return nil
	}
	return about.Units
}

// DropLayers deletes the layers that nothing has mounted, but for that of keep, and what a killed prepare left.
func (s *Storage) DropLayers(keep ostree.Checksum) error {
	layers, err := os.ReadDir(s.LayersDir())
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
		gone := filepath.Join(s.LayersDir(), commit+".new")
		if entry.Name() == commit {
			// A name of its own while it goes: a layer with its name is whole.
			if err := os.Rename(filepath.Join(s.LayersDir(), commit), gone); err != nil {
				return fmt.Errorf("dropping old layers: %w", err)
			}
		}
		if err := beneath.Remove(gone); err != nil {
			return err
		}
	}
	return nil
}
