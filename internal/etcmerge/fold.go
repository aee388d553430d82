package etcmerge

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Fold makes the current transaction permanent: Rollback no longer takes it back, Reset does. It is one write of the journal, which is
// on disk with all that was changed in /etc when it takes the place of the old one. That it did may be lost in a power cut; Reset leads to the
// same /etc by either. Originals that Reset would not need are dropped. Without a transaction it does nothing.
func Fold(dirs Dirs) error {
	s, err := openStore(context.Background(), dirs, false)
	if errors.Is(err, errNoStore) {
		return nil
	}
	if err == nil {
		defer s.close()
		err = s.commit()
	}
	if err != nil {
		return fmt.Errorf("commit the journal of %s: %w", dirs.name(), err)
	}
	return nil
}

func (s *store) commit() error {
	if s.journal.Reverting != "" {
		return ErrUnfinished
	}
	if s.journal.Current.isEmpty() {
		return nil
	}
	if err := s.fold(); err != nil {
		return err
	}
	s.journal.Committed.Records = slices.DeleteFunc(s.journal.Committed.Records, isVoid)
	return s.settle()
}

// settle makes a folded journal that of the disk.
func (s *store) settle() error {
	if s.apart { // otherwise it is on the Store's file system
		if err := s.syncEtc(); err != nil {
			return err
		}
	}
	// The folded journal no longer knows what the transactions before this one put: a path that is like that again after a power cut
	// would be taken for the administrator's. So the changes in /etc have to be on disk before it is.
	if err := s.replaceJournal(wholeStore); err != nil {
		return err
	}
	return s.clear() // the file system's own log keeps the order: no original is gone before the journal that names it
}

// fold adds the current transaction to the committed ones. What a path goes back to is what Reset would have left just before this transaction.
func (s *store) fold() error {
	committed, current := &s.journal.Committed, &s.journal.Current
	var records []record
	for _, r := range current.Records {
		c := committed.record(r.Path)
		if c == nil {
			records = append(records, r)
			continue
		}
		if !c.isPut(r.Before) && !same(r.Before, c.Before) {
			if err := s.rebase(c, r.Before, r.Saved); err != nil {
				return err
			}
		}
		c.After, c.Put = r.After, r.Put
	}
	var dirs []dirTime
	for _, d := range current.Dirs {
		c := committed.dirTime(d.Path)
		if c == nil {
			dirs = append(dirs, d)
			continue
		}
		if !d.IsNew && !c.isStamp(d.MTime) {
			c.IsNew, c.MTime = false, d.MTime
		}
		c.Stamps = d.Stamps
	}
	committed.Records = append(committed.Records, records...)
	committed.Dirs = append(committed.Dirs, dirs...)
	committed.sort()
	current.Records, current.Dirs = nil, nil
	return nil
}

// isVoid tells whether there is nothing to take back: what was put there is what was there.
func isVoid(r record) bool {
	return !r.Before.IsFile() && !slices.ContainsFunc(r.After, func(s State) bool { return !same(s, r.Before) })
}
