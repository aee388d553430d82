package etcmerge

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/liveapply/liveapply/internal/accounts"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/treediff"
)

// Plan is what is going to change below /etc. As JSON it may contain password hashes: keep it in a file of mode 0600.
type Plan struct {
	Changes []Change `json:"changes,omitempty"` // in tree order
	Local   []Local  `json:"local,omitempty"`   // in tree order
	// Extends tells that the plan belongs to the transaction under way: it is from PlanFiles.
	Extends bool `json:"extends,omitempty"`
}

// Change is one path that changes.
type Change struct {
	Path   string          `json:"path"` // relative to /etc; "" is /etc itself
	Before State           `json:"before,omitzero"`
	After  State           `json:"after,omitzero"`   // Checksum is only set where the content is in the plan
	Object ostree.Checksum `json:"object,omitzero"`  // the file object that After's content, or target, comes from
	Base   []byte          `json:"base,omitempty"`   // of an account file: the content of Before
	Text   []byte          `json:"text,omitempty"`   // the content of After, unless it comes from an object
	Merged bool            `json:"merged,omitempty"` // an account file that both sides changed, merged by entry
	source *source         // of Put: where After's content, or target, comes from, instead of Object and Text
}

// Kind says in a word what happens to the path: "add", "remove", "replace", "merge", or "attributes" for a directory that
// only gets another mode, owner or xattrs.
func (c Change) Kind() string {
	switch {
	case c.Merged:
		return "merge"
	case c.Before.Type == Absent:
		return "add"
	case c.After.Type == Absent:
		return "remove"
	case c.Before.Type == Directory && c.After.Type == Directory:
		return "attributes"
	}
	return "replace"
}

// hasText tells whether the content is in the plan.
func (c Change) hasText() bool {
	return c.After.Type == Regular && c.Object.IsZero() && c.source == nil
}

// Local is a path whose default changes, and which stays as the administrator has it, with all below it.
type Local struct {
	Path string    `json:"path"`
	Kind LocalKind `json:"kind"`
}

// LocalKind says why a path stays.
type LocalKind string

// The kinds of local changes.
const (
	LocalChanged    LocalKind = "changed"     // content, mode or owner differ from the default
	LocalAdded      LocalKind = "added"       // the default did not have it
	LocalDeleted    LocalKind = "deleted"     // the default had it
	LocalRetyped    LocalKind = "retyped"     // it is of another type than the default
	LocalContent    LocalKind = "content"     // a directory that the target has not, but something local is in it
	LocalMountPoint LocalKind = "mount point" // something is mounted there
	LocalImmutable  LocalKind = "immutable"   // chattr +i or +a
)

// MakePlan decides how /etc gets from the defaults of the live commit to those of the target; old and new are usr/etc of the two. It
// only reads, and only looks at paths at which the two differ. An /etc that cannot be merged is a *ConflictError.
//
// The rule is libostree's merge_configuration_from, so that a reboot into the target leads to the same /etc: what differs from its old default in
// type, content, mode or owner, is the administrator's and stays; what is missing stays missing; the rest follows the target. For a
// directory's own mode and owner, see touched. Where libostree cannot merge, this is a conflict. What differs:
//
//   - Account files that both sides changed are merged by entry.
//   - A path that is the same in both defaults is not looked at. libostree resets a local change of a directory's
//     mode or owner if no entry in the directory was changed or added locally; here that happens only if the default of the
//     directory's mode or owner changes. And libostree refuses to merge at all if a directory was replaced by something else locally that the
//     target still has as a directory; here that is a conflict only if something changes in it.
//   - A directory that replaced a file locally, where the target has a directory, too: libostree takes the target's and loses what is in the
//     local one. Here the target's entries are added to the local ones; where that cannot be, it is a conflict.
//   - Devices, fifos, sockets, immutable files, and what something is mounted on, are left alone; libostree does not
//     copy such into a new deployment.
//   - Where the target replaces a directory by a symbolic link and something in the directory was changed locally, libostree goes on
//     through the link; here it is a conflict.
func MakePlan(ctx context.Context, repo *ostree.Repo, old, new ostree.Tree, dirs Dirs) (*Plan, error) {
	plan, err := makePlan(ctx, repo, old, new, dirs)
	if err != nil {
		return nil, fmt.Errorf("plan the merge of /etc: %w", err)
	}
	return plan, nil
}

func makePlan(ctx context.Context, repo *ostree.Repo, old, new ostree.Tree, dirs Dirs) (*Plan, error) {
	if old.IsZero() || new.IsZero() {
		return nil, errors.New("the live commit or the target has no /usr/etc: without both there is nothing to merge from and to; only a reboot leads to this target")
	}
	journal, err := readJournal(dirs)
	if err != nil {
		return nil, err
	}
	if journal.unfinished() {
		return nil, ErrUnfinished
	}
	changes, err := treediff.Diff(ctx, repo, old, new)
	if err != nil {
		return nil, err
	}
	etc, err := openRoot(dirs.Etc, dirs.name())
	if err != nil {
		return nil, err
	}
	defer etc.close()
	m := &merge{ctx: ctx, repo: repo, etc: etc, changes: changes, plan: &Plan{}, accounts: map[string]*accountFile{}}
	if len(changes) > 0 {
		if _, err := m.visit(0); err != nil {
			return nil, err
		}
	}
	if err := m.planAccounts(); err != nil {
		return nil, err
	}
	if len(m.conflicts) > 0 {
		return nil, &ConflictError{m.conflicts}
	}
	slices.SortFunc(m.plan.Changes, func(a, b Change) int { return comparePaths(a.Path, b.Path) })
	slices.SortFunc(m.plan.Local, func(a, b Local) int { return comparePaths(a.Path, b.Path) })
	return m.plan, nil
}

// merge is one MakePlan under way.
type merge struct {
	ctx       context.Context
	repo      *ostree.Repo
	etc       *root
	changes   []treediff.Change
	plan      *Plan
	accounts  map[string]*accountFile // by path; merged when all is known
	conflicts []Conflict
}

// outcome is what became of a change and all those below it in the list.
type outcome struct {
	next    int  // the first change that is not below
	stays   bool // something that is not the default is there
	deleted bool // something that the old default has is not there
}

// visit decides about the change at index i and all below it.
func (m *merge) visit(i int) (outcome, error) {
	if err := m.ctx.Err(); err != nil {
		return outcome{}, err
	}
	c := m.changes[i]
	local, err := m.etc.stat(c.Path)
	if err != nil {
		return outcome{}, err
	}
	switch {
	case local.mountPoint:
		return m.keep(i, LocalMountPoint), nil
	case local.immutable:
		return m.keep(i, LocalImmutable), nil
	case c.Old.Kind == ostree.KindNone:
		return m.visitAdded(i, local)
	case c.Old.Kind == ostree.KindFile:
		return m.visitFile(i, local)
	}
	return m.visitDirectory(i, local)
}

// visitAdded is for what only the target has.
func (m *merge) visitAdded(i int, local present) (outcome, error) {
	isDir := m.changes[i].New.Kind == ostree.KindDirectory
	switch {
	case local.Type == Absent:
		return m.addAll(i)
	case isDir && local.Type == Directory:
		return m.union(i, local)
	case isDir:
		return m.newlyDirectory(i), nil
	}
	return m.keepFile(i, local, LocalAdded)
}

// visitFile is for what is a file by the old default.
func (m *merge) visitFile(i int, local present) (outcome, error) {
	c := m.changes[i]
	if local.Type == Absent {
		return m.keep(i, LocalDeleted), nil
	}
	isDefault, err := m.isDefault(c.Path, &local, c.Old)
	if err != nil {
		return outcome{}, err
	}
	switch {
	case isDefault && c.New.Kind == ostree.KindDirectory:
		return m.addAll(i)
	case isDefault && accounts.Is(c.Path) && c.New.Kind == ostree.KindFile:
		return m.keepFile(i, local, LocalChanged)
	case isDefault:
		return outcome{next: i + 1}, m.change(c, local)
	case c.New.Kind == ostree.KindDirectory && local.Type == Directory:
		return m.union(i, local)
	case c.New.Kind == ostree.KindDirectory:
		return m.newlyDirectory(i), nil
	}
	return m.keepFile(i, local, LocalChanged)
}

// visitDirectory is for what is a directory by the old default.
func (m *merge) visitDirectory(i int, local present) (outcome, error) {
	c := m.changes[i]
	switch {
	case local.Type == Absent:
		return m.keep(i, LocalDeleted), nil
	case local.Type != Directory && c.New.Kind == ostree.KindDirectory:
		return m.newlyDirectory(i), nil
	case local.Type != Directory:
		return m.keep(i, LocalRetyped), nil
	case c.New.Kind != ostree.KindDirectory:
		return m.leave(i, local)
	}
	if c.Old.Meta != c.New.Meta {
		// /etc itself has no directory that libostree would copy its attributes along with.
		touched := false
		if c.Path != "" {
			var err error
			if touched, err = m.touched(c.Path, c.Old); err != nil {
				return outcome{}, err
			}
		}
		if !touched {
			if err := m.change(c, local); err != nil {
				return outcome{}, err
			}
		}
	}
	out, err := m.visitBelow(i)
	out.stays = true
	return out, err
}

// leave is for a directory that the target has not, or has a file in place of.
func (m *merge) leave(i int, local present) (outcome, error) {
	c := m.changes[i]
	isDefault, err := m.isDefault(c.Path, &local, c.Old)
	if err != nil {
		return outcome{}, err
	}
	changes, locals := len(m.plan.Changes), len(m.plan.Local)
	out, err := m.visitBelow(i)
	if err != nil {
		return outcome{}, err
	}
	added, err := m.hasAdded(c.Path, c.Old)
	if err != nil {
		return outcome{}, err
	}
	out.stays = out.stays || added
	isFile := c.New.Kind == ostree.KindFile
	switch {
	case isFile && (out.deleted || out.stays && isDefault):
		m.conflict(c.Path, "the target has a file in place of this directory, in which something was changed, added or deleted locally: move away what is needed, copy the rest from /usr"+
			m.etc.display(c.Path)+", and apply again")
	case !isDefault:
		// libostree copies a directory whose own mode or owner was changed as a whole, with the old defaults in it.
		m.plan.Changes, m.plan.Local = m.plan.Changes[:changes], m.plan.Local[:locals]
		m.local(c.Path, LocalChanged)
		out.stays = true
	case out.stays:
		m.local(c.Path, LocalContent)
	default:
		return out, m.change(c, local)
	}
	return out, nil
}

// union is for a directory that both the administrator and the target made. An empty one gets the target's mode and owner: see touched.
func (m *merge) union(i int, local present) (outcome, error) {
	c := m.changes[i]
	names, err := m.etc.names(c.Path)
	if err != nil {
		return outcome{}, err
	}
	if len(names) == 0 {
		if err := m.change(c, local); err != nil {
			return outcome{}, err
		}
	}
	out, err := m.visitBelow(i)
	out.stays = true
	return out, err
}

// addAll adds what the target has at and below a path.
func (m *merge) addAll(i int) (outcome, error) {
	next := m.after(i)
	for j := i; j < next; j++ {
		c := m.changes[j]
		var before present
		if j == i {
			var err error
			if before, err = m.etc.stat(c.Path); err != nil {
				return outcome{}, err
			}
		}
		if err := m.change(c, before); err != nil {
			return outcome{}, err
		}
	}
	return outcome{next: next}, m.ctx.Err()
}

// visitBelow decides about everything that is below the change at index i.
func (m *merge) visitBelow(i int) (outcome, error) {
	all := outcome{next: i + 1}
	for all.next < len(m.changes) && treediff.Below(m.changes[all.next].Path, m.changes[i].Path) {
		one, err := m.visit(all.next)
		if err != nil {
			return all, err
		}
		all = outcome{next: one.next, stays: all.stays || one.stays, deleted: all.deleted || one.deleted}
	}
	return all, nil
}

// after returns the index of the first change that is not below the one at index i.
func (m *merge) after(i int) int {
	next := i + 1
	for next < len(m.changes) && treediff.Below(m.changes[next].Path, m.changes[i].Path) {
		next++
	}
	return next
}

// change plans what the target has at a path.
func (m *merge) change(c treediff.Change, local present) error {
	if err := m.etc.complete(c.Path, &local); err != nil {
		return err
	}
	after, err := stateOf(m.repo, c.New)
	if err != nil {
		return fmt.Errorf("%s of the target: %w", m.etc.display(c.Path), err)
	}
	if after.Type == Directory && sameDir(local.State, after) {
		return nil
	}
	change := Change{Path: c.Path, Before: local.State, After: after}
	if c.New.Kind == ostree.KindFile {
		change.Object = c.New.Checksum
	}
	m.plan.Changes = append(m.plan.Changes, change)
	return nil
}

// keepFile keeps a file, or plans that it is merged by entry.
func (m *merge) keepFile(i int, local present, kind LocalKind) (outcome, error) {
	c := m.changes[i]
	if accounts.Is(c.Path) && local.Type == Regular && c.New.Kind == ostree.KindFile {
		isText, err := m.addAccounts(c, local)
		if err != nil || isText {
			return outcome{next: i + 1, stays: true}, err
		}
	}
	if c.Old.Kind == ostree.KindFile && kind == LocalChanged {
		want, err := stateOf(m.repo, c.Old)
		if err != nil {
			return outcome{}, err
		}
		if want.Type != local.Type {
			kind = LocalRetyped
		}
	}
	return m.keep(i, kind), nil
}

// keep leaves a path, and all below it, to the administrator.
func (m *merge) keep(i int, kind LocalKind) outcome {
	m.local(m.changes[i].Path, kind)
	return outcome{next: m.after(i), stays: kind != LocalDeleted, deleted: kind == LocalDeleted}
}

func (m *merge) local(path string, kind LocalKind) {
	m.plan.Local = append(m.plan.Local, Local{Path: path, Kind: kind})
}

// newlyDirectory is libostree's "Modified config file newly defaults to directory".
func (m *merge) newlyDirectory(i int) outcome {
	m.conflict(m.changes[i].Path, "it was changed locally, and the target has a directory here: move it away, and apply again")
	return outcome{next: m.after(i), stays: true}
}

func (m *merge) conflict(path, reason string) {
	m.conflicts = append(m.conflicts, Conflict{Path: path, Reason: reason})
}
