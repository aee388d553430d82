package etcmerge

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Commit makes the current transaction permanent: Rollback no longer takes it back, Reset does. It is one write of the journal.
// Originals that Reset would not need are dropped. Without a transaction it does nothing.
func Commit(dirs Dirs) error {
	s, err := openStore(context.Background(), dirs, false)
	if errors.Is(err, errNoStore) {
		return nil
	}
	if err == nil {
		defer s.close()
		err = s.commit()
	}
	if err != nil {
		return fmt.Errorf("commit the journal of %s: %w", dirs.Etc, err)
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
	numbers := s.journal.Next
	if err := s.fold(); err != nil {
		return err
	}
	needs := onlyJournal
	if s.journal.Next != numbers {
		needs = wholeStore // an account file to go back to was made
	}
	if err := s.writeJournal(needs); err != nil {
		return err
	}
	return s.clear()
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
	committed.Records = slices.DeleteFunc(append(committed.Records, records...), isVoid)
	committed.Dirs = append(committed.Dirs, dirs...)
	committed.sort()
	current.Records, current.Dirs = nil, nil
	return nil
}

// isVoid tells whether there is nothing to take back: what was put there is what was there.
func isVoid(r record) bool {
	return !r.Before.IsFile() && !slices.ContainsFunc(r.After, func(s State) bool { return !same(s, r.Before) })
}
