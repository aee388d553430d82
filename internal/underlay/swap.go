package underlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
)

// assemble puts clones of what is mounted at the submounts into the overlay next. For that it has to be attached
// somewhere (mounting into a detached tree needs Linux 6.15), and to be moved from there later, that must be a private mount.
func (u Usr) assemble(next *os.File, submounts []string) error {
	if len(submounts) == 0 {
		return nil
	}
	clones, err := u.cloneAll(submounts)
	if err != nil {
		return err
	}
	defer beneath.CloseAll(clones)
	points, err := openMountPoints(next, u.Path, submounts, clones)
	if err != nil {
		return err
	}
	defer beneath.CloseAll(points)
	if err := mkdir(u.nextDir()); err != nil {
		return err
	}
	if err := moveMount(next, u.nextDir(), 0); err != nil {
		return err
	}
	for i, clone := range clones {
		flags := unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
		if err := unix.MoveMount(int(clone.Fd()), "", int(points[i].Fd()), "", flags); err != nil {
			return fmt.Errorf("carrying the mount at %s over: move_mount: %w", clone.Name(), err)
		}
	}
	return nil
}

// cloneAll clones what is mounted at the submounts, and below.
func (u Usr) cloneAll(submounts []string) (clones []*os.File, err error) {
	for _, submount := range submounts {
		clone, err := cloneTree(filepath.Join(u.Path, submount), true)
		if err != nil {
			beneath.CloseAll(clones)
			return nil, err
		}
		clones = append(clones, clone)
	}
	return clones, nil
}

// openMountPoints opens the places in a tree where mounts are to be attached, which are at path now. Each must be of the
// kind of its mount: a directory can only be mounted on a directory. No symbolic link is followed, since none was on the way to a mount point.
func openMountPoints(tree *os.File, path string, submounts []string, mounts []*os.File) (points []*os.File, err error) {
	for i, submount := range submounts {
		point, err := openMountPoint(tree, submount, mounts[i])
		if err != nil {
			beneath.CloseAll(points)
			return nil, fmt.Errorf("%s is a mount point, but cannot be one in the other tree: unmount it first (%w)", filepath.Join(path, submount), err)
		}
		points = append(points, point)
	}
	return points, nil
}

func openMountPoint(tree *os.File, submount string, mount *os.File) (*os.File, error) {
	fd, err := unix.Openat2(int(tree.Fd()), submount, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, err
	}
	point := os.NewFile(uintptr(fd), submount)
	pointMode, err := mode(point)
	mountMode, mountErr := mode(mount)
	if err := errors.Join(err, mountErr); err != nil {
		point.Close()
		return nil, err
	}
	if (pointMode == unix.S_IFDIR) != (mountMode == unix.S_IFDIR) || pointMode == unix.S_IFLNK {
		point.Close()
		return nil, errors.New("it is a file in one and a directory in the other")
	}
	return point, nil
}

// mode returns the kind of file: S_IFDIR and so on.
func mode(f *os.File) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("fstat %s: %w", f.Name(), err)
	}
	return st.Mode & unix.S_IFMT, nil
}

// attach shows the tree next at Path. It reports whether the tree before stays beneath.
func (u Usr) attach(next *os.File, now table) (stacked bool, err error) {
	if len(now.ours) > 0 && !u.noBeneath {
		err := u.swap(next, now)
		if !errors.Is(err, errNoBeneath) {
			return len(now.ours) > 1, err
		}
	}
	if err := moveMount(next, u.Path, 0); err != nil {
		return false, err
	}
	return len(now.ours) > 0, nil
}

var errNoBeneath = errors.New("the kernel cannot mount beneath")

// walkTime is what path lookups under way get to leave the old tree before it goes, if something is mounted in it. The kernel
// disconnects what is mounted in a tree that it detaches, and then a lookup that has just entered the old tree finds an empty mount point.
// Lookups usually notice the change and start again (Documentation/filesystems/path-lookup.rst, "RCU-walk"), but not those that the
// mounting beneath has made start again already. With readers that do nothing else, this was seen once in 400 swaps without
// the pause, and not in 9,000 with it.
const walkTime = time.Millisecond

// swap mounts the tree next beneath the visible one, then detaches that: whoever looks up a path sees one tree or the other.
//
// A kill in between leaves both. Two overlays of ours are also what a kernel leads to that cannot mount beneath, and there it is
// the lower one that is outdated. So a note says what is under way: how many overlays there were before.
func (u Usr) swap(next *os.File, now table) error {
	before, err := identify(unix.AT_FDCWD, u.Path)
	if err != nil {
		return err
	}
	if err := u.noteSwap(len(now.ours)); err != nil {
		return err
	}
	if err := moveMount(next, u.Path, moveMountBeneath); err != nil {
		if noteErr := removeIfThere(u.swapNote()); noteErr != nil {
			return noteErr
		}
		if errors.Is(err, unix.EINVAL) {
			return errNoBeneath
		}
		return err
	}
	after, err := identify(unix.AT_FDCWD, u.Path)
	if err != nil {
		return err
	}
	if before != after {
		return fmt.Errorf("something was mounted on %s during the swap", u.Path)
	}
	if len(now.submounts(now.visible)) > 0 {
		time.Sleep(walkTime)
	}
	if err := unmount(u.Path); err != nil {
		return err
	}
	return removeIfThere(u.swapNote())
}

// resumeSwap ends a swap that was cut short between its two steps, in favour of the new tree, which is complete by then.
func (u Usr) resumeSwap() error {
	text, err := os.Readlink(u.swapNote())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	before, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("%s says %q, not a number", u.swapNote(), text)
	}
	now, err := u.look()
	if err != nil {
		return err
	}
	if len(now.ours) == before+1 {
		if err := now.refuseCovered(); err != nil {
			return err
		}
		if err := u.collapse(now, before); err != nil {
			return err
		}
	}
	return removeIfThere(u.swapNote())
}

func (u Usr) swapNote() string { return filepath.Join(u.Private, "swapping") }

// noteSwap writes the note as the target of a symbolic link: there is no instant at which it is there and empty.
func (u Usr) noteSwap(overlays int) error {
	if err := removeIfThere(u.swapNote()); err != nil {
		return err
	}
	return os.Symlink(strconv.Itoa(overlays), u.swapNote())
}
