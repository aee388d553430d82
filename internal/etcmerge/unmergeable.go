package etcmerge

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ReplacedDirectories are the paths, relative to /etc, at which the defaults of the booted tree have a directory, and /etc something else. libostree cannot
// merge such an /etc into a tree that has a directory there (copy_modified_config_file), also where nothing changes in it.
func ReplacedDirectories(defaults, etc string) (paths []string, err error) {
	err = filepath.WalkDir(defaults, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() || path == defaults {
			return err
		}
		rel, err := filepath.Rel(defaults, path)
		if err != nil {
			return err
		}
		info, err := os.Lstat(filepath.Join(etc, rel))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fs.SkipDir
		case err != nil:
			return err
		case info.IsDir():
			return nil
		}
		paths = append(paths, rel)
		return fs.SkipDir
	})
	if err != nil {
		return nil, fmt.Errorf("comparing /etc with its defaults: %w", err)
	}
	return paths, nil
}
