package etcmerge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/accounts"
)

// Rollback takes back what was applied since the last Fold. Where a path still is what was put there it becomes what it was; where the administrator
// changed it since, theirs stays and is in Kept. Without anything to take back it does nothing.
//
// After an error, or a kill, some paths are back and some are not: Rollback again goes on. A Reset that was interrupted is brought to its end,
// too, since part of what was committed is back already.
func Rollback(ctx context.Context, dirs Dirs) (*Result, error) {
	result, err := takeBack(ctx, dirs, func(s *store, result *Result) error { return s.finish(false, result) })
	if err != nil {
		return nil, fmt.Errorf("roll back %s: %w", dirs.name(), err)
	}
	return result, nil
}

// Reset takes back everything, as Rollback does, and removes the Store.
func Reset(ctx context.Context, dirs Dirs) (*Result, error) {
	result, err := takeBack(ctx, dirs, (*store).reset)
	if err != nil {
		return nil, fmt.Errorf("reset %s: %w", dirs.name(), err)
	}
	return result, nil
}

func (s *store) reset(result *Result) error {
	if err := s.takeBack(&s.journal.Current, result); err != nil {
		return err
	}
	if err := s.takeBack(&s.journal.Committed, result); err != nil {
		return err
	}
	return s.destroy()
}

// Pending tells whether there is anything to take back.
func Pending(dirs Dirs) (bool, error) {
	j, err := readJournal(dirs)
	if err != nil {
		return false, err
	}
	return !j.isEmpty(), nil
}

func takeBack(ctx context.Context, dirs Dirs, do func(*store, *Result) error) (*Result, error) {
	s, err := openStore(ctx, dirs, false)
	if errors.Is(err, errNoStore) {
		return &Result{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer s.close()
	result := &Result{}
	if err := do(s, result); err != nil {
		return nil, err
	}
	result.sort()
	return result, nil
}

func (r *Result) sort() {
	for _, list := range []*[]string{&r.Restored, &r.Kept} {
		slices.SortFunc(*list, comparePaths)
		*list = slices.Compact(*list)
	}
}

// takeBack takes a section of the journal back, and empties it.
func (s *store) takeBack(section *section, result *Result) error {
	if section.isEmpty() {
		return nil
	}
	if err := s.checkSaved(section); err != nil {
		return err
	}
	if err := s.beginReverting(section); err != nil {
		return err
	}
	b := &reversal{store: s, section: section, result: result, kept: map[string]bool{}}
	if err := b.run(); err != nil {
		return err
	}
	section.Records, section.Dirs, section.Opaque = nil, nil, nil
	s.journal.Reverting = ""
	err := s.writeJournal(onlyJournal)
	if noSpace(err) && s.journal.isEmpty() {
		return nil // Reset removes it; if that is interrupted, all paths are found to be as before
	}
	if err != nil {
		return err
	}
	return s.clear()
}

// checkSaved makes sure, before anything is taken back, that no original that is needed is missing.
func (s *store) checkSaved(section *section) error {
	for i := range section.Records {
		r := &section.Records[i]
		if r.Saved == "" {
			continue
		}
		if _, err := statAt(s.saved, r.Saved); !errors.Is(err, unix.ENOENT) {
			continue
		}
		p, err := s.etc.look(r.Path)
		if err != nil {
			return err
		}
		if r.isPut(p.State) && !same(p.State, r.Before) {
			return damaged(s.dirs, fmt.Errorf("the original of %s, %s, is missing", s.etc.display(r.Path), filepath.Join(savedName, r.Saved)))
		}
	}
	return nil
}

func noSpace(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// beginReverting decides which directories get their modification time back, and writes that down, since afterwards it cannot be told
// who changed them. A directory of a transaction that was not committed always does: it may have been interrupted.
func (s *store) beginReverting(section *section) error {
	reverting := revertingCurrent
	if section == &s.journal.Committed {
		reverting = revertingAll
	}
	if s.journal.Reverting == reverting {
		return nil
	}
	if reverting == revertingAll {
		var dirs []dirTime
		for _, d := range section.Dirs {
			p, err := s.etc.stat(d.Path)
			if err != nil {
				return err
			}
			if p.Type != Directory || d.isStamp(p.MTime) {
				dirs = append(dirs, d)
			}
		}
		section.Dirs = dirs
	}
	s.journal.Reverting = reverting
	s.journal.Apart = s.journal.Apart || s.apart
	err := s.writeJournal(onlyJournal)
	if noSpace(err) {
		return nil // on a full disk, the modification times are the least
	}
	return err
}

// destroy removes the Store, the journal last.
func (s *store) destroy() error {
	for _, dir := range []place{{s.saved, savedName}, {s.fresh, freshName}} {
		if err := s.removeFrom(dir.dir, dir.name, nil); err != nil {
			return err
		}
		if err := unix.Unlinkat(s.fd, dir.name, unix.AT_REMOVEDIR); err != nil {
			if errors.Is(err, unix.ENOTEMPTY) {
				return nil // see removeFrom; the journal says that there is nothing to take back
			}
			return fmt.Errorf("remove %s: %w", dir.name, err)
		}
	}
	for _, name := range []string{journalTmp, journalName} {
		if err := unix.Unlinkat(s.fd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	if err := unix.Rmdir(s.dirs.Store); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("remove %s: %w", s.dirs.inStore(), err)
	}
	return nil
}

// reversal is one section being taken back.
type reversal struct {
	*store
	section *section
	result  *Result
	kept    map[string]bool
	merged  map[string]*accounts.File // account files that are merged back by entry
	written map[string]written        // what some of these have become, by path
}

func (b *reversal) run() error {
	b.writeAccounts()
	if err := b.restoreAll(); err != nil {
		return err
	}
	// Not under the lock of the account files: on a slow disk, that would make useradd and others wait, or give up.
	if err := b.syncEtc(); err != nil {
		return err
	}
	for path := range b.kept {
		b.result.Kept = append(b.result.Kept, path)
	}
	return nil
}

// restoreAll does both passes, with the lock of the account files if there are any.
func (b *reversal) restoreAll() error {
	unlock, err := b.lockAccounts()
	if err != nil {
		return err
	}
	defer unlock()
	if err := b.mergeAccounts(); err != nil {
		return err
	}
	records := b.section.Records
	for i := range slices.Backward(records) {
		if err := b.do(&records[i], b.removePut); err != nil {
			return err
		}
	}
	b.etc.forget()
	for i := range records {
		if err := b.do(&records[i], b.restore); err != nil {
			return err
		}
	}
	return b.restoreTimes()
}

// do does one of the two passes over a path.
func (b *reversal) do(r *record, pass func(*record, present) error) error {
	if err := b.ctx.Err(); err != nil {
		return err
	}
	p, err := b.etc.look(r.Path)
	if err != nil {
		return err
	}
	if isBack, err := b.isBack(r, p); err != nil || isBack {
		return err
	}
	if err := pass(r, p); meanwhile(err) {
		b.kept[r.Path] = true
	} else if err != nil {
		return fmt.Errorf("restore %s: %w", b.etc.display(r.Path), err)
	}
	return nil
}

// isBack tells whether nothing is to be done for a path. It may look as before and still be what was put there: another inode, with another
// modification time; or a directory with another label.
func (s *store) isBack(r *record, p present) (bool, error) {
	if !same(p.State, r.Before) {
		return false, nil
	}
	if r.Before.Type == Directory {
		return !r.hasPut(Directory), nil
	}
	if r.Before.Type == Absent || !r.isPut(p.State) {
		return true, nil
	}
	saved, err := statAt(s.saved, r.Saved)
	if errors.Is(err, unix.ENOENT) {
		return true, nil
	}
	return err == nil && saved.ino == p.ino && saved.dev == p.dev, err
}

func (b *reversal) restored(r *record) { b.result.Restored = append(b.result.Restored, r.Path) }

// removePut is the first pass, from the leaves up: what was not there goes, and so do directories that took the place of files.
func (b *reversal) removePut(r *record, p present) error {
	isDirForFile := r.Before.IsFile() && p.Type == Directory
	if b.merged[r.Path] != nil || p.Type == Absent || r.Before.Type != Absent && !isDirForFile {
		return nil
	}
	if p.isHeld() || !r.isPut(p.State) {
		return errChanged
	}
	var err error
	if isDirForFile {
		err = b.exchange(place{b.saved, r.Saved}, r.Path, p)
	} else {
		err = b.remove(r.Path, p)
	}
	if err == nil {
		b.restored(r)
	}
	return err
}

// restore is the second pass, from the root down: what was there comes back.
func (b *reversal) restore(r *record, p present) error {
	if f := b.merged[r.Path]; f != nil {
		return b.restoreAccounts(r, p, f)
	}
	if b.kept[r.Path] || r.Before.Type == Absent {
		return nil
	}
	if p.isHeld() {
		return errChanged
	}
	if p.Type == Directory && r.Before.Type == Directory {
		return b.restoreAttributes(r, p)
	}
	if !r.isPut(p.State) {
		return errChanged
	}
	from := place{b.saved, r.Saved}
	if r.Before.Type == Directory {
		from = place{b.fresh, b.nextFresh()}
		if err := createDir(from.dir, from.name, r.Before); err != nil {
			return err
		}
	}
	var err error
	switch {
	case p.Type == Absent:
		_, err = b.into(from, r.Path, unix.RENAME_NOREPLACE)
	case r.Before.Type == Directory:
		err = b.exchange(from, r.Path, p)
	default:
		err = b.replace(from, r.Path, p)
	}
	if err == nil {
		b.restored(r)
	}
	return err
}

// restoreTimes gives directories their modification times back.
func (b *reversal) restoreTimes() error {
	for _, d := range b.section.Dirs {
		if d.IsNew {
			continue
		}
		if err := b.setDirTime(d.Path, d.MTime); err != nil {
			return err
		}
	}
	return nil
}

// restoreAttributes gives a directory back its owner, mode and xattrs, each only if it still is as it was put: several calls
// are needed to change them all, between which a program can be killed.
func (b *reversal) restoreAttributes(r *record, p present) error {
	if !r.hasPut(Directory) {
		return nil // the administrator's own, in place of one that was removed
	}
	want, set, remove, isWhole := attributesBack(r, p.State)
	if sameAttributes(want, p.State) && len(set) == 0 && len(remove) == 0 {
		if !isWhole {
			return errChanged
		}
		return nil
	}
	fd, err := b.openSame(r.Path, p)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := writeAttributes(fd, want, set, remove); err != nil {
		return err
	}
	b.restored(r)
	if !isWhole {
		return errChanged
	}
	return nil
}

// attributesBack decides what a directory's attributes go back to, and whether that is all as before.
func attributesBack(r *record, now State) (want State, set, remove []Xattr, isWhole bool) {
	put := func(is func(State) bool) bool { return slices.ContainsFunc(r.After, is) }
	want, isWhole = now, true
	if now.UID != r.Before.UID || now.GID != r.Before.GID {
		if put(func(s State) bool { return s.Type == Directory && s.UID == now.UID && s.GID == now.GID }) {
			want.UID, want.GID = r.Before.UID, r.Before.GID
		} else {
			isWhole = false
		}
	}
	if now.Mode != r.Before.Mode {
		if put(func(s State) bool { return s.Type == Directory && s.Mode == now.Mode }) {
			want.Mode = r.Before.Mode
		} else {
			isWhole = false
		}
	}
	names := map[string]bool{}
	for _, s := range append(slices.Clone(r.After), r.Before) {
		for _, x := range s.Xattrs {
			names[string(x.Name)] = true
		}
	}
	for name := range names {
		had, wasThere := r.Before.xattr(name)
		has, isThere := now.xattr(name)
		switch {
		case wasThere == isThere && bytes.Equal(had, has):
		case !put(func(s State) bool {
			value, ok := s.xattr(name)
			return s.Type == Directory && ok == isThere && bytes.Equal(value, has)
		}):
			isWhole = false
		case wasThere:
			set = append(set, Xattr{[]byte(name), had})
		default:
			remove = append(remove, Xattr{Name: []byte(name)})
		}
	}
	return want, set, remove, isWhole
}

func (s State) xattr(name string) ([]byte, bool) {
	for _, x := range s.Xattrs {
		if string(x.Name) == name {
			return x.Value, true
		}
	}
	return nil, false
}
