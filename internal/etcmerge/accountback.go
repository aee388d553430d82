package etcmerge

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"

	"github.com/liveapply/liveapply/internal/accounts"
)

// backFile is an account file that is to be taken back: its record, and what it is now.
type backFile struct {
	record *record
	now    State
	at     place // where its present content is
}

// backMerges reads what is needed to take account files back by entry: base is what was put, ours what is there, theirs what was there
// before. A file is left out if it is not a regular file everywhere, or if the journal's files are gone: then Reset was interrupted at its very end.
func (s *store) backMerges(files []backFile) (map[string]*accounts.File, error) {
	merges := map[string]*accounts.File{}
	for _, f := range files {
		r := f.record
		if !accounts.Is(r.Path) || r.Put == "" || f.now.Type != Regular || r.Before.Type != Regular && r.Before.Type != Absent {
			continue
		}
		m := &accounts.File{}
		var err error
		if m.Ours, err = readSmall(f.at.dir, f.at.name); err != nil {
			return nil, err
		}
		if same(f.now, r.Before) {
			m.Base, m.Theirs = m.Ours, m.Ours
			merges[r.Path] = m
			continue
		}
		base, err := s.readSaved(r.Put)
		if err == nil {
			m.Base = base
			m.Theirs, err = s.readSaved(r.Saved)
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if r.isPut(f.now) {
			m.Base = m.Ours // put earlier than the last, but not changed since
		}
		merges[r.Path] = m
	}
	return merges, nil
}

// lockAccounts takes the lock of the account files, if the section has any.
func (b *reversal) lockAccounts() (unlock func(), err error) {
	if !slices.ContainsFunc(b.section.Records, func(r record) bool { return accounts.Is(r.Path) }) {
		return func() {}, nil
	}
	return lockAccounts(b.ctx, b.etc)
}

// mergeAccounts decides, for all account files of the section, what they go back to.
func (b *reversal) mergeAccounts() error {
	var files []backFile
	for i := range b.section.Records {
		r := &b.section.Records[i]
		if !accounts.Is(r.Path) {
			continue
		}
		p, err := b.etc.look(r.Path)
		if err != nil {
			return err
		}
		if p.Type == Regular && !p.mountPoint {
			dir, name, err := b.etc.parent(r.Path)
			if err != nil {
				return err
			}
			files = append(files, backFile{r, p.State, place{dir, name}})
		}
	}
	var err error
	if b.merged, err = b.backMerges(files); err != nil {
		return err
	}
	accounts.Merge(b.merged)
	return nil
}

// written is an account file that is on disk in new/.
type written struct {
	at      place
	from    State // of the file whose place it is to take
	content []byte
}

// writeAccounts writes what account files are going to be, unless somebody changes them before they are locked. If it fails they are written then.
func (b *reversal) writeAccounts() {
	b.written = map[string]written{}
	if b.mergeAccounts() != nil {
		return
	}
	for i := range b.section.Records {
		r := &b.section.Records[i]
		f := b.merged[r.Path]
		if f == nil {
			continue
		}
		p, err := b.etc.look(r.Path)
		if err != nil || b.isBefore(r, p, f) || bytes.Equal(f.Result, f.Ours) {
			continue
		}
		if isBack, err := b.isBack(r, p); err == nil && !isBack {
			if at, err := b.writeAccount(p, f); err == nil {
				b.written[r.Path] = written{at, p.State, f.Result}
			}
		}
	}
}

// writeAccount writes what an account file is going to be, with the attributes that it has, and waits until that is on disk.
func (b *reversal) writeAccount(p present, f *accounts.File) (place, error) {
	at := place{b.fresh, b.nextFresh()}
	_, err := createFile(at.dir, at.name, p.State, fromBytes(f.Result))
	if err == nil {
		err = syncFile(at)
	}
	if err != nil {
		_ = removeAt(at.dir, at.name) // its blocks, if the disk is full
	}
	return at, err
}

// isBefore tells whether nothing was done to an account file since it was put.
func (b *reversal) isBefore(r *record, p present, f *accounts.File) bool {
	return bytes.Equal(f.Result, f.Theirs) && slices.ContainsFunc(r.After, func(put State) bool {
		put.Checksum = p.Checksum
		return same(put, p.State)
	})
}

// restoreAccounts puts an account file back: the very file that was there if nothing was done to it since, otherwise what the merge made of it.
func (b *reversal) restoreAccounts(r *record, p present, f *accounts.File) error {
	isBefore := b.isBefore(r, p, f)
	var err error
	switch {
	case p.mountPoint:
		return errChanged
	case isBefore && r.Before.Type == Absent:
		err = b.remove(r.Path, p)
	case isBefore:
		err = b.replace(place{b.saved, r.Saved}, r.Path, p)
	case bytes.Equal(f.Result, f.Ours):
		return errChanged
	default:
		w, ok := b.written[r.Path]
		if !ok || !same(w.from, p.State) || !bytes.Equal(w.content, f.Result) {
			w.at, err = b.writeAccount(p, f)
		}
		if err == nil {
			err = b.replace(w.at, r.Path, p)
		}
		b.kept[r.Path] = true
	}
	if err == nil {
		b.restored(r)
	}
	return err
}
