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
	if err := m.visit("", side{}, side{}); err != nil || len(m.result.Restored) == 0 {
		return m.result, err
	}
	return m.result, unix.Syncfs(m.etc.fd) // before the journal goes, without which this cannot be done again
}

type remerge struct {
	ctx                             context.Context
	defaults, merged, own, new, etc *root
	result                          *Result
}

// notMerged are the files that are no configuration: locks, which differ for other reasons.
var notMerged = []string{".pwd.lock"}

// side is one of the two merges, at a path: of /etc as it was merged, or of the administrator's own.
type side struct {
	etc    State // what that has there
	copied bool  // the directory that it is in, or is, was copied as it is, with all that is in it (copy_dir_recurse)
	gone   bool  // the directory that it is in was deleted
	unseen bool  // the directory that it is in, or is, took the place of something else, and the new defaults have one, too: libostree does not look into it
	parent bool  // it is a directory on both sides, and something in it was changed or added: it gets the attributes that /etc has (ensure_directory_from_template)
}

// in goes on with what is in a directory.
func (s side) in() side { return side{copied: s.copied, gone: s.gone, unseen: s.unseen} }

// at tells what /etc has at a path, and what that means for what is below: a directory that is no default, or differs from that in what it is itself, and that the
// new defaults have not, is copied; what was deleted is deleted with all that the new defaults have in it.
func (s side) at(old, etc, new State) side {
	s.etc = etc
	if s.unseen {
		return s
	}
	s.unseen = !s.copied && etc.Type == Directory && new.Type == Directory && old.Type != Directory && old.Type != Absent
	s.copied = s.copied || etc.Type == Directory && new.Type != Directory && !sameDefault(old, etc)
	s.gone = s.gone || etc.Type == Absent && old.Type != Absent
	return s
}

// result is what the merge makes, and whether that is what /etc has. A directory may be there all the same, for the sake of what was changed in it.
func (s side) result(old, new State) (result State, isEtc bool) {
	switch {
	case s.copied:
		return s.etc, true
	case s.gone:
		return State{}, false
	case s.unseen:
		return new, false
	case s.parent:
		return s.etc, true
	case s.etc.Type == Absent, s.etc.Type == Directory && new.Type == Directory, sameDefault(old, s.etc):
		return new, false
	}
	return s.etc, true
}

// visit makes right what is at a path, and below it.
func (m *remerge) visit(path string, merged, own side) error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	if slices.Contains(notMerged, path) {
		return nil
	}
	v := versions{path: path}
	var mergedEtc, ownEtc State
	for _, of := range []struct {
		root  *root
		state *State
	}{{m.defaults, &v.old}, {m.merged, &mergedEtc}, {m.own, &ownEtc}, {m.new, &v.new}} {
		var err error
		if *of.state, err = stateAt(of.root, path); err != nil {
			return err
		}
	}
	v.merged, v.own = merged.at(v.old, mergedEtc, v.new), own.at(v.old, ownEtc, v.new)
	for s, etc := range map[*side]*root{&v.merged: m.merged, &v.own: m.own} {
		if s.etc.Type == Directory && v.new.Type == Directory && !same(s.etc, v.new) {
			var err error
			if s.parent, err = m.hasChanges(etc, path); err != nil {
				return err
			}
		}
	}
	v.was, _ = v.merged.result(v.old, v.new)
	v.want, v.isOwn = v.own.result(v.old, v.new)
	if v.want.Type == Directory && path != "" { // before what is in it
		if err := m.settle(v); err != nil {
			return err
		}
	}
	names, err := m.namesIn(v)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := m.visit(filepath.Join(path, name), v.merged.in(), v.own.in()); err != nil {
			return err
		}
	}
	if v.want.Type != Directory { // after what is in it
		return m.settle(v)
	}
	return nil
}

// versions are what there is at a path.
type versions struct {
	path        string
	old, new    State
	merged, own side
	was, want   State // what libostree has made, and would have made of the administrator's own
	isOwn       bool  // want is what the administrator has
}

func stateAt(r *root, path string) (State, error) {
	p, err := r.stat(path)
	if err == nil && p.Type != Other {
		err = r.complete(path, &p)
	}
	return p.State, err
}

// hasChanges tells whether anything in a directory was changed or added.
func (m *remerge) hasChanges(etc *root, path string) (bool, error) {
	names, err := etc.names(path)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		child := filepath.Join(path, name)
		has, err := stateAt(etc, child)
		if err != nil {
			return false, err
		}
		old, err := stateAt(m.defaults, child)
		if err != nil || !sameDefault(old, has) {
			return err == nil, err
		}
	}
	return false, nil
}

// namesIn lists what any of them has in a directory.
func (m *remerge) namesIn(v versions) ([]string, error) {
	var names []string
	for _, of := range []struct {
		root  *root
		state State
	}{{m.merged, v.merged.etc}, {m.own, v.own.etc}, {m.new, v.new}} {
		if of.state.Type != Directory {
			continue
		}
		some, err := of.root.names(v.path)
		if err != nil {
			return nil, err
		}
		names = append(names, some...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// settle makes right what is at a path itself.
func (m *remerge) settle(v versions) error {
	now, err := stateAt(m.etc, v.path)
	if err != nil {
		return err
	}
	if same(now, v.want) {
		if same(v.was, v.want) {
			return nil
		}
		return m.etc.removeTemporary(v.path) // of a run that was killed
	}
	// A directory that is there for the sake of what was changed in it is as /etc has it.
	isParent := now.Type == Directory && v.was.Type != Directory && v.merged.etc.Type == Directory
	switch {
	case same(v.was, v.want) && !isParent:
		return nil
	case !sameDefault(now, v.was) && !(isParent && sameDefault(now, v.merged.etc)):
		if !isParent || v.own.etc.Type != Directory {
			m.result.Kept = append(m.result.Kept, v.path)
		}
		return nil
	}
	source := m.new
	if v.isOwn {
		source = m.own
	}
	err = m.put(v.path, now, v.want, source)
	if errors.Is(err, unix.ENOTEMPTY) && v.own.etc.Type == Directory { // it is there for the sake of what was changed in it
		if same(now, v.own.etc) {
			return nil
		}
		return m.put(v.path, now, v.own.etc, m.own)
	}
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		m.result.Kept = append(m.result.Kept, v.path) // somebody has put something in there
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", m.etc.display(v.path), err)
	}
	m.result.Restored = append(m.result.Restored, v.path)
	return nil
}

// put replaces what the deployment has at a path by what another tree has there: in one step, so that there is the one or the other.
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
	switch {
	case want.Type == Absent:
		return removeAt(dir, name)
	case want.Type == Directory && now.Type == Directory:
		return m.setAttributes(dir, name, want)
	}
	from, fromName, err := source.parent(path)
	if err != nil {
		return err
	}
	aside := temporary(path)
	if err := copyNear(place{from, fromName}, place{dir, aside}); err != nil {
		return err
	}
	if now.Type == Absent || now.Type != Directory && want.Type != Directory {
		return unix.Renameat(dir, aside, dir, name)
	}
	if err := unix.Renameat2(dir, aside, dir, name, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	err = removeAt(dir, aside)
	if errors.Is(err, unix.ENOTEMPTY) { // somebody has put something in there
		return errors.Join(err, unix.Renameat2(dir, aside, dir, name, unix.RENAME_EXCHANGE), removeAt(dir, aside))
	}
	return err
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

func (m *remerge) setAttributes(dir int, name string, want State) error {
	fd, err := beneath.Open(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setAttributes(fd, want)
}
