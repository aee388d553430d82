package etcmerge

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"

	"github.com/liveapply/liveapply/internal/accounts"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/treediff"
)

// accountFile is an account file whose default changes, and which is a regular file everywhere.
type accountFile struct {
	accounts.File
	local    present
	old, new State // old is Absent if the old default has none
}

// addAccounts reads the three versions of an account file. It is false if the defaults are not regular files, so there are no
// entries to merge.
func (m *merge) addAccounts(c treediff.Change, local present) (bool, error) {
	old, err := stateOf(m.repo, c.Old)
	if err != nil {
		return false, err
	}
	new, err := stateOf(m.repo, c.New)
	if err != nil || new.Type != Regular || old.Type != Regular && old.Type != Absent {
		return false, err
	}
	f := &accountFile{local: local, old: old, new: new}
	if old.Type == Regular {
		if f.Base, err = m.repo.ReadFile(c.Old.Checksum, maxAccounts); err != nil {
			return false, err
		}
	}
	if f.Theirs, err = m.repo.ReadFile(c.New.Checksum, maxAccounts); err != nil {
		return false, err
	}
	if f.Ours, err = m.readAccounts(c.Path, &f.local); err != nil {
		return false, err
	}
	m.accounts[c.Path] = f
	return true, nil
}

// readAccounts reads an account file in /etc, and completes what is known about it to fit.
func (m *merge) readAccounts(path string, local *present) ([]byte, error) {
	dir, name, err := m.etc.parent(path)
	if err != nil {
		return nil, err
	}
	content, err := readSmall(dir, name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", m.etc.display(path), err)
	}
	if err := m.etc.complete(path, local); err != nil {
		return nil, err
	}
	local.Checksum = textChecksum(content)
	return content, nil
}

// planAccounts merges the account files, when all that change are known.
func (m *merge) planAccounts() error {
	if err := m.addShadows(); err != nil {
		return err
	}
	merges := make(map[string]*accounts.File, len(m.accounts))
	for path, f := range m.accounts {
		merges[path] = &f.File
	}
	accounts.Merge(merges)
	for _, path := range slices.Sorted(maps.Keys(m.accounts)) {
		f := m.accounts[path]
		m.conflicts = append(m.conflicts, conflictsIn(&f.File, path)...)
		change := Change{Path: path, Before: f.local.State, After: f.attributes(), Base: f.Ours, Text: f.Result}
		change.After.Checksum = textChecksum(f.Result)
		change.Merged = !bytes.Equal(f.Result, f.Theirs) || !bytes.Equal(f.Ours, f.Base)
		if same(change.Before, change.After) {
			if m.isListed(path) {
				m.local(path, LocalChanged)
			}
			continue
		}
		m.plan.Changes = append(m.plan.Changes, change)
	}
	return nil
}

// conflictsIn are the clashes of numbers that a merged account file has.
func conflictsIn(f *accounts.File, path string) []Conflict {
	var conflicts []Conflict
	for _, clash := range f.Clashes(path) {
		conflicts = append(conflicts, Conflict(clash))
	}
	return conflicts
}

// addShadows adds the shadow files whose own default does not change, for the entries that come or go with passwd and group.
func (m *merge) addShadows() error {
	for _, path := range accounts.Files() {
		shadow := accounts.ShadowOf(path)
		if m.accounts[path] == nil || shadow == "" || m.accounts[shadow] != nil {
			continue
		}
		local, err := m.etc.stat(shadow)
		if err != nil {
			return err
		}
		if local.Type != Regular || local.mountPoint || local.immutable || m.isListed(shadow) {
			continue
		}
		content, err := m.readAccounts(shadow, &local)
		if err != nil {
			return err
		}
		f := &accountFile{local: local, old: local.State, new: local.State}
		f.Base, f.Ours, f.Theirs = content, content, content
		m.accounts[shadow] = f
	}
	return nil
}

// isListed tells whether a path differs between the two defaults.
func (m *merge) isListed(path string) bool {
	_, ok := slices.BinarySearchFunc(m.changes, path, func(c treediff.Change, path string) int { return comparePaths(c.Path, path) })
	return ok
}

// attributes merges mode and owner: what was changed locally stays. The xattrs of a file that was changed in any way stay, too, as
// libostree copies them along with such a file.
func (f *accountFile) attributes() State {
	s := f.new
	if f.old.Type == Absent || f.local.Mode != f.old.Mode || f.local.UID != f.old.UID || f.local.GID != f.old.GID {
		s.Mode, s.UID, s.GID = f.local.Mode, f.local.UID, f.local.GID
		s.Xattrs = f.local.Xattrs
	}
	if f.old.Type == Absent || !bytes.Equal(f.Ours, f.Base) {
		s.Xattrs = f.local.Xattrs
	}
	return s
}

func textChecksum(content []byte) ostree.Checksum {
	return sha256.Sum256(content)
}
