package etcmerge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/accounts"
	"github.com/liveapply/liveapply/internal/ostree"
)

// Apply carries out a plan. repo is the one the plan was made from; a plan of PlanFiles needs none.
//
// All new files are made and all originals are saved first, in the Store; then the journal is written and synced, and only then /etc is touched. A path that is
// not as in the plan any more is kept, an account file merged with what it is now. A plan of MakePlan begins a transaction: what an interrupted
// one left is rolled back before. One of PlanFiles belongs to the transaction under way.
//
// After an error, or a kill, /etc may be changed in part: Rollback takes that back, and Apply of the same plan begins again.
//
// made counts the changes that have been made ready, which is nearly all of the work; nil if nobody looks.
func Apply(ctx context.Context, repo *ostree.Repo, plan *Plan, dirs Dirs, made *atomic.Int64) (*Result, error) {
	if made == nil {
		made = &atomic.Int64{}
	}
	result, err := apply(ctx, repo, plan, dirs, made)
	if err != nil {
		return nil, fmt.Errorf("change %s: %w", dirs.name(), err)
	}
	return result, nil
}

func apply(ctx context.Context, repo *ostree.Repo, plan *Plan, dirs Dirs, made *atomic.Int64) (*Result, error) {
	if err := plan.check(); err != nil {
		return nil, err
	}
	s, err := openStore(ctx, dirs, len(plan.Changes) > 0)
	if errors.Is(err, errNoStore) {
		return &Result{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.finish(plan.Extends, &Result{}); err != nil {
		return nil, err
	}
	a := &application{store: s, repo: repo, made: made}
	return &a.result, a.run(plan.Changes)
}

// check refuses a plan that leads out of /etc.
func (p *Plan) check() error {
	for i, c := range p.Changes {
		if err := checkPath(c.Path); err != nil {
			return fmt.Errorf("the plan is damaged: %w", err)
		}
		if i > 0 && comparePaths(p.Changes[i-1].Path, c.Path) >= 0 {
			return fmt.Errorf("the plan is damaged: %q is not in order", c.Path)
		}
	}
	return nil
}

// finish brings an interrupted operation to an end: the current transaction is taken back, unless what follows extends it.
func (s *store) finish(extends bool, result *Result) error {
	reverting := s.journal.Reverting
	if reverting != "" || !extends {
		if err := s.takeBack(&s.journal.Current, result); err != nil {
			return err
		}
	}
	if reverting == revertingAll {
		return s.takeBack(&s.journal.Committed, result)
	}
	return nil
}

// application is one Apply under way.
type application struct {
	*store
	repo   *ostree.Repo
	made   *atomic.Int64
	steps  []step
	back   map[string]int64 // the directories that get their own modification time back, of Put: nothing in them is ours any more
	stamps map[string]int64 // what directories are to get
	result Result
}

// step is a change that is ready to be done.
type step struct {
	Change         // After is complete
	present        // what is there
	fresh   string // in new/: what comes there
	done    bool
}

func (a *application) run(changes []Change) error {
	changes, unlock, err := a.updateAccounts(changes)
	if err != nil {
		return err
	}
	defer unlock()
	if err := a.prepare(changes); err != nil || len(a.steps) == 0 {
		return err
	}
	return a.carryOut()
}

// carryOut does what is prepared.
func (a *application) carryOut() error {
	a.journal.Apart = a.journal.Apart || a.apart
	stamp := time.Now().UnixNano()
	if err := a.noteDirs(stamp); err != nil {
		return err
	}
	if err := a.writeJournal(wholeStore); err != nil {
		return err
	}
	if err := a.execute(); err != nil {
		return err
	}
	if err := a.stampDirs(); err != nil {
		return err
	}
	// No sync: a power cut leaves of this what a kill does, each path as before or as put, and the journal, which is on disk, knows
	// both. What is in a file was on disk before the file got its name. Fold syncs, because after it the journal knows less.
	return a.removeFrom(a.fresh, freshName, nil) // what was kept
}

// updateAccounts locks the account files, if any are to change, and merges what was done to them since the plan was made.
func (a *application) updateAccounts(changes []Change) ([]Change, func(), error) {
	if !slices.ContainsFunc(changes, func(c Change) bool { return accounts.Is(c.Path) }) {
		return changes, func() {}, nil
	}
	unlock, err := lockAccounts(a.ctx, a.etc)
	if err != nil {
		return nil, nil, err
	}
	changes = slices.Clone(changes)
	if err := a.mergeNow(changes); err != nil {
		unlock()
		return nil, nil, err
	}
	return changes, unlock, nil
}

// mergeNow replaces, in changes, those of account files that are not any more what they were.
func (a *application) mergeNow(changes []Change) error {
	merges := map[string]*accounts.File{}
	now := map[string]present{}
	for _, c := range changes {
		if !accounts.Is(c.Path) || !c.hasText() {
			continue
		}
		p, content, err := a.readNow(c.Path)
		if err != nil {
			return err
		}
		if (p.Type == Regular || p.Type == Absent && c.Before.Type == Absent) && !p.mountPoint && !p.immutable {
			merges[c.Path], now[c.Path] = &accounts.File{Base: c.Base, Ours: content, Theirs: c.Text}, p
		}
	}
	accounts.Merge(merges)
	var conflicts []Conflict
	for i, c := range changes {
		f := merges[c.Path]
		if f == nil || bytes.Equal(f.Ours, f.Base) && bytes.Equal(f.Result, f.Theirs) {
			continue
		}
		conflicts = append(conflicts, conflictsIn(f, c.Path)...)
		p := now[c.Path]
		if !same(State{Type: p.Type, Mode: p.Mode, UID: p.UID, GID: p.GID, Xattrs: p.Xattrs, Checksum: c.Before.Checksum}, c.Before) {
			c.After.Mode, c.After.UID, c.After.GID, c.After.Xattrs = p.Mode, p.UID, p.GID, p.Xattrs
		}
		c.Before, c.Base, c.Text = p.State, f.Ours, f.Result
		c.After.Checksum = textChecksum(f.Result)
		changes[i] = c
	}
	if len(conflicts) > 0 {
		return &ConflictError{conflicts}
	}
	return nil
}

// readNow reads a small file in /etc. What is no regular file has no content.
func (s *store) readNow(path string) (present, []byte, error) {
	p, err := s.etc.look(path)
	if err != nil || p.Type != Regular || p.mountPoint {
		return p, nil, err
	}
	dir, name, err := s.etc.parent(path)
	if err != nil {
		return p, nil, err
	}
	content, err := readSmall(dir, name)
	p.Checksum = textChecksum(content)
	return p, content, err
}

// prepare saves and makes what the steps need, and adds them to the journal in memory.
func (a *application) prepare(changes []Change) error {
	var records []record
	for _, c := range changes {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		a.made.Add(1)
		p, err := a.etc.look(c.Path)
		if err != nil {
			return err
		}
		if p.isHeld() || !same(p.State, c.Before) {
			a.result.Kept = append(a.result.Kept, c.Path)
			continue
		}
		if c.hasText() && same(p.State, c.After) {
			continue // as it is to be already
		}
		r, err := a.prepareStep(c, p)
		if errors.Is(err, errChanged) {
			a.result.Kept = append(a.result.Kept, c.Path)
			continue
		}
		if err != nil {
			return fmt.Errorf("prepare %s: %w", a.etc.display(c.Path), err)
		}
		if r != nil {
			records = append(records, *r)
		}
	}
	a.journal.Current.Records = append(a.journal.Current.Records, records...)
	a.journal.Current.sort()
	return nil
}

// prepareStep returns the record that is to be added, nil if the current transaction has one already.
func (a *application) prepareStep(c Change, p present) (*record, error) {
	st := step{Change: c, present: p}
	saved := ""
	var err error
	if p.IsFile() {
		if saved, err = a.save(c.Path, p); err != nil {
			return nil, err
		}
	}
	if c.After.Type != Absent && c.Kind() != "attributes" {
		if st.fresh, st.After, err = a.stage(a.repo, c); err != nil {
			return nil, err
		}
	}
	put := ""
	if accounts.Is(c.Path) && c.hasText() {
		if put, err = a.saveText(c.Text, State{Type: Regular, Mode: 0o600}); err != nil {
			return nil, err
		}
	}
	a.steps = append(a.steps, st)

	r := a.journal.Current.record(c.Path)
	isNew := r == nil
	switch {
	case isNew:
		r = &record{Path: c.Path, Before: p.State, Saved: saved}
	case r.isPut(p.State) || same(p.State, r.Before):
		// what was there before the transaction is known
	default: // changed by the administrator since
		if err := a.rebase(r, p.State, saved); err != nil {
			return nil, err
		}
	}
	r.addPut(st.After)
	if p.Type == Directory != (c.After.Type == Directory) && p.Type != Absent {
		r.addPut(State{}) // where exchange cannot exchange there is an instant without either
	}
	r.Put = put
	if !isNew {
		return nil, nil
	}
	return r, nil
}

// rebase gives a record another state to go back to, because the administrator changed the path after what the record tells: to what
// they made of it, without what was put there by us.
func (s *store) rebase(r *record, now State, saved string) error {
	merges, err := s.backMerges([]backFile{{r, now, place{s.saved, saved}}})
	if err != nil {
		return err
	}
	if f := merges[r.Path]; f != nil {
		accounts.Merge(merges)
		if saved, err = s.saveText(f.Result, now); err != nil {
			return err
		}
		now.Checksum = textChecksum(f.Result)
	}
	r.Before, r.Saved = now, saved
	return nil
}

// noteDirs adds the directories that come or go, and those in which entries do or are replaced.
func (a *application) noteDirs(stamp int64) error {
	a.stamps = map[string]int64{}
	for _, st := range a.steps {
		if st.Kind() == "attributes" {
			continue
		}
		dir, _ := split(st.Path)
		a.stamps[dir] = stamp
		if st.Before.Type == Directory || st.After.Type == Directory {
			a.stamps[st.Path] = stamp
		}
	}
	maps.Copy(a.stamps, a.back)
	var dirs []dirTime
	for _, path := range slices.Sorted(maps.Keys(a.stamps)) {
		stamp := a.stamps[path]
		p, err := a.etc.stat(path)
		if err != nil {
			return err
		}
		if p.mountPoint {
			delete(a.stamps, path)
			continue
		}
		d := a.journal.Current.dirTime(path)
		if d == nil {
			dirs = append(dirs, dirTime{Path: path, IsNew: p.Type != Directory, MTime: p.MTime, Stamps: []int64{stamp}})
			continue
		}
		if p.Type == Directory && !d.isStamp(p.MTime) {
			d.IsNew, d.MTime = false, p.MTime
		}
		d.Stamps = append(d.Stamps, stamp)
	}
	a.journal.Current.Dirs = append(a.journal.Current.Dirs, dirs...)
	a.journal.Current.sort()
	return nil
}

// stampDirs gives these directories the modification time by which takeBack will know that nobody else changed them.
func (a *application) stampDirs() error {
	for _, path := range slices.Sorted(maps.Keys(a.stamps)) {
		if err := a.setDirTime(path, a.stamps[path]); err != nil {
			return err
		}
	}
	return nil
}

// setDirTime sets the modification time of a directory, if there is one.
func (s *store) setDirTime(path string, mtime int64) error {
	fd, err := s.etc.openDir(path)
	if err == nil {
		defer unix.Close(fd)
		err = setMTime(fd, ".", mtime)
	}
	if err != nil && !meanwhile(err) {
		return fmt.Errorf("set the modification time of %s: %w", s.etc.display(path), err)
	}
	return nil
}

// execute does the steps: first what goes, from the leaves up, then what comes, from the root down.
func (a *application) execute() error {
	for i := range slices.Backward(a.steps) {
		if st := &a.steps[i]; st.After.Type == Absent {
			if err := a.do(st); err != nil {
				return err
			}
		}
	}
	a.etc.forget()
	for i := range a.steps {
		if st := &a.steps[i]; st.After.Type != Absent {
			if err := a.do(st); err != nil {
				return err
			}
		}
	}
	for _, st := range a.steps {
		if st.done {
			a.result.Changed = append(a.result.Changed, st.Path)
		} else {
			a.result.Kept = append(a.result.Kept, st.Path)
		}
	}
	slices.SortFunc(a.result.Kept, comparePaths)
	return nil
}

func (a *application) do(st *step) error {
	if err := a.ctx.Err(); err != nil {
		return err
	}
	err := a.doStep(st)
	st.done = err == nil
	if err != nil && !meanwhile(err) {
		return fmt.Errorf("%s %s: %w", st.Kind(), a.etc.display(st.Path), err)
	}
	return nil
}

func (a *application) doStep(st *step) error {
	from := place{a.store.fresh, st.fresh}
	switch {
	case st.After.Type == Absent:
		return a.remove(st.Path, st.present)
	case st.Before.Type == Absent:
		_, err := a.into(from, st.Path, unix.RENAME_NOREPLACE)
		return err
	case st.Before.Type == Directory && st.After.Type == Directory:
		fd, err := a.openSame(st.Path, st.present)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return setAttributes(fd, st.After)
	case st.Before.Type == Directory || st.After.Type == Directory:
		return a.exchange(from, st.Path, st.present)
	}
	return a.replace(from, st.Path, st.present)
}
