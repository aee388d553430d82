package underlay

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// MountedSources returns the sources of all our overlays that are mounted in the mount namespace of any process. A layer of a commit that is
// Live in none of them, or of overlays whose Digest is in none, can be deleted: what still runs on a detached mount has its files open, and those
// stay.
func MountedSources() ([]Source, error) {
	tables, err := filepath.Glob("/proc/[0-9]*/mountinfo")
	if err != nil {
		return nil, err
	}
	sources := map[string]Source{}
	seen := map[string]bool{}
	for _, table := range tables {
		namespace, err := os.Readlink(filepath.Join(filepath.Dir(table), "ns/mnt"))
		if err != nil || seen[namespace] {
			continue // the process has ended, or is a kernel thread
		}
		mounts, err := overlays(table)
		if err != nil {
			return nil, fmt.Errorf("reading the mounts of other processes: %s: %w", table, err)
		}
		for _, mount := range mounts {
			if source, ok := ParseSource(mount.Source); ok {
				sources[mount.Source] = source
			}
		}
		seen[namespace] = true
	}
	return slices.Collect(maps.Values(sources)), nil
}

// overlays reads a mount table; that of a process which ends meanwhile is empty (the kernel answers EINVAL once it has no
// namespace left).
func overlays(table string) ([]*mountinfo.Info, error) {
	file, err := os.Open(table)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return mountinfo.GetMountsFromReader(file, mountinfo.FSTypeFilter("overlay"))
}
