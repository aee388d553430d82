package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
)

// In a store's directory there is the index, and a directory for each overlay. In that, a generation is <number>/: its content in tree, and beside
// it the manifest. It is built under another name, so one that has its name is whole. In the generation of a writable overlay, tree/usr is
// the upper directory, and work is beside tree.
const (
	IndexName    = "overlays.json"
	TreeName     = "tree"
	WorkName     = "work"
	manifestName = "manifest.json"
	building     = ".new"
)

// Store is a directory that holds overlays.
type Store struct {
	Dir  string // by which this process reads and writes it
	Path string // by which all processes can read it: what is mounted is named by this
}

// ErrDamaged tells that an index or a manifest is not as it was written.
var ErrDamaged = errors.New("the file is damaged")

// Index reads the store's index. Without one, there are no overlays.
func (s Store) Index() (*Index, error) {
	content, err := os.ReadFile(filepath.Join(s.Dir, IndexName))
	if errors.Is(err, fs.ErrNotExist) {
		return &Index{Version: indexVersion}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the overlays: %w", err)
	}
	index, err := parseIndex(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w (%w): move it away and restore the overlays from their backups", filepath.Join(s.Path, IndexName), ErrDamaged, err)
	}
	return index, nil
}

func parseIndex(content []byte) (*Index, error) {
	index := &Index{}
	if err := json.Unmarshal(content, index); err != nil {
		return nil, err
	}
	return index, index.check()
}

// Write replaces the index: all that it says is true from then on, also after a power cut. What it names has to be on disk before.
func (s Store) Write(index *Index) error {
	content, err := json.MarshalIndent(index, "", "  ")
	if err == nil {
		err = os.MkdirAll(s.Dir, 0o755)
	}
	if err == nil {
		err = renameio.WriteFile(filepath.Join(s.Dir, IndexName), append(content, '\n'), 0o644, renameio.WithTempDir(s.Dir))
	}
	if err == nil {
		err = syncDir(s.Dir)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Join(s.Path, IndexName), err)
	}
	return nil
}

func syncDir(dir string) error {
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Sync()
}

// Generation is the directory of an overlay's content, for this process.
func (s Store) Generation(name string, number int) string {
	return filepath.Join(s.Dir, name, strconv.Itoa(number))
}

// NextGeneration returns a number that no generation of the name has, also none that was left half made.
func (s Store) NextGeneration(name string) (int, error) {
	entries, err := os.ReadDir(filepath.Join(s.Dir, name))
	if err != nil {
		return 0, err
	}
	next := 1
	for _, entry := range entries {
		if number, err := strconv.Atoi(strings.TrimSuffix(entry.Name(), building)); err == nil && number >= next {
			next = number + 1
		}
	}
	return next, nil
}

// Building is the directory of a generation while it is made.
func (s Store) Building(name string, number int) string { return s.Generation(name, number) + building }

// Complete gives a generation its name. All that it has must be on disk.
func (s Store) Complete(name string, number int) error {
	if err := os.Rename(s.Building(name, number), s.Generation(name, number)); err != nil {
		return err
	}
	return syncDir(filepath.Join(s.Dir, name))
}

// Tree is where an overlay has its content, by the path that all processes can use; "" if it has none.
func (s Store) Tree(o Overlay) string {
	if o.Generation == 0 {
		return ""
	}
	return filepath.Join(s.Path, o.Name, strconv.Itoa(o.Generation), TreeName)
}

// Upper is the directory into which goes what is written to /usr through a writable overlay.
func (s Store) Upper(o Overlay) string { return filepath.Join(s.Tree(o), "usr") }

// Work is what overlayfs needs beside Upper.
func (s Store) Work(o Overlay) string { return filepath.Join(filepath.Dir(s.Tree(o)), WorkName) }
