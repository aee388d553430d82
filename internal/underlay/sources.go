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
	sources := map[string]Source{}
	err := eachNamespace(func(_ string, overlays []*mountinfo.Info) error {
		for _, mount := range overlays {
			if source, ok := ParseSource(mount.Source); ok {
				sources[mount.Source] = source
			}
		}
		return nil
	})
	return slices.Collect(maps.Values(sources)), err
}

// eachNamespace calls f for the mount namespace of each process once: with the path of a file in /proc that stands for it, and with the overlays
// that are mounted there.
func eachNamespace(f func(namespace string, overlays []*mountinfo.Info) error) error {
	tables, err := filepath.Glob("/proc/[0-9]*/mountinfo")
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, table := range tables {
		file := filepath.Join(filepath.Dir(table), "ns/mnt")
		namespace, err := os.Readlink(file)
		if err != nil || seen[namespace] {
			continue // the process has ended, or is a kernel thread
		}
		mounts, err := overlays(table)
		if err != nil {
			return fmt.Errorf("reading the mounts of other processes: %s: %w", table, err)
		}
		if err := f(file, mounts); err != nil {
			return err
		}
		seen[namespace] = true
	}
	return nil
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
