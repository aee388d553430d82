package image

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/fscontext"
)

// fileSystem reads a file system through a read-only mount that is attached nowhere and ends with this.
func (r *reader) fileSystem(image *os.File, kind string) error {
	mount, err := mountLoop(image, kind)
	if err != nil {
		return err
	}
	defer mount.Close()
	root, err := reopen(int(mount.Fd()), unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	w := &walk{reader: r, links: make(map[inode]string)}
	if kind == "ext4" {
		w.skip = "lost+found" // mke2fs makes it
	}
	return w.children(root, "")
}

func mountLoop(image *os.File, kind string) (*os.File, error) {
	loop, err := openLoop(image)
	if err != nil {
		return nil, fmt.Errorf("a loop device for it: %w", err)
	}
	defer loop.Close() // the mount keeps it
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %s: %w (is %[1]s in this kernel?)", kind, err)
	}
	defer unix.Close(fs)
	if err := configure(fs, kind, loop.Name()); err != nil {
		return nil, fmt.Errorf("mounting it as %s: %w%s", kind, err, fscontext.Log(fs))
	}
	attributes := unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	return os.NewFile(uintptr(mount), image.Name()), nil
}

// configure sets options with which nothing is written to the image. An ext4 image could otherwise have its journal replayed, and
// have the kernel panic at an error in it (tune2fs -e).
func configure(fs int, kind, device string) error {
	if err := unix.FsconfigSetString(fs, "source", device); err != nil {
		return err
	}
	if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
		return err
	}
	if kind == "ext4" {
		if err := unix.FsconfigSetFlag(fs, "noload"); err != nil {
			return err
		}
		if err := unix.FsconfigSetString(fs, "errors", "remount-ro"); err != nil {
			return err
		}
	}
	err := unix.FsconfigCreate(fs)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIO) {
		return fmt.Errorf("%w (it is truncated or damaged, or has features that this kernel does not know)", err)
	}
	return err
}

// openLoop makes a read-only loop device of the image. It goes when nothing has it open or mounted any more.
func openLoop(image *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	config := unix.LoopConfig{
		Fd:   uint32(image.Fd()),
		Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR},
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], image.Name())
	for {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("LOOP_CTL_GET_FREE: %w", err)
		}
		loop, err := os.Open(fmt.Sprintf("/dev/loop%d", number))
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			return nil, fmt.Errorf("LOOP_CONFIGURE %s: %w", loop.Name(), err)
		}
	}
}
