package etcmerge

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
)

// backFile is an account file that is to be taken back: its record, and what it is now.
type backFile struct {
	record *record
	now    State
	at     place // where its present content is
}

// backMerges reads what is needed to take account files back by entry: base is what was put, ours what is there, theirs what was there
// before. A file is left out if it is not a regular file everywhere, or if the journal's files are gone: then Reset was interrupted at its very end.
func (s *store) backMerges(files []backFile) (map[string]*accountMerge, error) {
	merges := map[string]*accountMerge{}
	for _, f := range files {
		r := f.record
		if !isAccounts(r.Path) || r.Put == "" || f.now.Type != Regular || r.Before.Type != Regular && r.Before.Type != Absent {
			continue
		}
		m := &accountMerge{}
		var err error
		if m.ours, err = readSmall(f.at.dir, f.at.name); err != nil {
			return nil, err
		}
		if same(f.now, r.Before) {
			m.base, m.theirs = m.ours, m.ours
			merges[r.Path] = m
			continue
		}
		base, err := s.readSaved(r.Put)
		if err == nil {
			m.base = base
			m.theirs, err = s.readSaved(r.Saved)
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if r.isPut(f.now) {
			m.base = m.ours // put earlier than the last, but not changed since
		}
		merges[r.Path] = m
	}
	return merges, nil
}

// mergeAccounts decides, for all account files of the section, what they go back to.
func (b *reversal) mergeAccounts() (unlock func(), err error) {
	var files []backFile
	for i := range b.section.Records {
		r := &b.section.Records[i]
		if !isAccounts(r.Path) {
			continue
		}
		if unlock == nil {
			if unlock, err = lockAccounts(b.ctx, b.etc); err != nil {
				return nil, err
			}
		}
		p, err := b.etc.look(r.Path)
		if err != nil {
			unlock()
			return nil, err
		}
		if p.Type == Regular && !p.mountPoint {
			dir, name, err := b.etc.parent(r.Path)
			if err != nil {
				unlock()
				return nil, err
			}
			files = append(files, backFile{r, p.State, place{dir, name}})
		}
	}
	if unlock == nil {
		return func() {}, nil
	}
	if b.merged, err = b.backMerges(files); err != nil {
		unlock()
		return nil, err
	}
	mergeAccounts(b.merged)
	return unlock, nil
}

// restoreAccounts puts an account file back: the very file that was there if nothing was done to it since, otherwise what the merge made of it.
func (b *reversal) restoreAccounts(r *record, p present, f *accountMerge) error {
	isAttributesPut := slices.ContainsFunc(r.After, func(put State) bool {
		put.Checksum = p.Checksum
		return same(put, p.State)
	})
	isBefore := bytes.Equal(f.result, f.theirs) && isAttributesPut
	var err error
	switch {
	case p.mountPoint:
		return errChanged
	case isBefore && r.Before.Type == Absent:
		err = b.remove(r.Path, p)
	case isBefore:
		err = b.replace(place{b.saved, r.Saved}, r.Path, p)
	case bytes.Equal(f.result, f.ours):
		return errChanged
	default:
		from := place{b.fresh, b.nextFresh()}
		if _, err = createFile(from.dir, from.name, p.State, fromBytes(f.result)); err == nil {
			err = syncFile(from)
		}
		if err == nil {
			err = b.replace(from, r.Path, p)
		}
		b.kept[r.Path] = true
	}
	if err == nil {
		b.restored(r)
	}
	return err
}
