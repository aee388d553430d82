package overlay

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// Base is what an overlay replaces at a path.
type Base struct {
	Commit   string `json:"commit,omitempty"` // that has it, "" where no commit does
	Checksum string `json:"checksum"`         // tells it apart from others; "" if nothing is there
}

// Manifest is what is known of a generation besides its tree.
type Manifest struct {
	Version int             `json:"version"`
	Bases   map[string]Base `json:"bases"` // what is replaced, by path
}

const manifestVersion = 1

// Manifest reads what is known of the generation that an overlay has.
func (s Store) Manifest(o Overlay) (*Manifest, error) {
	content, err := os.ReadFile(filepath.Join(s.Generation(o.Name, o.Generation), manifestName))
	if err == nil {
		var manifest *Manifest
		if manifest, err = parseManifest(content); err == nil {
			return manifest, nil
		}
		err = fmt.Errorf("%w: %w: restore the overlay from a backup", ErrDamaged, err)
	}
	return nil, fmt.Errorf("reading the manifest of overlay %s: %w", o.Name, err)
}

func parseManifest(content []byte) (*Manifest, error) {
	manifest := &Manifest{}
	if err := json.Unmarshal(content, manifest); err != nil {
		return nil, err
	}
	if manifest.Version != manifestVersion || manifest.Bases == nil {
		return nil, fmt.Errorf("it has version %d, this program knows %d", manifest.Version, manifestVersion)
	}
	return manifest, nil
}

// NewManifest is that of a generation with nothing in it.
func NewManifest() Manifest { return Manifest{Version: manifestVersion, Bases: map[string]Base{}} }

// Write writes it into the directory of a generation. What makes the generation durable does so for the manifest, too.
func (m Manifest) Write(dir string) error {
	content, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(dir, manifestName), append(content, '\n'), 0o600, renameio.WithTempDir(dir))
}
