package content

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/image"
	"github.com/liveapply/liveapply/internal/overlay"
)

// backupLimits leaves the rest to the description: nothing is read that it does not name, and what it names has to fit on the disk.
var backupLimits = image.Limits{Bytes: math.MaxInt64 / 2, Entries: 1 << 24}

var errDescribed = errors.New("that was the description")

// ReadBackup tells which overlay the backup at a path has. Only restoring it shows whether it is whole.
func ReadBackup(ctx context.Context, path string) (*overlay.Overlay, error) {
	file, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var about *description
	err = image.Read(ctx, file, backupLimits, func(e image.Entry) error {
		if about, err = readDescription(e); err != nil {
			return err
		}
		return errDescribed
	})
	if errors.Is(err, errDescribed) {
		return &about.Overlay, nil
	}
	return nil, ofBackup(path, err)
}

// ofBackup says what is wrong with a backup, which has been read as an image is.
func ofBackup(path string, err error) error {
	if err == nil {
		err = errors.New("it is empty")
	} else if inner := errors.Unwrap(err); inner != nil {
		err = inner // without the words about images
	}
	return fmt.Errorf("the backup %s: %w", path, err)
}

// restore makes a new overlay from a backup.
func (d *Draft) restore(ctx context.Context, op overlay.Operation) error {
	file, err := openRegular(op.From)
	if err != nil {
		return err
	}
	defer file.Close()
	r := &restoring{draft: d, op: op}
	if err := image.Read(ctx, file, backupLimits, r.entry); err != nil || r.about == nil {
		return ofBackup(op.From, err)
	}
	return r.end()
}

// restoring is a backup that is being read.
type restoring struct {
	draft *Draft
	op    overlay.Operation
	about *description
	left  []described // that have not come yet
	made  *generation
	dirs  []described
}

func (r *restoring) entry(e image.Entry) (err error) {
	switch {
	case r.about == nil:
		if r.about, err = readDescription(e); err != nil {
			return err
		}
		r.left = r.about.Entries
		return r.begin()
	case e.Path == backupTree && typeOf(e.Mode) == unix.S_IFDIR:
		return nil // on the way
	}
	path, below := strings.CutPrefix(e.Path, backupTree+"/")
	if !below {
		return errors.New("the description does not name it")
	}
	if err := r.masks(); err != nil {
		return err
	}
	if len(r.left) == 0 || r.left[0].Path != path || !r.left[0].describes(e) {
		return errors.New("the description says something else")
	}
	next := r.left[0]
	r.left = r.left[1:]
	return r.put(next, e.Content)
}

// describes tells whether an entry of the archive is the one that is described.
func (d described) describes(e image.Entry) bool {
	if d.Link != "" {
		return e.Link == backupTree+"/"+d.Link
	}
	if e.Link != "" || e.Mode != d.modeOf() || e.UID != d.UID || e.GID != d.GID || !e.ModTime.Equal(d.ModTime) || e.Target != d.Target || e.Size != d.Size {
		return false
	}
	same := len(e.Xattrs) == len(d.Xattrs)
	for name, value := range d.Xattrs {
		have, found := e.Xattrs[name]
		same = same && found && have == string(value)
	}
	return same
}

// begin has the draft name the overlay, if there is room for it.
func (r *restoring) begin() error {
	o := r.about.Overlay
	if r.op.Name != "" {
		o.Name = r.op.Name
	}
	if r.op.Scope != "" {
		o.Scope = r.op.Scope
	}
	if err := r.draft.add(o); err != nil {
		return err
	}
	if len(r.left) == 0 && !o.Writable {
		return nil
	}
	g, err := r.draft.newGeneration(o.Name)
	if err != nil {
		return err
	}
	g.manifest.Bases = r.about.Bases
	if g.manifest.Bases == nil {
		g.manifest.Bases = map[string]overlay.Base{}
	}
	r.made = g
	return r.draft.fits(r.left)
}

// fits refuses files that are too much for the rules or the disk.
func (d *Draft) fits(entries []described) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(d.Store.Dir, &fs); err != nil {
		return fmt.Errorf("statfs %s: %w", d.Store.Dir, err)
	}
	free := int64(fs.Bavail) * fs.Bsize
	var size int64
	for _, e := range entries {
		if e.Size > free-size {
			return fmt.Errorf("its files do not fit into the %d bytes that %s has free", free, d.Store.Path)
		}
		size += e.Size
	}
	return d.rules.checkSize(size)
}

// masks puts those that come next: the archive does not have them.
func (r *restoring) masks() error {
	for len(r.left) > 0 && r.left[0].Kind == overlay.Masked {
		next := r.left[0]
		r.left = r.left[1:]
		if err := r.put(next, nil); err != nil {
			return err
		}
	}
	return nil
}

func (r *restoring) put(e described, content io.Reader) error {
	if err := r.checkPlace(e); err != nil {
		return fmt.Errorf("%v: %w", e, err)
	}
	switch {
	case e.Kind == overlay.Masked:
		return r.made.mask(e.Path)
	case e.Kind == overlay.Folder:
		r.dirs = append(r.dirs, e)
		return r.directory(e)
	case e.Link != "":
		return r.made.hardlink(e.Path, e.Link)
	case e.Kind == overlay.Link:
		return r.made.symlink(e.Path, e.Target, e.attributes())
	}
	digest := sha256.New()
	if err := r.made.file(e.Path, io.TeeReader(content, digest), e.attributes()); err != nil {
		return err
	}
	if sum := hex.EncodeToString(digest.Sum(nil)); sum != e.SHA256 {
		return fmt.Errorf("its sha256 is %s, and not %s", sum, e.SHA256)
	}
	return nil
}

// checkPlace refuses what belongs somewhere else in this system, unless the backup itself hides what is there.
func (r *restoring) checkPlace(e described) error {
	if e.Kind == overlay.Folder && slices.Contains(tops, e.Path) {
		return nil
	}
	if hidden, err := r.made.hides(e.Path); err != nil || hidden {
		return err
	}
	landed, err := r.draft.under.Land(e.Path)
	if err == nil && landed != e.Path {
		err = fmt.Errorf("it is at /%s in this system", landed)
	}
	return err
}

// directory puts a directory. In a writable overlay, one that the system has, too, is noted as overlayfs does when something is written below it.
func (r *restoring) directory(e described) error {
	if err := r.made.directoryOf(e); err != nil || !r.about.Overlay.Writable || e.Opaque {
		return err
	}
	system, err := r.draft.under.stat(e.Path)
	if err != nil || system == nil || typeOf(system.Mode) != unix.S_IFDIR {
		return err
	}
	return r.made.noteOrigin(e.Path)
}

// directoryOf puts a directory as it was, though the system may have it with other attributes now: through a writable overlay, they were changed, too.
func (g *generation) directoryOf(e described) error {
	if !e.Opaque {
		if err := g.directory(e.Path, e.attributes()); err != nil {
			return err
		}
	}
	return g.exactDirectory(e.Path, e.attributes(), e.Opaque)
}

// end is when the archive has ended well.
func (r *restoring) end() error {
	if err := r.masks(); err != nil {
		return err
	}
	if len(r.left) > 0 {
		return fmt.Errorf("the backup %s: %v is missing", r.op.From, r.left[0])
	}
	for _, dir := range r.dirs {
		if err := r.directory(dir); err != nil {
			return err
		}
	}
	return nil
}
