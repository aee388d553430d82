// Package layer makes directories in overlayfs layer format: what differs between two trees of a repo, to be mounted
// above the older one. File objects are linked, not copied: in a bare repo they carry owner, mode and xattrs. What is removed
// becomes a whiteout. The format is Documentation/filesystems/overlayfs.rst in Linux, "whiteouts and opaque directories".
package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/treediff"
)

// overlayXattrs starts the names of the xattrs by which overlayfs keeps its own notes. It acts on them and hides them, so a
// tree that has them in its content cannot be shown through a layer.
const overlayXattrs = "trusted.overlay."

// Stats tells what a layer consists of.
type Stats struct {
	Links       int // to file objects, symbolic links among them
	Directories int // the layer itself included
	Whiteouts   int
	Copies      int   // of file objects that could not be linked
	CopiedBytes int64 // of file content; shared with the repo where the filesystem can
}

// Build makes the layer of a diff in the new directory dir, on the repo's filesystem and, for link(2), reached through
// the same mount as the repo. The first change must be that of the root, whose new dirmeta the layer carries: so has every list of Diff
// that is not empty.
//
// Directories get owner, mode and xattrs of their dirmetas, and the modification time 0, as libostree's checkout leaves them. A file
// object that cannot be linked (too many links, another filesystem) is copied. Nothing is synced, since a layer is not needed after a
// reboot. On an error, and when ctx ends, dir is removed again; a kill leaves it incomplete. Messages name it without its directory. progress tells how far it is; it is for one Build.
func Build(ctx context.Context, repo *ostree.Repo, changes []treediff.Change, dir string, progress *Progress) (Stats, error) {
	if len(changes) == 0 || changes[0].Path != "" || changes[0].New.Kind != ostree.KindDirectory {
		return Stats{}, fmt.Errorf("layer %s: the list of changes does not start with that of the root directory", filepath.Base(dir))
	}
	if err := unix.Mkdir(dir, 0o700); err != nil {
		return Stats{}, fmt.Errorf("layer %s: mkdir: %w", filepath.Base(dir), err)
	}
	stats, err := build(ctx, repo, changes, dir, progress)
	if err != nil {
		return Stats{}, errors.Join(fmt.Errorf("layer %s: %w", filepath.Base(dir), err), beneath.Remove(dir))
	}
	return stats, nil
}

// Size is an amount of space on a filesystem.
type Size struct {
	Inodes int
	Bytes  int64
}

// Need returns an upper estimate of what Build takes for the changes. It does not count file objects that cannot be linked.
func Need(changes []treediff.Change) Size {
	const block = 4096
	need := Size{Inodes: 1, Bytes: block} // the whiteouts are one inode
	names := map[string]int64{}           // bytes taken by the names in a directory
	for _, change := range changes {
		if change.New.Kind == ostree.KindDirectory {
			need.Inodes++
			need.Bytes += 2 * block // its entries and its xattrs
		}
		dir, name := filepath.Split(change.Path)
		names[dir] += 12 + int64(len(name)) // struct ext4_dir_entry_2, rounded up
	}
	for _, bytes := range names {
		need.Bytes += 2 * bytes / block * block // a block that was split is half empty
	}
	return need
}

// Keep returns the changes without those that concern path, a file or directory in the old tree, and everything below: it stays as it was, and
// what the new tree has there stays away. Directories on the way to it stay directories, with
// their old dirmeta, though nothing else of what the new tree does not have remains in them. If the old tree has no such path, nothing is left out.
func Keep(changes []treediff.Change, path string) ([]treediff.Change, error) {
	if path == "." || !fs.ValidPath(path) {
		return nil, fmt.Errorf("cannot keep %q: it is not the path of something in a tree", path)
	}
	at := func(c treediff.Change) bool { return c.Path == path }
	if i := indexFunc(changes, at); i < 0 || changes[i].Old.Kind == ostree.KindNone {
		return changes, nil
	}
	var kept []treediff.Change
	for _, change := range changes {
		switch {
		case treediff.Within(change.Path, path):
			continue
		case treediff.Within(path, change.Path) && change.New.Kind != ostree.KindDirectory:
			change.New = change.Old
		}
		kept = append(kept, change)
	}
	return kept, nil
}

func indexFunc(changes []treediff.Change, f func(treediff.Change) bool) int {
	for i, change := range changes {
		if f(change) {
			return i
		}
	}
	return -1
}
