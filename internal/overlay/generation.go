package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
)

// generation is the content of an overlay that is being made.
type generation struct {
	*tree
	number   int
	dir      string // under the name it has while it is made
	manifest Manifest
	rules    Rules
}

// Manifest is what is known of a generation besides its tree.
type Manifest struct {
	Version int             `json:"version"`
	Bases   map[string]Base `json:"bases"` // what is replaced, by path
}

const manifestVersion = 1

// Manifest reads what is known of the generation that an overlay has.
func (s Store) Manifest(o Overlay) (*Manifest, error) {
	content, err := os.ReadFile(filepath.Join(s.generation(o.Name, o.Generation), manifestName))
	if err == nil {
		var manifest *Manifest
		if manifest, err = parseManifest(content); err == nil {
			return manifest, nil
		}
		err = fmt.Errorf("%w: %w: restore the overlay from a backup", ErrDamaged, err)
	}
	return nil, fmt.Errorf("reading the manifest of overlay %s: %w", o.Name, err)
}

func parseManifest(content []byte) (*Manifest, error) {
	manifest := &Manifest{}
	if err := json.Unmarshal(content, manifest); err != nil {
		return nil, err
	}
	if manifest.Version != manifestVersion || manifest.Bases == nil {
		return nil, fmt.Errorf("it has version %d, this program knows %d", manifest.Version, manifestVersion)
	}
	return manifest, nil
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
	from, err := beneath.OpenRoot(filepath.Join(d.Store.generation(name, o.Generation), treeName))
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
	dir := filepath.Join(d.Store.Dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	number, err := nextGeneration(dir)
	if err != nil {
		return nil, err
	}
	g := &generation{
		number: number, dir: d.Store.generation(name, number) + building, rules: d.rules,
		manifest: Manifest{Version: manifestVersion, Bases: map[string]Base{}},
	}
	for _, path := range []string{g.dir, g.treeDir()} {
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

// nextGeneration returns a number that no directory has.
func nextGeneration(dir string) (int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	next := 1
	for _, entry := range entries {
		if number, err := strconv.Atoi(strings.TrimSuffix(entry.Name(), building)); err == nil && number >= next {
			next = number + 1
		}
	}
	return next, nil
}

func (g *generation) treeDir() string { return filepath.Join(g.dir, treeName) }

// entries lists what it changes.
func (g *generation) entries() ([]Entry, error) {
	return listTree(g.treeDir(), listing{bases: g.manifest.Bases})
}

// complete writes it to disk and gives it its name. A writable one gets what overlayfs needs to write to it.
func (g *generation) complete(writable bool) error {
	if writable {
		if err := g.directory("usr", plainDir); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(g.dir, workName), 0o700); err != nil {
			return err
		}
	}
	if err := g.keepTimes(g.root, ""); err != nil {
		return err
	}
	content, err := json.Marshal(g.manifest)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(g.dir, manifestName), append(content, '\n'), 0o600, renameio.WithTempDir(g.dir)); err != nil {
		return err
	}
	// One call for all files: a fsync of each would commit the filesystem's log each time.
	if err := unix.Syncfs(int(g.root.Fd())); err != nil {
		return fmt.Errorf("writing it to disk: %w", err)
	}
	whole := strings.TrimSuffix(g.dir, building)
	if err := os.Rename(g.dir, whole); err != nil {
		return err
	}
	g.dir = whole
	return syncDir(filepath.Dir(whole))
}

// extensionRelease is what systemd wants to see in a directory of ExtensionDirectories=: any system may take it.
const extensionRelease = "ID=_any\n"

// isExtensionRelease tells the files that say so. They are no content.
func isExtensionRelease(path string) bool {
	return path == releaseOf("usr/lib") || path == releaseOf("etc")
}

func releaseOf(dir string) string {
	return filepath.Join(dir, "extension-release.d", "extension-release."+treeName)
}

// hasEtc is the first version of systemd that shows what ExtensionDirectories= have for /etc.
const hasEtc = 254

// checkExtension refuses what systemd cannot show to a single unit.
func (u Under) checkExtension(entries []Entry) error {
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
func (g *generation) describeExtension(entries []Entry) error {
	dirs := []string{"usr/lib"}
	for _, e := range entries {
		if strings.HasPrefix(e.Path, "etc/") {
			dirs = append(dirs, "etc")
			break
		}
	}
	for _, dir := range dirs {
		if err := g.file(releaseOf(dir), strings.NewReader(extensionRelease), attributes{mode: 0o644}); err != nil {
			return err
		}
		// Nobody else's, so that the same content gives the same tree.
		if err := g.directory(filepath.Dir(releaseOf(dir)), attributes{mode: 0o755, mtime: time.Unix(0, 0)}); err != nil {
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
