package underlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
)

// The carry directory holds what is mounted differently below the visible tree and below the one that a collapse uncovers:
//
//	<n>.path  symbolic link, in the order of the mount points: the mount point below Path (its length is not limited by a file name's)
//	<n>       a clone of what is to be mounted there; absent where the visible tree has nothing mounted
//	ready     symbolic link: the number of overlays to be left; from here on, the clones are the only ones
func (u Usr) carryDir() string  { return filepath.Join(u.Private, "carry") }
func (u Usr) readyNote() string { return filepath.Join(u.carryDir(), "ready") }

// collapse detaches our overlays but the lowest n, and makes what is mounted below the tree that appears the same as it was below
// the tree that was visible.
func (u Usr) collapse(now table, n int) error {
	uncovered := now.base
	if n > 0 {
		uncovered = now.ours[n-1]
	}
	differing := now.differing(now.visible, uncovered)
	if len(differing) == 0 {
		return u.uncoverTo(n)
	}
	if err := u.ensurePrivate(); err != nil {
		return err
	}
	if err := u.checkMountPoints(now, n, differing); err != nil {
		return err
	}
	if err := u.stageCarried(now, differing); err != nil {
		return err
	}
	if err := os.Symlink(strconv.Itoa(n), u.readyNote()); err != nil {
		return err
	}
	return u.resumeCollapse()
}

// differing lists the submounts that are not the same in two of the trees at Path.
func (t table) differing(a, b *mountinfo.Info) []string {
	points := append(t.submounts(a), t.submounts(b)...)
	slices.Sort(points)
	return slices.DeleteFunc(slices.Compact(points), func(point string) bool {
		return slices.Equal(t.describe(a, point), t.describe(b, point))
	})
}

// checkMountPoints finds out whether what is to be mounted in the tree that a collapse uncovers can be. It looks into that in a mount namespace
// in which it is uncovered already.
func (u Usr) checkMountPoints(now table, n int, differing []string) error {
	visible := now.submounts(now.visible)
	carried := slices.DeleteFunc(slices.Clone(differing), func(s string) bool { return !slices.Contains(visible, s) })
	mounts, err := u.cloneAll(carried)
	if err != nil {
		return err
	}
	defer beneath.CloseAll(mounts)
	return InMountNamespace(func() error {
		if err := u.uncoverTo(n); err != nil {
			return err
		}
		for _, submount := range differing {
			if err := unmountAll(filepath.Join(u.Path, submount)); err != nil {
				return err
			}
		}
		tree, err := openMount(u.Path)
		if err != nil {
			return err
		}
		defer tree.Close()
		points, err := openMountPoints(tree, u.Path, carried, mounts)
		beneath.CloseAll(points)
		return err
	})
}

// uncoverTo detaches our overlays but the lowest n.
func (u Usr) uncoverTo(n int) error {
	for {
		now, err := u.look()
		if err != nil || len(now.ours) <= n {
			return err
		}
		if err := unmount(u.Path); err != nil {
			return err
		}
	}
}

func (u Usr) stageCarried(now table, submounts []string) error {
	if err := mkdir(u.carryDir()); err != nil {
		return err
	}
	visible := now.submounts(now.visible)
	for i, submount := range submounts {
		place := filepath.Join(u.carryDir(), fmt.Sprintf("%06d", i))
		if err := os.Symlink(submount, place+".path"); err != nil {
			return err
		}
		if !slices.Contains(visible, submount) {
			continue
		}
		if err := stageClone(filepath.Join(u.Path, submount), place); err != nil {
			return err
		}
	}
	return nil
}

func stageClone(mounted, place string) error {
	clone, err := cloneTree(mounted, true)
	if err != nil {
		return err
	}
	defer clone.Close()
	if err := makeMountPoint(mounted, place); err != nil {
		return err
	}
	return moveMount(clone, place, 0)
}

// makeMountPoint creates a file or directory on which what is mounted at the path mounted can be mounted.
func makeMountPoint(mounted, place string) error {
	var st unix.Stat_t
	if err := unix.Lstat(mounted, &st); err != nil {
		return fmt.Errorf("lstat %s: %w", mounted, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.Mkdir(place, 0o700)
	}
	return os.WriteFile(place, nil, 0o600)
}

// resumeCollapse goes on with a collapse from the moment at which its note was written. If there is carried material without
// a note, then nothing was detached yet, and it is dropped.
func (u Usr) resumeCollapse() error {
	text, err := os.Readlink(u.readyNote())
	if errors.Is(err, os.ErrNotExist) {
		return u.dropCarried()
	}
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("%s says %q, not a number", u.readyNote(), text)
	}
	if err := u.uncoverTo(n); err != nil {
		return err
	}
	if err := u.moveCarried(); err != nil {
		return err
	}
	return u.dropCarried()
}

// moveCarried puts the mounts where they belong. What is mounted there is in the way; once it is replaced, the place in
// the carry directory is empty.
func (u Usr) moveCarried() error {
	links, err := filepath.Glob(filepath.Join(u.carryDir(), "*.path"))
	if err != nil {
		return err
	}
	for _, link := range links {
		submount, err := os.Readlink(link)
		if err != nil {
			return err
		}
		if err := moveOne(link[:len(link)-len(".path")], filepath.Join(u.Path, submount)); err != nil {
			return err
		}
	}
	return nil
}

func moveOne(place, target string) error {
	_, err := os.Lstat(place)
	if errors.Is(err, os.ErrNotExist) {
		return unmountAll(target)
	}
	if err != nil {
		return err
	}
	mounted, err := isMountPoint(place)
	if err != nil || !mounted {
		return err
	}
	if err := unmountAll(target); err != nil {
		return err
	}
	carried, err := openMount(place)
	if err != nil {
		return err
	}
	defer carried.Close()
	return moveMount(carried, target, 0)
}

// dropCarried removes the carry directory; the note first, so that half a directory is never taken for a whole one.
func (u Usr) dropCarried() error {
	if err := removeIfThere(u.readyNote()); err != nil {
		return err
	}
	entries, err := os.ReadDir(u.carryDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := filepath.Join(u.carryDir(), entry.Name())
		if err := unmountAll(path); err != nil {
			return err
		}
		if err := removeIfThere(path); err != nil {
			return err
		}
	}
	return removeIfThere(u.carryDir())
}
