package layer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sort"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/treediff"
)

// builder is one Build under way. A directory and what is directly in it are made by one worker, whose working directory is the
// repo. All other calls are relative to the directory's descriptor, with names of one component.
type builder struct {
	*workers
	*Progress
	repo     *ostree.Repo
	whiteout whiteout
}

// Progress counts what a Build makes, for those who look meanwhile.
type Progress struct {
	links, dirs, whiteouts, copies, bytes atomic.Int64
}

// Made is how many of the changes are in the layer. Those that need nothing in it, in an opaque directory, are not among them.
func (p *Progress) Made() int64 {
	return p.links.Load() + p.dirs.Load() + p.whiteouts.Load() + p.copies.Load()
}

func (p *Progress) stats() Stats {
	return Stats{
		Links: int(p.links.Load()), Directories: int(p.dirs.Load()), Whiteouts: int(p.whiteouts.Load()),
		Copies: int(p.copies.Load()), CopiedBytes: p.bytes.Load(),
	}
}

func build(ctx context.Context, repo *ostree.Repo, changes []treediff.Change, dir string, progress *Progress) (Stats, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Stats{}, err
	}
	if err := dropACLs(fd); err != nil {
		unix.Close(fd)
		return Stats{}, err
	}
	b := &builder{Progress: progress, repo: repo}
	defer b.whiteout.close()
	err = runIn(ctx, repo.Fd(), max(2, runtime.GOMAXPROCS(0)), func(w *workers) func() error {
		b.workers = w
		return func() error { return b.directory(fd, changes[0], changes[1:]) }
	})
	if err != nil {
		return Stats{}, err
	}
	return b.stats(), nil
}

// entry is something in a directory, with the changes below it.
type entry struct {
	name   string
	change treediff.Change
	below  []treediff.Change
}

// entries splits the changes below a directory, which are in pre-order, into its entries.
func entries(dir string, below []treediff.Change) []entry {
	var list []entry
	for len(below) > 0 {
		change := below[0]
		// The changes below it follow it without a gap.
		end := 1 + sort.Search(len(below)-1, func(i int) bool { return !treediff.Within(below[1+i].Path, change.Path) })
		list = append(list, entry{strings.TrimPrefix(change.Path[len(dir):], "/"), change, below[1:end]})
		below = below[end:]
	}
	return list
}

// directory fills the directory fd, sets its attributes, and closes it.
func (b *builder) directory(fd int, change treediff.Change, below []treediff.Change) error {
	defer unix.Close(fd)
	if err := b.ctx.Err(); err != nil {
		return err
	}
	list := entries(change.Path, below)
	opaque, err := b.isOpaque(change, list)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := b.entry(fd, e, opaque); err != nil {
			return err
		}
	}
	if err := b.setAttributes(fd, change, opaque); err != nil {
		return fmt.Errorf("directory %q: %w", "/"+change.Path, err)
	}
	b.dirs.Add(1)
	return nil
}

// entry makes one entry of the directory fd. In an opaque one, what is removed needs no whiteout.
func (b *builder) entry(fd int, e entry, opaque bool) error {
	var err error
	switch {
	case e.change.New.Kind == ostree.KindDirectory:
		return b.subdirectory(fd, e)
	case e.change.New.Kind == ostree.KindFile:
		err = b.file(fd, e.name, e.change.New.Checksum)
	case !opaque:
		err = b.whiteout.make(fd, e.name)
		b.whiteouts.Add(1)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", "/"+e.change.Path, err)
	}
	return nil
}

// worthOffering is the number of changes below a directory from which on another worker may make it.
const worthOffering = 32

// subdirectory makes a directory. It is closed to others until it has its attributes.
func (b *builder) subdirectory(parent int, e entry) error {
	if err := unix.Mkdirat(parent, e.name, 0o700); err != nil {
		return fmt.Errorf("directory %q: %w", "/"+e.change.Path, err)
	}
	fd, err := unix.Openat(parent, e.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening directory %q: %w", "/"+e.change.Path, err)
	}
	fill := func() error { return b.directory(fd, e.change, e.below) }
	if len(e.below) >= worthOffering && b.offer(fill) {
		return nil
	}
	return fill()
}

// worthReading is the number of whiteouts in a directory from which on it is worth a look whether it can do without.
const worthReading = 8

// isOpaque tells whether nothing in the old tree may show through a directory: if something that is not a directory is there, or
// if everything in it is removed or replaced, which saves the whiteouts. The root cannot be opaque: overlayfs merges all roots.
func (b *builder) isOpaque(change treediff.Change, list []entry) (bool, error) {
	if change.Old.Kind != ostree.KindDirectory || change.Path == "" {
		return change.Old.Kind == ostree.KindFile, nil
	}
	old, removed := 0, 0
	for _, e := range list {
		was, is := e.change.Old.Kind, e.change.New.Kind
		if was == ostree.KindDirectory && is == ostree.KindDirectory {
			return false, nil // something in that may remain
		}
		if was != ostree.KindNone {
			old++
		}
		if is == ostree.KindNone {
			removed++
		}
	}
	if removed < worthReading {
		return false, nil
	}
	before, err := b.repo.Dirtree(change.Old.Checksum)
	if err != nil {
		return false, fmt.Errorf("directory %q: %w", "/"+change.Path, err)
	}
	return old == len(before.Files)+len(before.Dirs), nil
}

// file puts a file object in the directory fd.
func (b *builder) file(fd int, name string, object ostree.Checksum) error {
	path := b.repo.FilePath(object)
	if err := b.checkXattrs(object, path); err != nil {
		return b.objectError(object, err)
	}
	err := unix.Linkat(b.repo.Fd(), path, fd, name, 0)
	switch {
	case err == nil:
		b.links.Add(1)
		return nil
	case errors.Is(err, unix.EMLINK), errors.Is(err, unix.EXDEV), errors.Is(err, unix.EPERM): // EPERM: immutable
		return b.copy(fd, name, object)
	}
	return b.objectError(object, fmt.Errorf("link: %w", err))
}

func (b *builder) objectError(object ostree.Checksum, err error) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("file object %s is missing in the OSTree repo %s: check the repo (ostree fsck), then pull the commit again (ostree pull): %w",
			object, b.repo.Name(), err)
	}
	return fmt.Errorf("file object %s: %w", object, err)
}

// checkXattrs refuses an object that overlayfs would not show as it is. Its path is relative to the working directory.
func (b *builder) checkXattrs(object ostree.Checksum, path string) error {
	var buffer [512]byte
	n, err := unix.Llistxattr(path, buffer[:])
	if err == nil && n == 0 || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil && !errors.Is(err, unix.ERANGE) {
		return fmt.Errorf("listing its xattrs: %w", err)
	}
	names, err := b.repo.XattrNames(object)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := checkXattr(name); err != nil {
			return err
		}
	}
	return nil
}

func checkXattr(name string) error {
	if strings.HasPrefix(name, overlayXattrs) {
		return fmt.Errorf("it has the xattr %s, which means something to overlayfs: such a tree cannot be shown, only booted", name)
	}
	return nil
}
