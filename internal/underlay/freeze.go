package underlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// A tree that can be written is frozen before another one takes its place: what two overlays do that write to one upper directory is
// undefined (Documentation/filesystems/overlayfs.rst, "Sharing and copying layers"). Frozen is each of its mounts, in all mount namespaces: copies by
// propagation have attributes of their own, and those in namespaces that do not follow stay there. To make the filesystem itself
// read-only would be one step, but the kernel refuses that as long as a file is in use that was deleted or replaced.
//
// The note Private/frozen says which mounts are frozen. If the tree before is still the visible one in the end, they are thawed.

// freeze makes the visible tree read-only, if it is a writable overlay of ours.
func (u Usr) freeze(now table) error {
	if len(now.ours) == 0 || !isWritable(now.visible) {
		return nil
	}
	// From here on, a new mount namespace gets a frozen copy.
	frozen := []int{now.visible.ID}
	if err := u.noteFrozen(frozen); err != nil {
		return err
	}
	if err := setAttributes(u.Path, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return explainBusy(err, now.visible)
	}
	for {
		copies, err := writableMounts(now.visible, frozen)
		if err != nil || len(copies) == 0 {
			return err
		}
		frozen = append(frozen, copies...)
		if err := u.noteFrozen(frozen); err != nil {
			return err
		}
		if err := setAttributesOf(now.visible, copies, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return explainBusy(err, now.visible)
		}
	}
}

// thaw ends a freeze. What is no longer visible stays frozen.
func (u Usr) thaw() error {
	if err := removeIfThere(u.frozenNote() + ".new"); err != nil {
		return err
	}
	frozen, err := u.frozen()
	if err != nil || len(frozen) == 0 {
		return err
	}
	now, err := u.look()
	if err != nil {
		return err
	}
	if slices.Contains(frozen, now.visible.ID) {
		if err := setAttributesOf(now.visible, frozen, unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return err
		}
	}
	return removeIfThere(u.frozenNote())
}

func (u Usr) frozenNote() string { return filepath.Join(u.Private, "frozen") }

func (u Usr) noteFrozen(mounts []int) error {
	text := strings.Trim(fmt.Sprint(mounts), "[]")
	if err := os.WriteFile(u.frozenNote()+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(u.frozenNote()+".new", u.frozenNote())
}

// frozen reads the note.
func (u Usr) frozen() (mounts []int, err error) {
	text, err := os.ReadFile(u.frozenNote())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, word := range strings.Fields(string(text)) {
		id, err := strconv.Atoi(word)
		if err != nil {
			return nil, fmt.Errorf("%s says %q, not numbers", u.frozenNote(), text)
		}
		mounts = append(mounts, id)
	}
	return mounts, nil
}

// writableMounts returns the mounts of an overlay, in all mount namespaces, that can be written, but for those of known.
func writableMounts(overlay *mountinfo.Info, known []int) (mounts []int, err error) {
	err = eachNamespace(areOverlays, func(_ string, overlays []*mountinfo.Info) error {
		for _, m := range overlays {
			if sameFilesystem(m, overlay) && !isReadOnly(m) && !slices.Contains(known, m.ID) {
				mounts = append(mounts, m.ID)
			}
		}
		return nil
	})
	return mounts, err
}

// setAttributesOf changes the attributes of an overlay's mounts, in whatever mount namespaces they are. Those that something else covers are
// left alone: no path leads there.
func setAttributesOf(overlay *mountinfo.Info, mounts []int, attributes unix.MountAttr) error {
	// A number is given to another mount when one has gone.
	wanted := func(m *mountinfo.Info) bool { return sameFilesystem(m, overlay) && slices.Contains(mounts, m.ID) }
	var namespaces []string
	if err := eachNamespace(areOverlays, func(namespace string, overlays []*mountinfo.Info) error {
		if slices.ContainsFunc(overlays, wanted) {
			namespaces = append(namespaces, namespace)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, namespace := range namespaces {
		if err := setAttributesIn(namespace, wanted, attributes); err != nil {
			return err
		}
	}
	return nil
}

func setAttributesIn(namespace string, wanted func(*mountinfo.Info) bool, attributes unix.MountAttr) error {
	err := inNamespaceOf(namespace, func(table []*mountinfo.Info) error {
		for _, m := range table {
			if !wanted(m) {
				continue
			}
			if id, err := identify(unix.AT_FDCWD, m.Mountpoint); err != nil || id.id != m.ID {
				continue
			}
			if err := setAttributes(m.Mountpoint, attributes); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil // its last process has ended
	}
	return err
}

func setAttributes(path string, attributes unix.MountAttr) error {
	if err := unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, &attributes); err != nil {
		return fmt.Errorf("changing the mount at %s: mount_setattr: %w", path, err)
	}
	return nil
}

// explainBusy adds to EBUSY who has files open for writing.
func explainBusy(err error, overlay *mountinfo.Info) error {
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	const named = 5
	who := writers(overlay)
	if len(who) > named {
		who = append(who[:named], fmt.Sprintf("and %d more", len(who)-named))
	}
	if len(who) == 0 {
		who = []string{"nobody whose descriptors can be seen, so perhaps by a mapping"}
	}
	return fmt.Errorf("files of the writable overlay are open for writing: %s; end that and try again (%w)", strings.Join(who, ", "), err)
}

// writers lists the files that processes have open for writing in any mount of an overlay.
func writers(overlay *mountinfo.Info) (list []string) {
	ids := map[string]bool{}
	if err := eachNamespace(areOverlays, func(_ string, overlays []*mountinfo.Info) error {
		for _, m := range overlays {
			if sameFilesystem(m, overlay) {
				ids[strconv.Itoa(m.ID)] = true
			}
		}
		return nil
	}); err != nil {
		return nil // it is for a message
	}
	descriptors, _ := filepath.Glob("/proc/[0-9]*/fdinfo/*")
	for _, info := range descriptors {
		if content, err := os.ReadFile(info); err != nil || !isWriter(string(content), ids) {
			continue
		}
		process := filepath.Dir(filepath.Dir(info))
		name, _ := os.ReadFile(process + "/comm")
		file, _ := os.Readlink(process + "/fd/" + filepath.Base(info))
		list = append(list, fmt.Sprintf("%s by process %s (%s)", file, filepath.Base(process), strings.TrimSpace(string(name))))
	}
	return list
}

// isWriter reads a file of /proc/PID/fdinfo.
func isWriter(info string, mounts map[string]bool) bool {
	writes, here := false, false
	for line := range strings.Lines(info) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "flags":
			flags, err := strconv.ParseUint(value, 8, 32)
			writes = err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
		case "mnt_id":
			here = mounts[value]
		}
	}
	return writes && here
}
