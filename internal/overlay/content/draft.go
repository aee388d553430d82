// Package content makes what overlays have. A Draft makes new generations, which share the files that did not change with those before by hard links;
// renaming the new index into place is the one step by which all of a draft's changes come true. Backups are written and restored here, too.
package content

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/liveapply/liveapply/internal/overlay"
)

// Draft is what a store is about to become. Nothing of it counts until Commit; what an abandoned draft has made is deleted by the store's Tidy.
type Draft struct {
	Store overlay.Store
	Index *overlay.Index // as it will be

	before overlay.Index
	others []overlay.Placed
	under  Under
	rules  Rules
	made   map[string]*generation // of overlays whose content changes
}

// NewDraft begins with what the store holds. others are the overlays of the other stores: no two have one name, and only one can be written.
func NewDraft(store overlay.Store, under Under, rules Rules, others ...overlay.Placed) (*Draft, error) {
	index, err := store.Index()
	if err != nil {
		return nil, err
	}
	before := *index
	before.Overlays = slices.Clone(index.Overlays)
	return &Draft{Store: store, Index: index, before: before, others: others, under: under, rules: rules, made: map[string]*generation{}}, nil
}

// Do carries out an operation. After an error, the draft is good for nothing but Close.
func (d *Draft) Do(ctx context.Context, op overlay.Operation) error {
	err := d.do(ctx, op)
	if err == nil || op.Name == "" {
		return err
	}
	return fmt.Errorf("overlay %s: %w", op.Name, err)
}

func (d *Draft) do(ctx context.Context, op overlay.Operation) error {
	if err := op.Check(); err != nil {
		return err
	}
	switch op.Verb {
	case overlay.Create:
		return d.create(op)
	case overlay.Import:
		return d.importImage(ctx, op)
	case overlay.Restore:
		return d.restore(ctx, op)
	}
	o := d.Index.Find(op.Name)
	if o == nil {
		return errors.New("there is no overlay of this name: see liveapplyctl overlay list")
	}
	switch op.Verb {
	case overlay.Enable, overlay.Disable:
		o.Enabled = op.Verb == overlay.Enable
		return d.refuseSecondWritable()
	case overlay.Remove:
		d.forget(op.Name)
		d.Index.Remove(op.Name)
		return nil
	case overlay.Freeze:
		return d.freeze(o)
	}
	return d.changeContent(op, o)
}

// changeContent carries out what changes one path.
func (d *Draft) changeContent(op overlay.Operation, o *overlay.Overlay) error {
	if o.Writable {
		return fmt.Errorf("it is writable: change the files in /usr, or freeze it first (liveapplyctl overlay freeze %s)", op.Name)
	}
	if o.Kind == overlay.Updates {
		return errors.New("it is what an updates image has, and would be lost with the next import: create another overlay, with a higher priority")
	}
	path, err := d.under.Land(op.Path)
	if err != nil {
		return err
	}
	g, err := d.content(op.Name)
	if err != nil {
		return err
	}
	switch op.Verb {
	case overlay.Add:
		err = g.add(path)
	case overlay.Set:
		err = g.set(path, op)
	case overlay.Mask:
		err = g.hide(path)
	case overlay.Unset:
		err = g.clear(path)
	}
	if err != nil {
		return fmt.Errorf("%s /%s: %w", op.Verb, path, err)
	}
	return nil
}

func (d *Draft) create(op overlay.Operation) error {
	o := overlay.Overlay{Name: op.Name, Kind: overlay.Ordinary, Scope: op.Scope, Priority: op.Priority, Enabled: true, Writable: op.Writable}
	if err := d.add(o); err != nil || !op.Writable {
		return err
	}
	_, err := d.newGeneration(op.Name)
	return err
}

// add has the index name a new overlay.
func (d *Draft) add(o overlay.Overlay) error {
	isOfName := func(other overlay.Placed) bool { return other.Name == o.Name }
	if d.Index.Find(o.Name) != nil || slices.ContainsFunc(d.others, isOfName) {
		return errors.New("there is one of this name already")
	}
	if o.Scope == "" {
		o.Scope = overlay.System
	}
	if o.Writable && !o.Scope.IsShared() {
		return errors.New("a writable overlay is for all to see: its scope is system or global")
	}
	o.Changed = now()
	if o.Created.IsZero() {
		o.Created = o.Changed
	}
	d.Index.Add(o)
	return d.refuseSecondWritable()
}

func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

// refuseSecondWritable makes sure that it is known where goes what is written to /usr.
func (d *Draft) refuseSecondWritable() error {
	var writable []string
	note := func(o overlay.Overlay) {
		if o.Writable && o.Enabled {
			writable = append(writable, o.Name)
		}
	}
	for _, o := range d.Index.Overlays {
		note(o)
	}
	for _, other := range d.others {
		note(other.Overlay)
	}
	if len(writable) > 1 {
		return fmt.Errorf("%s are both writable: only one can be enabled at a time", strings.Join(writable, " and "))
	}
	return nil
}

// freeze makes an ordinary overlay of a writable one. Whoever freezes has made the mount read-only: what is written to it from here on would be lost,
// or, as files are shared by hard links, change what never changes.
func (d *Draft) freeze(o *overlay.Overlay) error {
	if !o.Writable {
		return errors.New("it is not writable: there is nothing to freeze")
	}
	entries, err := overlay.Placed{Overlay: *o, Store: d.Store}.Entries()
	if err != nil {
		return err
	}
	g, err := d.content(o.Name)
	if err != nil {
		return err
	}
	o.Writable = false
	for _, entry := range entries {
		if err := checkPath(entry.Path); err != nil {
			return err
		}
		if err := g.remember(entry.Path); err != nil {
			return err
		}
	}
	return nil
}

// Finish completes the generations: they are checked against the rules, written to disk, and get their names.
func (d *Draft) Finish(ctx context.Context, force bool) error {
	for _, name := range slices.Sorted(maps.Keys(d.made)) {
		o := d.Index.Find(name)
		if err := d.finish(ctx, d.made[name], o, force); err != nil {
			return fmt.Errorf("overlay %s: %w", name, err)
		}
		o.Changed = now()
		o.Generation = d.made[name].number
	}
	return nil
}

func (d *Draft) finish(ctx context.Context, g *generation, o *overlay.Overlay, force bool) error {
	entries, err := g.entries()
	if err != nil {
		return err
	}
	if err := d.rules.check(entries, d.under, force); err != nil {
		return err
	}
	if err := d.rules.scan(ctx, g.treeDir()); err != nil {
		return err
	}
	if o.Scope.IsShared() {
		return g.complete(o.Writable)
	}
	if err := d.under.checkExtension(entries); err != nil {
		return err
	}
	if err := g.describeExtension(entries); err != nil {
		return err
	}
	return g.complete(false)
}

// forget gives up the new content of an overlay.
func (d *Draft) forget(name string) {
	if g := d.made[name]; g != nil {
		g.close()
		delete(d.made, name)
	}
}

// Close gives up what the draft has open.
func (d *Draft) Close() {
	for name := range d.made {
		d.forget(name)
	}
}

// Commit makes all of it true. After an error, and whenever it has to be taken back, TakeBack does that.
func (d *Draft) Commit() error { return d.Store.Write(d.Index) }

// TakeBack makes the store what it was when the draft began.
func (d *Draft) TakeBack() error { return d.Store.Write(&d.before) }
