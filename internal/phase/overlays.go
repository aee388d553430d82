package phase

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

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/overlay"
)

// overlaysName is the directory of a store of overlays.
const overlaysName = "overlays"

// OpenAnywhere looks at the running system, whether it was booted from OSTree or not: overlays do without that.
func OpenAnywhere() (*Machine, error) {
	m, err := Open()
	if err == nil || !errors.Is(err, ostree.ErrNotBooted) {
		return m, err
	}
	return newMachine("/"), nil
}

// IsOSTree tells whether the machine was booted from OSTree.
func (m *Machine) IsOSTree() bool { return m.Sysroot != nil }

// stores are where overlays are, for this process. The global one exists with OSTree only; to write to it takes a view of /sysroot.
func (m *Machine) stores(sysroot string) (system, global, runtime overlay.Store) {
	lib := filepath.Join(m.Root, m.State.Lib, overlaysName)
	run := filepath.Join(m.State.Run, overlaysName)
	shared := "ostree/liveapply/" + overlaysName
	return overlay.Store{Dir: lib, Path: lib}, overlay.Store{Dir: filepath.Join(sysroot, shared), Path: filepath.Join(physicalRoot, shared)}, overlay.Store{Dir: run, Path: run}
}

// OverlayStores are where overlays are, to be read.
func (m *Machine) OverlayStores() []overlay.Store {
	system, global, runtime := m.stores(physicalRoot)
	switch {
	case m.inInitrd():
		return []overlay.Store{runtime} // the others come when their filesystems are mounted
	case !m.IsOSTree():
		return []overlay.Store{system, runtime}
	}
	return []overlay.Store{system, global, runtime}
}

// Overlays lists all overlays, the topmost first.
func (m *Machine) Overlays() ([]overlay.Placed, error) { return overlay.All(m.OverlayStores()) }

// OverlayBase returns what tells what is at a path below all overlays: what the live commit has there, by its object; without OSTree, what
// is in the file. What is in /run belongs to nothing.
func (m *Machine) OverlayBase() (base func(path string) (overlay.Base, error), closeIt func(), err error) {
	if !m.IsOSTree() {
		return m.fileBase, func() {}, nil
	}
	live, err := m.Live()
	if err != nil {
		return nil, nil, err
	}
	repo, err := ostree.OpenRepo(filepath.Join(m.physicalRoot(), "ostree/repo"))
	if err != nil {
		return nil, nil, err
	}
	commit, err := repo.Commit(live)
	if err != nil {
		repo.Close()
		return nil, nil, err
	}
	return func(path string) (overlay.Base, error) {
		base := overlay.Base{Commit: live.String()}
		switch top, _, _ := strings.Cut(path, "/"); top {
		case "run":
			return overlay.Base{}, nil
		case "etc":
			path = "usr/" + path
		}
		entry, err := repo.Lookup(commit.Root, path)
		if errors.Is(err, fs.ErrNotExist) {
			return base, nil
		}
		if err == nil {
			base.Checksum = entry.Checksum.String()
		}
		return base, err
	}, func() { repo.Close() }, nil
}

// fileBase goes by the content of what is there without overlays.
func (m *Machine) fileBase(path string) (overlay.Base, error) {
	below := filepath.Join(m.Root, path)
	if rest, found := strings.CutPrefix(path, "usr/"); found {
		below = filepath.Join(m.Usr.BootedDir(), rest)
		usr, err := m.Usr.Inspect()
		if err != nil {
			return overlay.Base{}, err
		}
		if usr.Shown.Live == "" {
			below = filepath.Join(m.Root, path)
		}
	}
	sum := sha256.New()
	var st unix.Stat_t
	err := unix.Lstat(below, &st)
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

func hashFile(w io.Writer, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(w, file)
	return err
}

// UsrLayer is something that /usr shows, as status tells it.
type UsrLayer struct {
	Kind       string   `json:"kind"` // overlay, updates, live, booted; base without OSTree
	Name       string   `json:"name,omitempty"`
	Generation int      `json:"generation,omitempty"`
	Commit     string   `json:"commit,omitempty"`
	Writable   bool     `json:"writable,omitempty"`
	Stale      []string `json:"stale,omitempty"` // absolute paths at which what the overlay replaced has changed
}

// UsrStack is what /usr shows, from top to bottom, as the mount table and the notes on stacks say.
func (m *Machine) UsrStack() ([]UsrLayer, error) {
	usr, err := m.Usr.Inspect()
	if err != nil {
		return nil, err
	}
	all, err := m.Overlays()
	if err != nil {
		return nil, err
	}
	var layers []UsrLayer
	if usr.Shown.Digest != "" {
		for _, shown := range overlay.Enabled(all) {
			layers = append(layers, UsrLayer{Kind: string(shown.Kind), Name: shown.Name, Generation: shown.Generation, Writable: shown.Writable})
		}
	}
	if !m.IsOSTree() {
		return append(layers, UsrLayer{Kind: "base"}), nil
	}
	if usr.Live != "" && usr.Live != m.Booted.Commit.String() {
		layers = append(layers, UsrLayer{Kind: "live", Commit: usr.Live})
	}
	return append(layers, UsrLayer{Kind: "booted", Commit: m.Booted.Commit.String()}), nil
}
