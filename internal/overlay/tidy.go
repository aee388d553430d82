package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
)

// Tidy deletes what no overlay of the index has: generations, unless used, by their directories' Path, says that something still shows them,
// and what was being built when it was killed. Nobody else may change the store meanwhile.
func (s Store) Tidy(used func(generation string) bool) error {
	if err := s.tidy(used); err != nil {
		return fmt.Errorf("deleting old content of overlays: %w", err)
	}
	return nil
}

func (s Store) tidy(used func(string) bool) error {
	index, err := s.Index()
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		switch name := entry.Name(); {
		case entry.IsDir() && CheckName(name) == nil:
			err = s.tidyOverlay(name, index.Find(name), used)
		case strings.HasPrefix(name, "."+IndexName): // of renameio, for a new index
			err = os.Remove(filepath.Join(s.Dir, name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tidyOverlay does that for one name; o is nil if the index has no such overlay any more.
func (s Store) tidyOverlay(name string, o *Overlay, used func(string) bool) error {
	dir := filepath.Join(s.Dir, name)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		number, err := strconv.Atoi(strings.TrimSuffix(entry.Name(), building))
		if err != nil || !entry.IsDir() {
			continue // not of this program
		}
		isWhole := !strings.HasSuffix(entry.Name(), building)
		if isWhole && (o != nil && o.Generation == number || used(filepath.Join(s.Path, name, entry.Name()))) {
			continue
		}
		if err := s.drop(dir, number, isWhole); err != nil {
			return err
		}
	}
	if o != nil && o.Generation > 0 {
		return nil
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// drop deletes a generation, under a name of its own: one that has its name is whole.
func (s Store) drop(dir string, number int, isWhole bool) error {
	whole := filepath.Join(dir, strconv.Itoa(number))
	if isWhole {
		if err := os.Rename(whole, whole+building); err != nil {
			return err
		}
	}
	return beneath.Remove(whole + building)
}
