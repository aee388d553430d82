package etcmerge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Put makes /etc have what the trees hold, on top of what it has otherwise. trees are directories in overlayfs layer format, topmost first.
//
// It may be called again and again, with the same trees or others: what the trees have as before is not touched, what they have no more is
// taken back, as Reset does it. What a path goes back to is what it was before the first Put. Without trees it is Reset. The Store is Put's alone.
//
// Where the administrator changed a path after it was put, or made one in a directory that was put, theirs stays, whatever the trees have there later. So does what cannot be replaced: a directory where a file
// is to come, a symbolic link where a directory is, a device, something immutable or mounted, a name that is not in UTF-8. All
// that is in Kept, without what would be below. A directory that /etc has keeps its own mode, owner and xattrs.
//
// Nothing is changed if a tree has what cannot be put at all: the account files, devices.
//
// After an error, or a kill, a part may be put: Put again takes that back and begins again, and Reset takes back all.
func Put(ctx context.Context, dirs Dirs, trees []string) (*Result, error) {
	result, err := put(ctx, dirs, trees)
	if err != nil {
		return nil, fmt.Errorf("put files into %s: %w", dirs.name(), err)
	}
	return result, nil
}

func put(ctx context.Context, dirs Dirs, trees []string) (*Result, error) {
	if len(trees) == 0 {
		return takeBack(ctx, dirs, (*store).reset)
	}
	wanted, err := readTrees(ctx, trees)
	if err != nil {
		return nil, err
	}
	defer wanted.close()
	s, err := openStore(ctx, dirs, true)
	if err != nil {
		return nil, err
	}
	defer s.close()
	p := &putting{application: application{store: s, made: &atomic.Int64{}}, released: map[string]bool{}}
	if err := p.run(wanted); err != nil {
		return nil, err
	}
	return &p.result, nil
}

// source is where Put has content from.
type source struct {
	tree *root  // nil: saved/
	path string // in it
}

// stageFrom makes a file or symbolic link in new/. One from saved/ is the very inode.
func (s *store) stageFrom(from *source, name string, state *State) error {
	if from.tree == nil {
		err := unix.Linkat(s.saved, from.path, s.fresh, name, 0)
		if errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EOPNOTSUPP) {
			err = copyAt(s.saved, from.path, s.fresh, name)
		}
		return err
	}
	dir, base, err := from.tree.parent(from.path)
	if err != nil {
		return err
	}
	if state.Type == Symlink {
		target, err := readlinkAt(dir, base)
		if err != nil {
			return err
		}
		return createSymlink(s.fresh, name, target, *state)
	}
	state.Checksum, err = createFile(s.fresh, name, *state, fromFile(dir, base))
	return err
}

// putting is one Put under way. It decides about each path by what the trees have there, what was put there, and what it goes back to.
type putting struct {
	application
	changes  []Change
	noted    []record        // of paths that are as the trees have them already
	released map[string]bool // what goes back, or stays as the administrator has it: their records are not needed any more
	opaque   []string
}

func (p *putting) run(wanted *layered) error {
	if err := p.finish(false, &p.result); err != nil {
		return err
	}
	if err := p.checkSaved(&p.journal.Committed); err != nil {
		return err
	}
	if err := p.below("", wanted, inside{}); err != nil {
		return err
	}
	if err := p.prepare(p.changes); err != nil {
		return err
	}
	if err := p.findBack(); err != nil {
		return err
	}
	if len(p.steps) > 0 || len(p.back) > 0 {
		if err := p.carryOut(); err != nil {
			return err
		}
	}
	p.report()
	return p.settlePut()
}

// inside is what holds for all that is in a directory.
type inside struct {
	hide  bool // what /etc has is hidden, by an opaque directory or a mask
	known bool // it was hidden by the Put before, too: what is there without a record came later
	put   bool // the directory is one that was put: so did all there
}

// below visits what is in a directory: all that the trees have in it, and what the journal does; if it is to be hidden, what /etc has, too.
func (p *putting) below(path string, want *layered, in inside) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	below := map[string]*layered{}
	if want != nil {
		maps.Copy(below, want.below)
	}
	names := p.recorded(path)
	if in.hide {
		there, err := p.etc.names(path)
		if err != nil && !notThere(err) && !isMountPoint(err) {
			return err
		}
		names = append(names, there...)
	}
	for _, name := range names {
		if _, ok := below[name]; !ok {
			below[name] = nil
		}
	}
	for _, name := range slices.Sorted(maps.Keys(below)) {
		if err := p.visit(filepath.Join(path, name), below[name], in); err != nil {
			return err
		}
	}
	return nil
}

// recorded returns the names in a directory at or below which the journal has something.
func (p *putting) recorded(path string) []string {
	var names []string
	for _, r := range p.journal.Committed.below(path) {
		name, _, _ := strings.Cut(strings.TrimPrefix(r.Path[len(path):], "/"), "/")
		names = append(names, name)
	}
	return slices.Compact(names)
}

// visit decides about a path and what is below it. want is what the trees have, nil if nothing.
func (p *putting) visit(path string, want *layered, in inside) error {
	r := p.journal.Committed.record(path)
	if r == nil && want == nil && !in.hide {
		return p.below(path, nil, inside{})
	}
	if !utf8.ValidString(path) { // the journal cannot have it
		p.keep(path)
		return nil
	}
	now, err := p.etc.look(path)
	if err != nil {
		return err
	}
	at := location{path: path, now: now, record: r, own: now.State}
	at.theirs = p.isTheirs(at, want, in)
	if r != nil && !at.theirs {
		at.own = r.Before
	}
	switch {
	case want == nil && !in.hide:
		return p.leave(at)
	case now.mountPoint, now.immutable && now.Type == Directory:
		p.keep(path)
		return nil
	case at.theirs:
		p.keep(path)
		if want == nil || want.Type != Directory || now.Type != Directory {
			return nil
		}
		in.put = in.put || r != nil && r.Before.Type != Directory
		return p.inDirectory(path, want, in)
	case want == nil || want.isMask():
		return p.hide(at, want, in)
	case want.Type == Directory:
		return p.directory(at, want, in)
	}
	return p.file(at, want)
}

// location is a path that is visited.
type location struct {
	path   string
	now    present
	own    State   // what it goes back to
	record *record // nil if nothing was put there
	theirs bool    // changed by the administrator after it was put
}

func (p *putting) isTheirs(at location, want *layered, in inside) bool {
	switch {
	case at.record != nil:
		return !at.record.isPut(at.now.State)
	case in.put:
		// Were it replaced or hidden, there would be no directory for it to come back to.
		return at.now.Type != Absent
	case want == nil: // a directory that the trees had, too, was there before
		return in.known && at.now.Type != Absent && !p.journal.Committed.isOpaque(at.path)
	}
	// What was put in a directory that nobody made for it: then the directory was there, and was removed.
	return want.Type == Directory && at.now.Type != Directory && len(p.journal.Committed.below(at.path)) > 0
}

// hide lets a path disappear, with all that is below it.
func (p *putting) hide(at location, want *layered, in inside) error {
	switch {
	case at.own.Type == Other:
		p.keep(at.path)
		return nil
	case at.own.Type == Absent && want == nil:
		return p.leave(at)
	}
	if err := p.put(at, State{}, nil); err != nil {
		return err
	}
	return p.below(at.path, nil, inside{hide: at.own.Type == Directory, known: in.known && want == nil})
}

func (p *putting) directory(at location, want *layered, in inside) error {
	switch at.own.Type {
	case Symlink, Other:
		p.keep(at.path)
		return p.leave(at)
	case Directory:
		if err := p.release(at); err != nil {
			return err
		}
	default:
		if err := p.put(at, want.State, nil); err != nil {
			return err
		}
		in.put = true
	}
	return p.inDirectory(at.path, want, in)
}

// inDirectory visits what is in a directory that the trees have, too.
func (p *putting) inDirectory(path string, want *layered, in inside) error {
	in.hide = in.hide || want.opaque
	in.known = in.known || p.journal.Committed.isOpaque(path)
	if in.hide {
		p.opaque = append(p.opaque, path)
	}
	return p.below(path, want, in)
}

func (p *putting) file(at location, want *layered) error {
	if at.own.Type == Directory || at.own.Type == Other {
		p.keep(at.path)
		return p.leave(at)
	}
	if err := p.put(at, want.State, &source{want.trees[0], at.path}); err != nil {
		return err
	}
	return p.below(at.path, nil, inside{})
}

// leave gives a path, and all below it, back to the administrator.
func (p *putting) leave(at location) error {
	if err := p.release(at); err != nil {
		return err
	}
	return p.below(at.path, nil, inside{})
}

// put plans that a path becomes what a tree has. If it is that already, it is noted what it was, as if it had been put.
func (p *putting) put(at location, target State, from *source) error {
	if !same(at.now.State, target) {
		p.changes = append(p.changes, Change{Path: at.path, Before: at.now.State, After: target, source: from})
		return nil
	}
	if at.record != nil {
		return nil
	}
	r := record{Path: at.path, Before: at.now.State, After: []State{target}}
	if at.now.IsFile() {
		var err error
		if r.Saved, err = p.save(at.path, at.now); errors.Is(err, errChanged) {
			p.keep(at.path)
			return nil
		} else if err != nil {
			return err
		}
	}
	p.noted = append(p.noted, r)
	return nil
}

// release plans that a path becomes what it was before it was put.
func (p *putting) release(at location) error {
	r := at.record
	if r == nil {
		return nil
	}
	p.released[at.path] = true
	if at.theirs {
		if !same(at.now.State, r.Before) {
			p.keep(at.path)
		}
		return nil
	}
	if isBack, err := p.isBack(r, at.now); err != nil || isBack {
		return err
	}
	p.changes = append(p.changes, Change{Path: at.path, Before: at.now.State, After: r.Before, source: &source{path: r.Saved}})
	return nil
}

func (p *putting) keep(path string) { p.result.Kept = append(p.result.Kept, path) }

// findBack finds the directories in which nothing will be ours any more, and which nobody else changed.
func (p *putting) findBack() error {
	p.back = map[string]int64{}
	used := p.used(p.journal.Committed.Records, p.journal.Current.Records)
	for _, d := range p.journal.Committed.Dirs {
		if used[d.Path] || d.IsNew {
			continue
		}
		now, err := p.etc.stat(d.Path)
		if err != nil {
			return err
		}
		if now.Type != Directory || d.isStamp(now.MTime) {
			p.back[d.Path] = d.MTime
		}
	}
	return nil
}

// used returns the paths that are put, and the directories that they are in.
func (p *putting) used(lists ...[]record) map[string]bool {
	used := map[string]bool{}
	for _, r := range slices.Concat(lists...) {
		if !p.released[r.Path] {
			dir, _ := split(r.Path)
			used[r.Path], used[dir] = true, true
		}
	}
	return used
}

// report tells what was put from what is back. What only an interrupted Put had changed may be both.
func (p *putting) report() {
	isReleased := func(path string) bool { return p.released[path] }
	for _, path := range p.result.Changed {
		if isReleased(path) {
			p.result.Restored = append(p.result.Restored, path)
		}
	}
	p.result.Changed = slices.DeleteFunc(p.result.Changed, isReleased)
	p.result.Restored = slices.DeleteFunc(p.result.Restored, func(path string) bool { return slices.Contains(p.result.Changed, path) })
	p.result.sort()
}

// settlePut makes the journal that of what is put now. A Store that has nothing to take back is removed.
func (p *putting) settlePut() error {
	committed := &p.journal.Committed
	if len(p.noted) == 0 && len(p.released) == 0 && p.journal.Current.isEmpty() && slices.Equal(p.opaque, committed.Opaque) {
		return p.destroyEmpty()
	}
	if err := p.fold(); err != nil {
		return err
	}
	for _, st := range p.steps {
		if r := committed.record(st.Path); st.done {
			r.After = []State{st.After}
		}
	}
	committed.Records = slices.DeleteFunc(committed.Records, func(r record) bool { return p.released[r.Path] })
	committed.Records = append(committed.Records, p.noted...)
	used := p.used(committed.Records)
	committed.Dirs = slices.DeleteFunc(committed.Dirs, func(d dirTime) bool { return !used[d.Path] })
	committed.Opaque = p.opaque
	committed.sort()
	if err := p.settle(); err != nil {
		return err
	}
	return p.destroyEmpty()
}

func (p *putting) destroyEmpty() error {
	if !p.journal.isEmpty() {
		return nil
	}
	return p.destroy()
}
