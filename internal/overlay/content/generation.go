package content

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/overlay"
)

// generation is the content of an overlay that is being made.
type generation struct {
	*tree
	store    overlay.Store
	name     string // of the overlay
	number   int
	manifest overlay.Manifest
	rules    Rules
}

// content returns the new generation of an overlay, which begins as the one before.
func (d *Draft) content(name string) (*generation, error) {
	if g := d.made[name]; g != nil {
		return g, nil
	}
	o := d.Index.Find(name)
	g, err := d.newGeneration(name)
	if err != nil || o.Generation == 0 {
		return g, err
	}
	from, err := beneath.OpenRoot(filepath.Join(d.Store.Generation(name, o.Generation), overlay.TreeName))
	if err != nil {
		return nil, err
	}
	defer from.Close()
	if err := clone(from, g.root); err != nil {
		return nil, fmt.Errorf("taking over what it has: %w", err)
	}
	before, err := d.Store.Manifest(*o)
	if err != nil {
		return nil, err
	}
	g.manifest = *before
	return g, nil
}

// newGeneration begins an empty one, which takes the place of one that the draft has begun before.
func (d *Draft) newGeneration(name string) (*generation, error) {
	d.forget(name)
	// Everybody may read the index, but not what overlays have.
	if err := os.MkdirAll(d.Store.Dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(d.Store.Dir, name), 0o700); err != nil {
		return nil, err
	}
	number, err := d.Store.NextGeneration(name)
	if err != nil {
		return nil, err
	}
	g := &generation{store: d.Store, name: name, number: number, rules: d.rules, manifest: overlay.NewManifest()}
	for _, path := range []string{g.dir(), g.treeDir()} {
		if err := os.Mkdir(path, 0o700); err != nil {
			return nil, err
		}
	}
	// Systemd takes it for the root of an extension, whose mode counts.
	if err := os.Chmod(g.treeDir(), 0o755); err != nil {
		return nil, err
	}
	if g.tree, err = openTree(g.treeDir(), d.under); err != nil {
		return nil, err
	}
	d.made[name] = g
	return g, nil
}

// dir is its directory while it is made.
func (g *generation) dir() string { return g.store.Building(g.name, g.number) }

func (g *generation) treeDir() string { return filepath.Join(g.dir(), overlay.TreeName) }

// entries lists what it changes.
func (g *generation) entries() ([]overlay.Entry, error) {
	return overlay.ListTree(g.treeDir(), g.manifest.Bases)
}

// complete writes it to disk and gives it its name. A writable one gets what overlayfs needs to write to it.
func (g *generation) complete(writable bool) error {
	if writable {
		if err := g.directory("usr", plainDir); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(g.dir(), overlay.WorkName), 0o700); err != nil {
			return err
		}
	}
	if err := g.keepTimes(g.root, ""); err != nil {
		return err
	}
	if err := g.manifest.Write(g.dir()); err != nil {
		return err
	}
	// One call for all files: a fsync of each would commit the filesystem's log each time.
	if err := unix.Syncfs(int(g.root.Fd())); err != nil {
		return fmt.Errorf("writing it to disk: %w", err)
	}
	return g.store.Complete(g.name, g.number)
}

// hasEtc is the first version of systemd that shows what ExtensionDirectories= have for /etc.
const hasEtc = 254

// checkExtension refuses what systemd cannot show to a single unit.
func (u Under) checkExtension(entries []overlay.Entry) error {
	for _, e := range entries {
		switch top, _, _ := strings.Cut(e.Path, "/"); {
		case top == "run":
			return fmt.Errorf("/%s cannot be shown to a single unit: make an overlay of the scope system for it", e.Path)
		case top == "etc" && u.Systemd < hasEtc:
			return fmt.Errorf("/%s cannot be shown to a single unit by systemd %d, which takes version %d: make an overlay of the scope system for it", e.Path, u.Systemd, hasEtc)
		}
	}
	return nil
}

// describeExtension says to systemd that the tree is an extension. It takes none without a description of what is in usr; it is there even if nothing
// else is in that.
func (g *generation) describeExtension(entries []overlay.Entry) error {
	dirs := []string{"usr/lib"}
	for _, e := range entries {
		if strings.HasPrefix(e.Path, "etc/") {
			dirs = append(dirs, "etc")
			break
		}
	}
	for _, dir := range dirs {
		if err := g.file(overlay.ExtensionReleaseIn(dir), strings.NewReader(overlay.ExtensionRelease), attributes{mode: 0o644}); err != nil {
			return err
		}
		// Nobody else's, so that the same content gives the same tree.
		if err := g.directory(filepath.Dir(overlay.ExtensionReleaseIn(dir)), attributes{mode: 0o755, mtime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	return nil
}

// remember notes what is replaced at a path.
func (g *generation) remember(path string) error {
	base, err := g.under.Base(path)
	if err != nil {
		return fmt.Errorf("looking for what it replaces: %w", err)
	}
	g.manifest.Bases[path] = base
	return nil
}

var errNoFile = errors.New("there is no such file")
