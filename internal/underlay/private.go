package underlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// BootedDir is where the tree below all layers can be seen while something of ours is shown.
func (u Usr) BootedDir() string { return u.bootedDir() }

func (u Usr) bootedDir() string { return filepath.Join(u.Private, "booted") }
func (u Usr) nextDir() string   { return filepath.Join(u.Private, "next") }

// ensurePrivate makes Private a private bind mount of itself. A mount attached below a shared one becomes shared, so
// it is made private after it was attached; a kill in between is why it is made so each time.
func (u Usr) ensurePrivate() error {
	if err := os.MkdirAll(u.Private, 0o755); err != nil {
		return err
	}
	mounted, err := isMountPoint(u.Private)
	if err != nil {
		return err
	}
	if !mounted {
		self, err := cloneTree(u.Private, false)
		if err != nil {
			return err
		}
		defer self.Close()
		if err := moveMount(self, u.Private, 0); err != nil {
			return err
		}
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, u.Private, 0, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return fmt.Errorf("making %s private: mount_setattr: %w", u.Private, err)
	}
	return nil
}

// ensureBooted mounts the booted /usr at Private/booted. That is simple before the first overlay covers it. If it was
// lost since, it is taken from beneath the overlays.
func (u Usr) ensureBooted(now table) error {
	here, err := u.bootedMounted(now)
	if err != nil || here && len(now.ours) > 0 {
		return err
	}
	if err := unmountAll(u.bootedDir()); err != nil {
		return err
	}
	if err := mkdir(u.bootedDir()); err != nil {
		return err
	}
	booted, err := u.cloneBooted(now)
	if err != nil {
		return fmt.Errorf("keeping the booted tree at hand: %w", err)
	}
	defer booted.Close()
	return moveMount(booted, u.bootedDir(), 0)
}

// bootedMounted tells whether what is mounted at Private/booted is the tree below our overlays.
func (u Usr) bootedMounted(now table) (bool, error) {
	id, err := identify(unix.AT_FDCWD, u.bootedDir())
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil || !id.root {
		return false, err
	}
	for _, m := range now.mounts {
		if m.ID == id.id {
			return m.Major == now.base.Major && m.Minor == now.base.Minor && m.Root == now.bootedRoot(), nil
		}
	}
	return false, nil
}

// bootedRoot returns where the booted tree is in its filesystem.
func (t table) bootedRoot() string {
	below, err := filepath.Rel(t.base.Mountpoint, t.path)
	if err != nil {
		below = "."
	}
	return filepath.Join(t.base.Root, below)
}

// cloneBooted clones the booted /usr. Where overlays cover it, that is done in a mount namespace in which they can be taken away
// without anybody noticing.
func (u Usr) cloneBooted(now table) (booted *os.File, err error) {
	if len(now.ours) == 0 {
		return cloneTree(u.Path, false)
	}
	err = InMountNamespace(func() error {
		if err := u.uncoverTo(0); err != nil {
			return err
		}
		booted, err = cloneTree(u.Path, false)
		return err
	})
	return booted, err
}

// dropNext takes away an overlay that was assembled and not attached.
func (u Usr) dropNext() error {
	if err := unmountAll(u.nextDir()); err != nil {
		return err
	}
	return removeIfThere(u.nextDir())
}

// dropPrivate takes Private away.
func (u Usr) dropPrivate() error {
	if err := unmountAll(u.bootedDir()); err != nil {
		return err
	}
	// The directories are removed through the bind mount and without it: they are the same.
	if err := removeIfThere(u.bootedDir()); err != nil {
		return err
	}
	if err := unmountAll(u.Private); err != nil {
		return err
	}
	return removeIfThere(u.Private)
}

// removeIfThere removes a file or an empty directory.
func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
