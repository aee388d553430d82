package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/layer"
)

// Draft is what a store is about to become. Nothing of it counts until Commit; what an abandoned draft has made is deleted by the store's Tidy.
type Draft struct {
	Store Store
	Index *Index // as it will be

	before Index
	under  Under
	rules  Rules
	made   map[string]*generation // of overlays whose content changes
}

// generation is the content of an overlay that is being made.
type generation struct {
	*tree
	dir      string // under the name it has while it is made
	manifest Manifest
	overlay  string
}

// Manifest is what is known of a generation besides its tree.
type Manifest struct {
	Version int             `json:"version"`
	Bases   map[string]Base `json:"bases"` // what is replaced, by path
}

const manifestVersion = 1

// NewDraft begins with what the store holds.
func (s Store) NewDraft(under Under, rules Rules) (*Draft, error) {
	index, err := s.Index()
	if err != nil {
		return nil, err
	}
	before := *index
	before.Overlays = slices.Clone(index.Overlays)
	return &Draft{Store: s, Index: index, before: before, under: under, rules: rules, made: map[string]*generation{}}, nil
}

// Do carries out an operation.
func (d *Draft) Do(ctx context.Context, op Operation) error {
	if err := d.do(ctx, op); err != nil {
		return fmt.Errorf("overlay %s: %w", op.Name, err)
	}
	return nil
}

func (d *Draft) do(ctx context.Context, op Operation) error {
	if err := CheckName(op.Name); err != nil {
		return err
	}
	o := d.Index.Find(op.Name)
	if o == nil && !op.IsNew() {
		return errors.New("there is no overlay of this name: see liveapplyctl overlay list")
	}
	switch op.Verb {
	case Create:
		return d.create(op, Ordinary)
	case Import:
		return d.importImage(ctx, op)
	case Enable, Disable:
		o.Enabled = op.Verb == Enable
		return d.refuseSecondWritable()
	case Remove:
		d.Index.remove(op.Name)
		return nil
	}
	return d.changeContent(op, o)
}

// changeContent carries out what changes one path.
func (d *Draft) changeContent(op Operation, o *Overlay) error {
	if o.Writable {
		return fmt.Errorf("it is writable: change the files in /usr, or freeze it first (liveapplyctl overlay freeze %s)", op.Name)
	}
	path, err := d.under.Land(op.Path)
	if err != nil {
		return err
	}
	if err := d.rules.allowPath(path); err != nil && op.Verb != Unset {
		return err
	}
	g, err := d.content(op.Name)
	if err != nil {
		return err
	}
	switch op.Verb {
	case Add:
		err = g.add(path)
	case Set:
		err = g.set(path, op)
	case Mask:
		err = g.hide(path)
	case Unset:
		err = g.clear(path)
	default:
		return fmt.Errorf("%q is nothing that can be done to an overlay", op.Verb)
	}
	if err != nil {
		return fmt.Errorf("%s /%s: %w", op.Verb, path, err)
	}
	return nil
}

func (d *Draft) create(op Operation, kind Kind) error {
	if d.Index.Find(op.Name) != nil {
		return errors.New("there is one of this name already")
	}
	scope := op.Scope
	if scope == "" {
		scope = System
	}
	if op.Writable && !scope.IsShared() {
		return errors.New("a writable overlay is for all to see: its scope is system or global")
	}
	now := time.Now().UTC().Truncate(time.Second)
	d.Index.add(Overlay{Name: op.Name, Kind: kind, Scope: scope, Priority: op.Priority, Enabled: true, Writable: op.Writable, Created: now, Changed: now})
	if op.Writable {
		if err := d.makeUpper(op.Name); err != nil {
			return err
		}
	}
	return d.refuseSecondWritable()
}

// makeUpper makes the directories of a writable overlay. They are empty, so it does no harm if they are there before the index says so.
func (d *Draft) makeUpper(name string) error {
	dir := filepath.Join(d.Store.Dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, sub := range []string{upperName, workName} {
		// Of one that was removed before.
		if err := layer.Remove(filepath.Join(dir, sub)); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	usr, err := d.under.stat("usr")
	if err != nil || usr == nil {
		return err
	}
	upper, err := os.Open(filepath.Join(dir, upperName))
	if err != nil {
		return err
	}
	defer upper.Close()
	have, err := attributesOf(filepath.Join(d.under.Root, "usr"), usr)
	if err != nil {
		return err
	}
	return have.set(int(upper.Fd()))
}

// refuseSecondWritable makes sure that it is known where goes what is written to /usr.
func (d *Draft) refuseSecondWritable() error {
	var writable []string
	for _, o := range d.Index.Overlays {
		if o.Writable && o.Enabled {
			writable = append(writable, o.Name)
		}
	}
	if len(writable) > 1 {
		return fmt.Errorf("%s are both writable: only one can be enabled at a time", strings.Join(writable, " and "))
	}
	return nil
}

// content returns the new generation of an overlay, which begins as the one before.
func (d *Draft) content(name string) (*generation, error) {
	if g := d.made[name]; g != nil {
		return g, nil
	}
	g, err := d.newGeneration(name)
	if err != nil {
		return nil, err
	}
	o := d.Index.Find(name)
	if o.Generation == 0 {
		return g, nil
	}
	from, err := os.Open(filepath.Join(d.Store.generation(name, o.Generation), treeName))
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

// newGeneration begins an empty one.
func (d *Draft) newGeneration(name string) (*generation, error) {
	dir := filepath.Join(d.Store.Dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	number, err := nextGeneration(dir)
	if err != nil {
		return nil, err
	}
	g := &generation{
		dir: d.Store.generation(name, number) + building, overlay: name,
		manifest: Manifest{Version: manifestVersion, Bases: map[string]Base{}},
	}
	for _, path := range []string{g.dir, filepath.Join(g.dir, treeName)} {
		if err := os.Mkdir(path, 0o700); err != nil {
			return nil, err
		}
	}
	// Systemd takes it for the root of an extension, whose mode counts.
	if err := os.Chmod(filepath.Join(g.dir, treeName), 0o755); err != nil {
		return nil, err
	}
	if g.tree, err = openTree(filepath.Join(g.dir, treeName), d.under); err != nil {
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

// Manifest reads what is known of the generation that an overlay has.
func (s Store) Manifest(o Overlay) (*Manifest, error) {
	path := filepath.Join(s.generation(o.Name, o.Generation), manifestName)
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest of overlay %s: %w", o.Name, err)
	}
	manifest := &Manifest{}
	if err := json.Unmarshal(content, manifest); err != nil || manifest.Version != manifestVersion || manifest.Bases == nil {
		return nil, fmt.Errorf("%s: %w: restore the overlay from a backup", path, ErrDamaged)
	}
	return manifest, nil
}

// Finish completes the generations: they are checked against the rules, written to disk, and get their names.
func (d *Draft) Finish(ctx context.Context, force bool) error {
	for name, g := range d.made {
		o := d.Index.Find(name)
		if o == nil {
			continue // removed in the same request
		}
		if err := d.finish(ctx, g, o, force); err != nil {
			return fmt.Errorf("overlay %s: %w", name, err)
		}
	}
	return nil
}

func (d *Draft) finish(ctx context.Context, g *generation, o *Overlay, force bool) error {
	if err := d.rules.check(ctx, g, force); err != nil {
		return err
	}
	if !o.Scope.IsShared() {
		if err := g.describeExtension(); err != nil {
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
	done := strings.TrimSuffix(g.dir, building)
	if err := os.Rename(g.dir, done); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(done)); err != nil {
		return err
	}
	if err := syncDir(d.Store.Dir); err != nil {
		return err
	}
	o.Changed = time.Now().UTC().Truncate(time.Second)
	o.Generation, err = strconv.Atoi(filepath.Base(done))
	return err
}

// Close gives up what the draft has open.
func (d *Draft) Close() {
	for _, g := range d.made {
		if g.tree != nil {
			g.close()
		}
	}
}

// Commit makes all of it true. After an error, and whenever it has to be taken back, TakeBack does that.
func (d *Draft) Commit() error { return d.Store.Write(d.Index) }

// TakeBack makes the store what it was when the draft began.
func (d *Draft) TakeBack() error { return d.Store.Write(&d.before) }
