package content

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/image"
	"github.com/liveapply/liveapply/internal/overlay"
)

// What an image may unpack to if MaxSize= does not say less.
const (
	maxImage        = 4 << 30
	maxImageEntries = 1 << 20
)

// importImage makes a new overlay, or new content of one, from an updates image.
func (d *Draft) importImage(ctx context.Context, op overlay.Operation) error {
	limits := d.rules.imageLimits()
	source := op.Image
	if source == nil {
		var err error
		if source, err = FetchImage(ctx, op, d.rules, d.under.Scratch); err != nil {
			return err
		}
		defer source.Close()
	}
	if d.Index.Find(op.Name) == nil {
		if err := d.add(overlay.Overlay{Name: op.Name, Kind: overlay.Updates, Scope: op.Scope, Priority: op.Priority, Enabled: true}); err != nil {
			return err
		}
	}
	o := d.Index.Find(op.Name)
	if o.Kind != overlay.Updates {
		return errors.New("it has other content than an updates image's, which would be lost: import the image under another name (--name)")
	}
	o.Source, o.SHA256 = op.From, strings.ToLower(op.SHA256)
	g, err := d.newGeneration(op.Name)
	if err != nil {
		return err
	}
	l := &landing{generation: g, taken: map[string]bool{}}
	if err := image.Read(ctx, source, limits, l.entry); err != nil {
		return err
	}
	return l.completeDirs()
}

// FetchImage opens the image that an operation imports, or fetches it to a file without a name in the directory scratch: before anything is locked, for a server may take
// its time. It is the Image of the operation then.
func FetchImage(ctx context.Context, op overlay.Operation, rules Rules, scratch string) (*os.File, error) {
	return image.Source{Location: op.From, SHA256: op.SHA256}.Open(ctx, rules.imageLimits().Bytes, scratch)
}

func (r Rules) imageLimits() image.Limits {
	limits := image.Limits{Bytes: maxImage, Entries: maxImageEntries}
	if r.MaxSize > 0 {
		limits.Bytes = min(limits.Bytes, r.MaxSize)
	}
	return limits
}

// landing puts the entries of an image where they belong in this system.
type landing struct {
	*generation
	taken map[string]bool // where there is something that is no directory
	dirs  []directory     // that only the image has
}

type directory struct {
	path string
	attributes
}

func (l *landing) entry(e image.Entry) error {
	isDir := typeOf(e.Mode) == unix.S_IFDIR
	isTop := false
	var err error
	if !strings.Contains(e.Path, "/") {
		isTop, err = l.under.isTop(e.Path)
	}
	switch {
	case err != nil:
		return err
	case isTop && isDir:
		return nil // it is as the system has it, if that is a link, too
	case isTop:
		return fmt.Errorf("/%s stays as it is in this system: an image can only have files below it", e.Path)
	}
	path, err := l.under.Land(e.Path)
	if err != nil {
		return err
	}
	if isDir {
		return l.enterDir(path, attributesIn(e))
	}
	if l.taken[path] {
		return fmt.Errorf("it belongs at /%s in this system, as another entry of the image does", path)
	}
	l.taken[path] = true
	if err := l.remember(path); err != nil {
		return err
	}
	switch {
	case e.Link != "":
		return l.linkTo(path, e.Link)
	case typeOf(e.Mode) == unix.S_IFLNK:
		return l.symlink(path, e.Target, attributesIn(e))
	}
	return l.file(path, e.Content, attributesIn(e))
}

func attributesIn(e image.Entry) attributes {
	return attributes{mode: e.Mode & 0o7777, uid: e.UID, gid: e.GID, mtime: e.ModTime, xattrs: e.Xattrs}
}

func (l *landing) linkTo(path, of string) error {
	target, err := l.under.Land(of)
	if err != nil {
		return err
	}
	return l.hardlink(path, target)
}

// enterDir makes a directory. Where the system has a link to one, what is in it lands there.
func (l *landing) enterDir(path string, a attributes) error {
	passed, err := l.under.leadsToDir(path)
	if err != nil || passed {
		return err
	}
	system, err := l.under.stat(path)
	if err != nil {
		return err
	}
	if system == nil {
		if err := l.remember(path); err != nil {
			return err
		}
		l.dirs = append(l.dirs, directory{path, a})
	}
	return l.directory(path, a)
}

// completeDirs gives the directories their times, which have changed with each entry.
func (l *landing) completeDirs() error {
	for _, dir := range l.dirs {
		if err := l.directory(dir.path, dir.attributes); err != nil {
			return err
		}
	}
	return nil
}
