package etcmerge

import (
	"fmt"
	"slices"

	"github.com/liveapply/liveapply/internal/accounts"
)

// NewFile is a file that a tool made, such as ld.so.cache, or an account file as systemd-sysusers left it in a scratch copy of /etc.
type NewFile struct {
	Path    string // relative to /etc
	Content []byte
	// Base is, for an account file, the content that the tool began with; nil means what is there now. What was changed in /etc since
	// is merged by entry.
	Base []byte
	// Mode, UID and GID are for a file that does not exist yet; one that does keeps its own, and its xattrs. A Mode of 0 means 0644, and
	// 0600 for shadow and gshadow.
	Mode, UID, GID uint32
}

// PlanFiles plans to put the given files into /etc, within the transaction under way. It only reads. A path that is not a regular file, immutable, or mounted on,
// stays as it is and is in Local; one that has the content already is left out.
func PlanFiles(dirs Dirs, files []NewFile) (*Plan, error) {
	plan, err := planFiles(dirs, files)
	if err != nil {
		return nil, fmt.Errorf("plan files for /etc: %w", err)
	}
	return plan, nil
}

func planFiles(dirs Dirs, files []NewFile) (*Plan, error) {
	etc, err := openRoot(dirs.Etc, dirs.name())
	if err != nil {
		return nil, err
	}
	s := &store{etc: etc}
	defer etc.close()
	plan := &Plan{Extends: true}
	merges := map[string]*accounts.File{}
	for _, f := range files {
		if err := checkPath(f.Path); err != nil || f.Path == "" {
			return nil, fmt.Errorf("%q is no path of a file below /etc", f.Path)
		}
		if err := s.planFile(plan, merges, f); err != nil {
			return nil, err
		}
	}
	accounts.Merge(merges)
	for i := range plan.Changes {
		c := &plan.Changes[i]
		if m := merges[c.Path]; m != nil {
			c.Base, c.Text = m.Ours, m.Result
		}
		c.After.Checksum = textChecksum(c.Text)
	}
	plan.Changes = slices.DeleteFunc(plan.Changes, func(c Change) bool { return same(c.Before, c.After) })
	slices.SortFunc(plan.Changes, func(a, b Change) int { return comparePaths(a.Path, b.Path) })
	for i := range plan.Changes {
		if i > 0 && plan.Changes[i-1].Path == plan.Changes[i].Path {
			return nil, fmt.Errorf("%s is given twice", etc.display(plan.Changes[i].Path))
		}
	}
	return plan, nil
}

func (s *store) planFile(plan *Plan, merges map[string]*accounts.File, f NewFile) error {
	var content []byte
	var p present
	var err error
	if accounts.Is(f.Path) {
		p, content, err = s.readNow(f.Path)
	} else {
		p, err = s.etc.look(f.Path)
	}
	switch {
	case err != nil:
		return err
	case p.mountPoint:
		plan.Local = append(plan.Local, Local{f.Path, LocalMountPoint})
		return nil
	case p.immutable:
		plan.Local = append(plan.Local, Local{f.Path, LocalImmutable})
		return nil
	case p.Type != Regular && p.Type != Absent:
		plan.Local = append(plan.Local, Local{f.Path, LocalRetyped})
		return nil
	}
	after := p.State
	if p.Type == Absent {
		after = State{Type: Regular, Mode: f.Mode, UID: f.UID, GID: f.GID}
		if f.Mode == 0 {
			after.Mode = defaultMode(f.Path)
		}
	}
	if accounts.Is(f.Path) {
		base := f.Base
		if base == nil {
			base = content
		}
		merges[f.Path] = &accounts.File{Base: base, Ours: content, Theirs: f.Content}
	}
	plan.Changes = append(plan.Changes, Change{Path: f.Path, Before: p.State, After: after, Text: f.Content})
	return nil
}

func defaultMode(path string) uint32 {
	if path == "shadow" || path == "gshadow" {
		return 0o600
	}
	return 0o644
}
