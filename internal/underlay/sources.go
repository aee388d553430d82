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
	err := eachNamespace(areOverlays, func(_ string, overlays []*mountinfo.Info) error {
		for _, mount := range overlays {
			if source, ok := ParseSource(mount.Source); ok {
				sources[mount.Source] = source
			}
		}
		return nil
	})
	return slices.Collect(maps.Values(sources)), err
}

// IsMountedBelow tells whether something is mounted below a directory in the mount namespace of any process.
func IsMountedBelow(dir string) (found bool, err error) {
	err = eachNamespace(mountinfo.PrefixFilter(dir), func(_ string, mounts []*mountinfo.Info) error {
		found = found || len(mounts) > 0
		return nil
	})
	return found, err
}

var areOverlays = mountinfo.FSTypeFilter("overlay")

// eachNamespace calls f for the mount namespace of each process once: with the path of a file in /proc that stands for it, and with the mounts
// there that a filter leaves.
func eachNamespace(filter mountinfo.FilterFunc, f func(namespace string, mounts []*mountinfo.Info) error) error {
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
		mounts, err := mountsIn(table, filter)
		if hasEnded(err) {
			continue // others may be in the same namespace
		}
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

// ownMounts is the table of the calling thread, not of the process: see InMountNamespace.
const ownMounts = "/proc/thread-self/mountinfo"

// mountsIn reads a mount table. filter may be nil.
func mountsIn(table string, filter mountinfo.FilterFunc) ([]*mountinfo.Info, error) {
	file, err := os.Open(table)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return mountinfo.GetMountsFromReader(file, filter)
}

// hasEnded tells whether an error of reading a file in /proc is that the process has ended. For one that has no namespace any more, the kernel
// answers EINVAL.
func hasEnded(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESRCH)
}
