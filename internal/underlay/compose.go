package underlay

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// fsconfigMax is the longest value that fsconfig(2) takes.
const fsconfigMax = 255

// harmless are overlayfs options by which no extended attribute in a layer can make a path show what lies at another path
// or in another file (Documentation/filesystems/overlayfs.rst, "Redirects", "Metadata only copy up").
var harmless = [][2]string{{"redirect_dir", "nofollow"}, {"metacopy", "off"}, {"index", "off"}}

// compose makes an overlay of the directories lower, the topmost first, with the MOUNT_ATTR_ flags attributes. It has no upper
// directory, so it is read-only by nature. It is attached nowhere yet.
func (u Usr) compose(source string, lower []string, attributes int) (*os.File, error) {
	overlay, err := u.overlay(source, lower)
	if err != nil {
		return nil, err
	}
	defer overlay.Close()
	fd, err := unix.Fsmount(int(overlay.Fd()), unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	return os.NewFile(uintptr(fd), source), nil
}

// overlay makes the filesystem. It adds the layers one by one (lowerdir+, Linux 6.8), else all in one option.
func (u Usr) overlay(source string, lower []string) (*os.File, error) {
	if !u.noLowerdirAdd {
		overlay, err := newOverlay(source, lower, addLayers)
		if !errors.Is(err, errNoLowerdirAdd) {
			return overlay, err
		}
	}
	return newOverlay(source, lower, setLayers)
}

// newOverlay asks the kernel for an overlayfs. What the kernel writes to the context about a failure is part of the error.
func newOverlay(source string, lower []string, layers func(fs int, lower []string) error) (_ *os.File, err error) {
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
	if err := setString(fd, "source", source); err != nil {
		return nil, err
	}
	for _, option := range harmless {
		if err := setString(fd, option[0], option[1]); err != nil {
			return nil, err
		}
	}
	if err := layers(fd, lower); err != nil {
		return nil, err
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, explain(fmt.Errorf("making an overlay of %s: %w%s", strings.Join(lower, ", "), err, kernelLog(fd)), lower)
	}
	return fs, nil
}

func setString(fs int, key, value string) error {
	if err := unix.FsconfigSetString(fs, key, value); err != nil {
		return fmt.Errorf("overlay option %s=%s: %w%s", key, value, err, kernelLog(fs))
	}
	return nil
}

var errNoLowerdirAdd = errors.New("this kernel has no lowerdir+")

// addLayers gives each layer as an option of its own, by its path where that is short enough: it is what mountinfo shows.
func addLayers(fs int, lower []string) error {
	for i, dir := range lower {
		value, closeIt, err := shortPath(dir)
		if err != nil {
			return err
		}
		err = setString(fs, "lowerdir+", value)
		closeIt()
		if i == 0 && errors.Is(err, unix.EINVAL) {
			return errNoLowerdirAdd
		}
		if err != nil {
			return fmt.Errorf("layer %s: %w", dir, err)
		}
	}
	return nil
}

// setLayers gives all layers in one option, each by a file descriptor, which keeps the option short and needs no escaping.
func setLayers(fs int, lower []string) error {
	var values []string
	for _, dir := range lower {
		value, closeIt, err := pathByFd(dir)
		if err != nil {
			return err
		}
		defer closeIt()
		values = append(values, value)
	}
	value := strings.Join(values, ":")
	if len(value) > fsconfigMax {
		return fmt.Errorf("%d layers are too many for a kernel before 6.8", len(lower))
	}
	return setString(fs, "lowerdir", value)
}

func shortPath(dir string) (string, func(), error) {
	if len(dir) <= fsconfigMax {
		return dir, func() {}, nil
	}
	return pathByFd(dir)
}

func pathByFd(dir string) (string, func(), error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("opening layer %s: %w", dir, err)
	}
	return procPath(fd), func() { unix.Close(fd) }, nil
}

func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// explain adds what EINVAL means when the limit on stacked filesystems is reached; the kernel says it only in its own log.
func explain(err error, lower []string) error {
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	for _, dir := range lower {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC {
			return fmt.Errorf("%w: %s is itself on an overlayfs, and the kernel stacks two of them at most:"+
				" a composefs root leaves room for one more overlay, not for two", err, dir)
		}
	}
	return err
}

// kernelLog returns what the kernel has to say about the last failure on a filesystem context (see fsopen(2)), with ": " before it.
func kernelLog(fs int) string {
	var text strings.Builder
	line := make([]byte, 1024)
	for range 32 { // the kernel keeps eight
		n, err := unix.Read(fs, line)
		if err != nil || n == 0 {
			break // ENODATA: that was all
		}
		text.WriteString(": " + strings.TrimSpace(strings.TrimPrefix(string(line[:n]), "e ")))
	}
	return text.String()
}
