package machine

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/overlay"
)

// OverlayView looks at overlays beside what lies below them.
type OverlayView struct {
	machine *Machine
	// With OSTree, what lies below is the live commit, once it was opened.
	live ostree.Checksum
	repo *ostree.Repo
	root ostree.Tree
	// originals are what overlays have replaced in /etc and /run, each read when it is asked for.
	originals map[string]map[string]string
}

// ViewOverlays begins to look. The commit is opened when it is asked for: not everybody may read it.
func (m *Machine) ViewOverlays() *OverlayView {
	return &OverlayView{machine: m, originals: map[string]map[string]string{}}
}

// open opens the live commit, with OSTree.
func (v *OverlayView) open() error {
	if v.repo != nil || !v.machine.IsOSTree() {
		return nil
	}
	live, err := v.machine.Live()
	if err != nil {
		return err
	}
	repo, err := v.machine.repo()
	if err != nil {
		return err
	}
	commit, err := repo.Commit(live)
	if err != nil {
		repo.Close()
		return err
	}
	v.live, v.repo, v.root = live, repo, commit.Root
	return nil
}

// Close ends it.
func (v *OverlayView) Close() {
	if v.repo != nil {
		v.repo.Close()
	}
}

// base tells what is at a path below all overlays. What is in /run belongs to nothing.
func (v *OverlayView) base(path string) (overlay.Base, error) {
	if err := v.open(); err != nil {
		return overlay.Base{}, err
	}
	if v.repo == nil {
		return v.fileBase(path)
	}
	base := overlay.Base{Commit: v.live.String()}
	switch top, _, _ := strings.Cut(path, "/"); top {
	case "run":
		return overlay.Base{}, nil
	case "etc":
		path = "usr/" + path
	}
	entry, err := v.repo.Lookup(v.root, path)
	if errors.Is(err, fs.ErrNotExist) {
		return base, nil
	}
	if err == nil {
		base.Checksum = entry.Checksum.String()
	}
	return base, err
}

// fileBase goes by the content of what is there without overlays.
func (v *OverlayView) fileBase(path string) (overlay.Base, error) {
	below, err := v.pathBelow(path)
	if err != nil || below == "" {
		return overlay.Base{}, err
	}
	sum := sha256.New()
	var st unix.Stat_t
	err = unix.Lstat(below, &st)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR):
		return overlay.Base{}, nil
	case err != nil:
	case st.Mode&unix.S_IFMT == unix.S_IFREG:
		err = hashFile(sum, below)
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		var target string
		target, err = os.Readlink(below)
		_, _ = io.WriteString(sum, target)
	}
	if err != nil {
		return overlay.Base{}, fmt.Errorf("reading /%s: %w", path, err)
	}
	fmt.Fprintf(sum, "\n%o %d %d", st.Mode, st.Uid, st.Gid)
	return overlay.Base{Checksum: hex.EncodeToString(sum.Sum(nil))}, nil
}

// pathBelow is where what is at a path without overlays can be looked at; "" if nothing is there, as a journal says.
func (v *OverlayView) pathBelow(path string) (string, error) {
	top, rest, _ := strings.Cut(path, "/")
	if top != UsrTree {
		originals, err := v.originalsIn(top)
		if original, replaced := originals[rest]; replaced || err != nil {
			return original, err
		}
		return filepath.Join(v.machine.Root, path), nil
	}
	usr, err := v.machine.Usr.Inspect()
	if err != nil || usr.Shown.Live == "" {
		return filepath.Join(v.machine.Root, path), err
	}
	return filepath.Join(v.machine.Usr.BootedDir(), rest), nil
}

// originalsIn are what overlays have replaced in etc or run.
func (v *OverlayView) originalsIn(top string) (map[string]string, error) {
	if known, ok := v.originals[top]; ok {
		return known, nil
	}
	dirs := v.machine.OverlayRun()
	if top == "etc" {
		dirs = v.machine.OverlayEtcToRead()
	}
	originals, err := etcmerge.Originals(dirs)
	v.originals[top] = originals
	return originals, err
}

// Entries lists what an overlay changes, and what of it is stale.
func (v *OverlayView) Entries(o overlay.Placed) ([]overlay.Entry, error) {
	entries, err := o.Entries()
	if err == nil {
		err = v.open()
	}
	if err != nil {
		return nil, err
	}
	// What was taken for the commit that is live needs no look: it is what it was.
	known := map[string]overlay.Base{}
	for _, e := range entries {
		if e.Base != nil && v.repo != nil && e.Base.Commit == v.live.String() {
			known[e.Path] = *e.Base
		}
	}
	err = overlay.MarkStale(entries, func(path string) (overlay.Base, error) {
		if base, found := known[path]; found {
			return base, nil
		}
		return v.base(path)
	})
	return entries, err
}

// Stale names the paths at which what an overlay replaced is another one now. It is not nil if that is known.
func (v *OverlayView) Stale(o overlay.Placed) ([]string, error) {
	entries, err := v.Entries(o)
	if err != nil {
		return nil, err
	}
	return StalePaths(entries), nil
}

// StalePaths names the paths of those entries that are stale, with a slash in front. It is never nil.
func StalePaths(entries []overlay.Entry) []string {
	stale := []string{}
	for _, e := range entries {
		if e.Stale {
			stale = append(stale, "/"+e.Path)
		}
	}
	return stale
}

// OverlayFile is where an overlay has an entry.
func OverlayFile(o overlay.Placed, e overlay.Entry) string {
	if o.Writable {
		return filepath.Join(o.Store.Upper(o.Overlay), strings.TrimPrefix(e.Path, UsrTree)) // what was written, was written below /usr
	}
	return filepath.Join(o.Tree(), e.Path)
}

// Below is what lies below all overlays at a path.
type Below struct {
	Path      string          // by which it can be looked at, with its owner and mode; "" if nothing is there, or a directory of a commit
	Directory *ostree.Dirmeta // of a commit
}

// Below looks for it.
func (v *OverlayView) Below(path string) (Below, error) {
	if err := v.open(); err != nil {
		return Below{}, err
	}
	if v.repo != nil && strings.HasPrefix(path, UsrTree+"/") {
		return v.inCommit(path)
	}
	below, err := v.pathBelow(path)
	if err != nil || below == "" {
		return Below{}, err
	}
	_, err = os.Lstat(below)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return Below{}, nil
	}
	return Below{Path: below}, err
}

// inCommit finds the object of the live commit.
func (v *OverlayView) inCommit(path string) (Below, error) {
	entry, err := v.repo.Lookup(v.root, path)
	if errors.Is(err, fs.ErrNotExist) {
		return Below{}, nil
	}
	if err != nil {
		return Below{}, err
	}
	if entry.Kind == ostree.KindDirectory {
		meta, err := v.repo.Dirmeta(entry.Meta)
		return Below{Directory: meta}, err
	}
	return Below{Path: filepath.Join(v.repo.Path(), v.repo.FilePath(entry.Checksum))}, nil
}

func hashFile(w io.Writer, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(w, file)
	return err
}
