// Package underlay shows another tree at /usr: an overlayfs, its layers above the booted /usr, as a rule read-only and without upper
// directory. It composes that overlay, tries it, swaps it for the one before, tells what is mounted, and takes it away.
//
// The mount table is the only truth: the overlay says in its source what it shows. Beside it there is one private
// directory with what a switch needs, and with notes that exist only while a step is under way, so that the next call can
// finish or undo what a kill cut short. Every call looks at what is there before each step, and can be repeated.
//
// All of it uses the mount API of file descriptors (Linux 5.12: fsopen(2), open_tree(2), mount_setattr(2)). Two of its
// parts are younger, and have a substitute: MOVE_MOUNT_BENEATH (6.5) and lowerdir+ (6.8).
package underlay

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Usr is where the overlay is mounted. Both are absolute paths without symbolic links.
type Usr struct {
	// Path is the mount point, /usr. It need not be a mount point itself before the first switch.
	Path string

	// Private is a directory that becomes a private bind mount of itself, so that nothing mounted in it propagates.
	// In it are, while something is live:
	//
	//	booted     the booted /usr, without what is mounted below it
	//	next       where an overlay is assembled before it goes to Path (only during a switch)
	//	swapping   a note: see swap (only during a switch)
	//	frozen     a note: see freeze (only while a tree goes that can be written)
	//	carry/     mounts to be moved, and a note: see carry (only during a detach)
	Private string

	noBeneath     bool // as on a kernel before 6.5
	noLowerdirAdd bool // as on a kernel before 6.8
}

// Switched tells how a switch was done.
type Switched struct {
	// Stacked: the tree before is still mounted, covered, because the kernel cannot mount beneath. It stays until Detach.
	Stacked bool
	// Carried are the mounts below Path that were taken along, relative to it, each with all that is mounted below it.
	Carried []string
}

// Switch shows a new tree at Path: a stack of layers above the booted tree. It appears with all mounts below Path in it and the
// attributes (ro, nosuid, …) of the one before, in one step. One with an upper directory can be written by who is in this mount namespace, or in one that is made of it later; if the one before
// can, then nobody can write until the step is done. Who has files or directories of the old one open keeps them, though not the way from there to what was
// mounted in it. After an error the old tree is still shown.
//
// It refuses when something that is not ours covers the booted /usr, when a mount point below Path does not exist in the new
// tree, and when the kernel refuses the overlay. A mount that somebody makes below Path during the switch can be lost.
func (u Usr) Switch(stack Stack) (Switched, error) {
	done, err := u.switchTo(stack)
	if err != nil {
		return Switched{}, fmt.Errorf("switching %s to %s: %w", u.Path, stack.Source, err)
	}
	return done, nil
}

func (u Usr) switchTo(stack Stack) (Switched, error) {
	if err := stack.check(); err != nil {
		return Switched{}, err
	}
	if err := u.settle(); err != nil {
		return Switched{}, err
	}
	now, err := u.look()
	if err != nil {
		return Switched{}, err
	}
	if err := now.refuseOthers(); err != nil {
		return Switched{}, err
	}
	if err := u.ensurePrivate(); err != nil {
		return Switched{}, err
	}
	if err := u.ensureBooted(now); err != nil {
		return Switched{}, err
	}

	if err := u.freeze(now); err != nil {
		return Switched{}, errors.Join(err, u.abandon())
	}
	done, err := u.replace(now, stack)
	if err != nil {
		return Switched{}, errors.Join(err, u.abandon())
	}
	return done, u.thaw()
}

// replace shows a stack in the place of what is visible. One that can be written is read-only until it is there, and so are the copies of it that
// other namespaces get: services that may not write to /usr (ProtectSystem=) must not be able to all of a sudden.
func (u Usr) replace(now table, stack Stack) (Switched, error) {
	stack, err := stack.withOwnWork()
	if err != nil {
		return Switched{}, err
	}
	next, err := u.compose(stack.above(u.bootedDir()), now.attributes(stack))
	if err != nil {
		return Switched{}, err
	}
	defer next.Close()
	submounts := now.submounts(now.visible)
	if err := u.assemble(next, submounts); err != nil {
		return Switched{}, err
	}
	stacked, err := u.attach(next, now)
	if err != nil {
		return Switched{}, err
	}
	if stack.writable() {
		if err := setAttributes(u.Path, unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return Switched{}, err
		}
	}
	stack.dropOtherWork()
	return Switched{Stacked: stacked, Carried: submounts}, nil
}

// abandon leaves the visible tree as it was, unless its going has begun: then the next call carries on.
func (u Usr) abandon() error {
	for _, note := range []string{u.swapNote(), u.readyNote()} {
		if _, err := os.Lstat(note); err == nil {
			return nil
		}
	}
	return errors.Join(u.dropNext(), u.thaw())
}

// Detach shows the booted tree again, as it was before the first Switch, and removes everything from Private. What was
// mounted or unmounted below Path while another tree was live is so afterwards, too.
//
// A mount that was made below Path since then appears in the booted tree some microseconds after the booted tree itself. All other paths
// change in one step, unless overlays are stacked (see Switched): then the older ones are visible for an instant each.
// It is not an error if nothing of ours is mounted.
func (u Usr) Detach() error {
	if err := u.detach(); err != nil {
		return fmt.Errorf("detaching from %s: %w", u.Path, err)
	}
	return nil
}

func (u Usr) detach() error {
	if err := u.settle(); err != nil {
		return err
	}
	now, err := u.look()
	if err != nil {
		return err
	}
	if err := now.refuseCovered(); err != nil {
		return err
	}
	if len(now.ours) > 0 {
		if err := u.ensurePrivate(); err != nil {
			return err
		}
		if err := u.freeze(now); err != nil {
			return errors.Join(err, u.abandon())
		}
		if err := u.collapse(now, 0); err != nil {
			return errors.Join(err, u.abandon())
		}
		if err := u.thaw(); err != nil {
			return err
		}
	}
	return u.dropPrivate()
}

// CheckDetach returns the error with which Detach would refuse, and changes nothing.
func (u Usr) CheckDetach() error {
	if err := u.checkDetach(); err != nil {
		return fmt.Errorf("detaching from %s: %w", u.Path, err)
	}
	return nil
}

func (u Usr) checkDetach() error {
	now, err := u.look()
	if err != nil {
		return err
	}
	if err := now.refuseCovered(); err != nil || len(now.ours) == 0 {
		return err
	}
	differing := now.differing(now.visible, now.base)
	if len(differing) == 0 {
		return nil
	}
	return u.checkMountPoints(now, 0, differing)
}

// settle finishes or undoes what an earlier call was doing when it was killed.
func (u Usr) settle() error {
	if err := u.resumeCollapse(); err != nil {
		return fmt.Errorf("finishing an interrupted detach: %w", err)
	}
	if err := u.resumeSwap(); err != nil {
		return fmt.Errorf("finishing an interrupted swap: %w", err)
	}
	if err := u.dropNext(); err != nil {
		return err
	}
	return u.thaw()
}
