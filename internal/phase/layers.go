package phase

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/layer"
	"github.com/liveapply/liveapply/internal/ostree"
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
	Reload  state.Reload    `json:"reload"` // what has to be reloaded when it comes or goes
}

func (s *storage) layersDir() string { return filepath.Join(s.dir, layersName) }

func (s *storage) layerDir(commit ostree.Checksum) string {
	return filepath.Join(s.layersDir(), commit.String())
}

// layersOf returns what makes the booted tree a commit's, top first, by the path that all processes can use: it is what the
// mount table should show.
func (m *Machine) layersOf(commit ostree.Checksum) []string {
	if commit == m.Booted.Commit {
		return nil
	}
	return []string{filepath.Join(physicalRoot, m.Booted.BackingPath(), "liveapply", layersName, commit.String(), layerTree)}
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
func (s *storage) manifest(commit ostree.Checksum) (*manifest, error) {
	path := filepath.Join(s.layerDir(commit), manifestFile)
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest of the live layer: %w", err)
	}
	m := &manifest{}
	if err := json.Unmarshal(content, m); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): reset with liveapplyctl reset, then apply again", path, err)
	}
	return m, nil
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
		if commit == keep.String() && commit == entry.Name() || mounted[underlay.SourcePrefix+commit] {
			continue
		}
		gone := filepath.Join(s.layersDir(), commit+".new")
		if entry.Name() == commit {
			// A name of its own while it goes: a layer with its name is whole.
			if err := os.Rename(filepath.Join(s.layersDir(), commit), gone); err != nil {
				return fmt.Errorf("dropping old layers: %w", err)
			}
		}
		if err := layer.Remove(gone); err != nil {
			return err
		}
	}
	return nil
}

// tidy removes the directories of the booted deployment that have nothing in them any more.
func (s *storage) tidy() error {
	pending, err := etcmerge.Pending(s.etcDirs())
	if err != nil {
		return err
	}
	if !pending {
		if err := layer.Remove(s.etcDirs().Store); err != nil {
			return err
		}
	}
	return removeEmpty(s.layersDir(), s.dir, filepath.Dir(s.dir), filepath.Dir(filepath.Dir(s.dir)))
}

// removeEmpty removes directories in which nothing is any more: <backing>/liveapply, <backing>, its parent. libostree has its own
// files there for deployments with a transient root.
func removeEmpty(dirs ...string) error {
	for _, dir := range dirs {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("removing what is no longer needed: %w", err)
		}
	}
	return nil
}
