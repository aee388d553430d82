package underlay

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/liveapply/liveapply/internal/fscontext"
	"golang.org/x/sys/unix"
)

// fsconfigMax is the longest value that fsconfig(2) takes.
const fsconfigMax = 255

// options are given to every overlay. By the first three, no extended attribute in a layer can make a path show what lies at another
// path or in another file (Documentation/filesystems/overlayfs.rst, "Redirects", "Metadata only copy up"). By the last one, files have their own inode
// numbers also where layers are on several filesystems ("Inode properties"), so that a file is known again in the next tree.
var options = [][2]string{{"redirect_dir", "nofollow"}, {"metacopy", "off"}, {"index", "off"}, {"xino", "off"}}

// compose makes an overlay of a stack, with the MOUNT_ATTR_ flags attributes. It is attached nowhere yet.
func (u Usr) compose(stack Stack, attributes int) (*os.File, error) {
	overlay, err := u.overlay(stack)
	if err != nil {
		return nil, err
	}
	defer overlay.Close()
	fd, err := unix.Fsmount(int(overlay.Fd()), unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	return os.NewFile(uintptr(fd), stack.Source.String()), nil
}

// overlay makes the filesystem. It adds the layers one by one (lowerdir+, Linux 6.8), else all in one option.
func (u Usr) overlay(stack Stack) (*os.File, error) {
	if !u.noLowerdirAdd {
		overlay, err := newOverlay(stack, addLayers)
		if !errors.Is(err, errNoLowerdirAdd) {
			return overlay, err
		}
	}
	// Before Linux 6.5, overlayfs looks for the layers only when it is made: the descriptors have to be open until then.
	numbered, closeIt, err := stack.byDescriptors()
	if err != nil {
		return nil, err
	}
	defer closeIt()
	return newOverlay(stack, func(fs int, _ Stack) error { return setLayers(fs, numbered) })
}

// newOverlay asks the kernel for an overlayfs. What the kernel writes to the context about a failure is part of the error.
func newOverlay(stack Stack, give func(fs int, stack Stack) error) (_ *os.File, err error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen overlay: %w (is overlayfs in this kernel?)", err)
	}
	fs := os.NewFile(uintptr(fd), "overlay")
	defer func() {
		if err != nil {
			fs.Close()
		}
	}()
	if err := setString(fd, "source", stack.Source.String()); err != nil {
		return nil, err
	}
	for _, option := range options {
		if err := setString(fd, option[0], option[1]); err != nil {
			return nil, err
		}
	}
	if err := give(fd, stack); err != nil {
		return nil, err
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, explain(fmt.Errorf("making an overlay of %s: %w%s", strings.Join(stack.directories(), ", "), err, fscontext.Log(fd)), stack)
	}
	return fs, nil
}

func setString(fs int, key, value string) error {
	if err := unix.FsconfigSetString(fs, key, value); err != nil {
		return fmt.Errorf("overlay option %s=%s: %w%s", key, value, err, fscontext.Log(fs))
	}
	return nil
}

var errNoLowerdirAdd = errors.New("this kernel has no lowerdir+")

// addLayers gives each directory as an option of its own, by its path where that is short enough: it is what mountinfo shows.
func addLayers(fs int, stack Stack) error {
	for i, dir := range stack.Layers {
		err := setDirectory(fs, "lowerdir+", dir, dir)
		if i == 0 && errors.Is(err, unix.EINVAL) {
			return errNoLowerdirAdd
		}
		if err != nil {
			return err
		}
	}
	if !stack.writable() {
		return nil
	}
	// Unlike lowerdir+, these two take a backslash for the beginning of an escape.
	escape := strings.NewReplacer(`\`, `\\`)
	return errors.Join(setDirectory(fs, "upperdir", stack.Upper, escape.Replace(stack.Upper)), setDirectory(fs, "workdir", stack.Work, escape.Replace(stack.Work)))
}

// setDirectory gives a directory as an option: as value, or by a file descriptor if that is too long.
func setDirectory(fs int, key, dir, value string) error {
	if len(value) > fsconfigMax {
		path, closeIt, err := pathByFd(dir)
		if err != nil {
			return err
		}
		defer closeIt()
		value = path
	}
	if err := setString(fs, key, value); err != nil {
		return fmt.Errorf("layer %s: %w", dir, err)
	}
	return nil
}

// byDescriptors returns a stack with paths that are short and need no escaping, until the returned function is called.
func (s Stack) byDescriptors() (_ Stack, closeAll func(), err error) {
	var closes []func()
	closeAll = func() {
		for _, closeIt := range closes {
			closeIt()
		}
	}
	var paths []string
	for _, dir := range s.directories() {
		path, closeIt, err := pathByFd(dir)
		if err != nil {
			closeAll()
			return Stack{}, nil, err
		}
		paths, closes = append(paths, path), append(closes, closeIt)
	}
	if s.writable() {
		s.Upper, s.Work, paths = paths[0], paths[1], paths[2:]
	}
	s.Layers = paths
	return s, closeAll, nil
}

func pathByFd(dir string) (string, func(), error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("opening layer %s: %w", dir, err)
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), func() { unix.Close(fd) }, nil
}

// setLayers gives all layers in one option.
func setLayers(fs int, stack Stack) error {
	lower := strings.Join(stack.Layers, ":")
	if len(lower) > fsconfigMax {
		return fmt.Errorf("%d layers, the booted tree among them, are too many for a kernel before 6.8, which takes about %d: disable overlays",
			len(stack.Layers), fsconfigMax/len("/proc/self/fd/10:"))
	}
	if err := setString(fs, "lowerdir", lower); err != nil || !stack.writable() {
		return err
	}
	return errors.Join(setString(fs, "upperdir", stack.Upper), setString(fs, "workdir", stack.Work))
}

// explain adds what EINVAL means when the limit on stacked filesystems is reached; the kernel says it only in its own log.
func explain(err error, stack Stack) error {
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	for _, dir := range stack.Layers {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC {
			return fmt.Errorf("%w: %s is itself on an overlayfs, and the kernel stacks two of them at most:"+
				" a composefs root leaves room for one more overlay, not for two", err, dir)
		}
	}
	return err
}
