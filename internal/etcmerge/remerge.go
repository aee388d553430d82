package etcmerge

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
)

// Remerge is about a deployment that libostree made, and merged /etc for, while that had something in it that is not the administrator's. All are paths of
// directories.
type Remerge struct {
	Defaults string // usr/etc of the deployment whose /etc was merged
	Merged   string // its /etc, as it was merged
	Own      string // its /etc as the administrator's own
	New      string // usr/etc of the deployment that was made
	Etc      string // its /etc
}

// Do gives the deployment the /etc that the same merge would have made of the administrator's own: the merge (merge_configuration_from) is worked out for
// both at each path at which they differ. What has the first result gets the second one (Restored); what has neither was changed since, and stays (Kept). Done
// once more, it changes nothing.
func (r Remerge) Do(ctx context.Context) (*Result, error) {
	m := &remerge{ctx: ctx, result: &Result{}}
	for _, tree := range []struct {
		path, name string
		root       **root
	}{
		{r.Defaults, "the defaults of /etc", &m.defaults}, {r.Merged, "/etc", &m.merged}, {r.Own, "the administrator's own /etc", &m.own},
		{r.New, "the defaults of the new deployment", &m.new}, {r.Etc, "/etc of the new deployment", &m.etc},
	} {
		opened, err := openRoot(tree.path, tree.name)
		if err != nil {
			return nil, err
		}
		defer opened.close()
		*tree.root = opened
	}
	return m.result, m.visit("")
}

type remerge struct {
	ctx                             context.Context
	defaults, merged, own, new, etc *root
	result                          *Result
}

// notMerged are the files that are no configuration: locks, which differ for other reasons.
var notMerged = []string{".pwd.lock"}

// visit makes right what is at a path, and below it.
func (m *remerge) visit(path string) error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	if slices.Contains(notMerged, path) {
		return nil
	}
	merged, err := stateAt(m.merged, path)
	if err != nil {
		return err
	}
	own, err := stateAt(m.own, path)
	if err != nil {
		return err
	}
	if merged.Type != Directory && own.Type != Directory {
		return m.settle(path, merged, own)
	}
	if merged.Type != Directory { // before what is in it
		if err := m.settle(path, merged, own); err != nil {
			return err
		}
	}
	names, err := m.namesOfBoth(path, merged, own)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := m.visit(filepath.Join(path, name)); err != nil {
			return err
		}
	}
	switch {
	case path == "":
		return nil
	case own.Type != Directory: // after what is in it
		return m.settle(path, merged, own)
	case merged.Type == Directory:
		return m.settleDirectory(path, merged, own)
	}
	return nil
}

func stateAt(r *root, path string) (State, error) {
	p, err := r.stat(path)
	if err == nil && p.Type != Other {
		err = r.complete(path, &p)
	}
	return p.State, err
}

func (m *remerge) namesOfBoth(path string, merged, own State) ([]string, error) {
	var names []string
	for _, side := range []struct {
		root  *root
		state State
	}{{m.merged, merged}, {m.own, own}} {
		if side.state.Type != Directory {
			continue
		}
		some, err := side.root.names(path)
		if err != nil {
			return nil, err
		}
		names = append(names, some...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// mergedWith is what libostree's merge makes at a path out of a default, what /etc has, and the new default.
func mergedWith(old, etc, new State) State {
	switch {
	case etc.Type == Absent && old.Type == Absent:
		return new
	case etc.Type == Absent: // deleted
		return State{}
	case etc.Type == Directory && (old.Type == Directory || new.Type == Directory):
		return new // what is in it brings it along
	case sameDefault(old, etc):
		return new
	}
	return etc
}

// settle makes right what is at a path itself.
func (m *remerge) settle(path string, merged, own State) error {
	if same(merged, own) {
		return nil
	}
	old, err := stateAt(m.defaults, path)
	if err != nil {
		return err
	}
	new, err := stateAt(m.new, path)
	if err != nil {
		return err
	}
	now, err := stateAt(m.etc, path)
	if err != nil {
		return err
	}
	want := mergedWith(old, own, new)
	if same(now, want) {
		return nil
	}
	if !sameDefault(now, mergedWith(old, merged, new)) {
		m.result.Kept = append(m.result.Kept, path)
		return nil
	}
	source := m.own
	if sameDefault(want, new) && !sameDefault(want, own) {
		source = m.new
	}
	err = m.put(path, now, want, source)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		m.result.Kept = append(m.result.Kept, path) // somebody has put something in there
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", m.etc.display(path), err)
	}
	m.result.Restored = append(m.result.Restored, path)
	return nil
}

// put replaces what the deployment has at a path by what another tree has there.
func (m *remerge) put(path string, now, want State, source *root) error {
	if want.Type != Absent {
		if err := m.makeParents(path); err != nil {
			return err
		}
	}
	dir, name, err := m.etc.parent(path)
	if err != nil {
		return err
	}
	if now.Type == Directory {
		if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil {
			return err
		}
	}
	if want.Type == Absent {
		if now.Type == Directory {
			return nil
		}
		return unix.Unlinkat(dir, name, 0)
	}
	from, fromName, err := source.parent(path)
	if err != nil {
		return err
	}
	_, aside := split(temporary(path))
	if err := unix.Unlinkat(dir, aside, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err // of a run that was killed
	}
	if want.Type == Directory && now.Type != Absent && now.Type != Directory {
		if err := unix.Unlinkat(dir, name, 0); err != nil {
			return err
		}
	}
	if want.Type == Directory {
		return copyAt(from, fromName, dir, name)
	}
	if err := copyAt(from, fromName, dir, aside); err != nil {
		return err
	}
	return unix.Renameat(dir, aside, dir, name)
}

// makeParents makes the directories above a path as the administrator has them (ensure_directory_from_template).
func (m *remerge) makeParents(path string) error {
	parent, _ := split(path)
	if parent == "" {
		return nil
	}
	p, err := m.etc.stat(parent)
	if err != nil || p.Type == Directory {
		return err
	}
	if err := m.makeParents(parent); err != nil {
		return err
	}
	dir, name, err := m.etc.parent(parent)
	if err != nil {
		return err
	}
	from, fromName, err := m.own.parent(parent)
	if err != nil {
		return err
	}
	return copyAt(from, fromName, dir, name)
}

// settleDirectory is settle for a directory on both sides, after what is in it: one that the new defaults have not is there for the sake of what was changed
// in it, and as /etc has it.
func (m *remerge) settleDirectory(path string, merged, own State) error {
	new, err := stateAt(m.new, path)
	if err != nil || new.Type != Absent {
		return err
	}
	now, err := stateAt(m.etc, path)
	if err != nil || now.Type != Directory {
		return err
	}
	old, err := stateAt(m.defaults, path)
	if err != nil {
		return err
	}
	dir, name, err := m.etc.parent(path)
	if err != nil {
		return err
	}
	if sameDefault(old, own) {
		err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
		if err == nil || !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	if same(merged, own) || !sameDefault(now, merged) {
		return nil
	}
	fd, err := beneath.Open(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setAttributes(fd, own)
}
