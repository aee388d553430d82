package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/internal/underlay"
)

// Stores are where overlays are, for this process. The global one exists with OSTree only; to write to it takes a view of /sysroot.
func (m *Machine) Stores(sysroot string) (system, global, runtime overlay.Store) {
	lib := filepath.Join(m.Root, m.State.Lib, overlaysName)
	run := filepath.Join(m.State.Run, overlaysName)
	shared := "ostree/liveapply/" + overlaysName
	return overlay.Store{Dir: lib, Path: lib}, overlay.Store{Dir: filepath.Join(sysroot, shared), Path: filepath.Join(PhysicalRoot, shared)}, overlay.Store{Dir: run, Path: run}
}

// OverlayStores are where overlays are, to be read.
func (m *Machine) OverlayStores() []overlay.Store {
	system, global, runtime := m.Stores(PhysicalRoot)
	switch {
	case m.InInitrd():
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
	v := m.ViewOverlays()
	return v.base, v.Close, v.open()
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
	layers := []UsrLayer{}
	all, err := m.Overlays()
	switch {
	case errors.Is(err, overlay.ErrDamaged): // the mount table knows the names
		for _, name := range usr.Shown.Names {
			layers = append(layers, UsrLayer{Kind: string(overlay.Ordinary), Name: name})
		}
	case err != nil:
		return nil, err
	case usr.Shown.Digest != "":
		if layers, err = m.overlayLayers(shownBy(overlay.Enabled(all), usr.Shown)); err != nil {
			return nil, err
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

// shownBy leaves of overlays those that the source of a mount names: all, if it has no room for all names.
func shownBy(stack overlay.Stack, source underlay.Source) overlay.Stack {
	if source.HasMore() {
		return stack
	}
	return slices.DeleteFunc(stack, func(o overlay.Placed) bool { return !slices.Contains(source.Names, o.Name) })
}

func (m *Machine) overlayLayers(stack overlay.Stack) ([]UsrLayer, error) {
	view := m.ViewOverlays()
	defer view.Close()
	var layers []UsrLayer
	for _, shown := range stack {
		stale, err := view.Stale(shown)
		if err != nil && !errors.Is(err, fs.ErrPermission) { // not everybody may know
			return nil, err
		}
		layers = append(layers, UsrLayer{Kind: string(shown.Kind), Name: shown.Name, Generation: shown.Generation, Writable: shown.Writable, Stale: stale})
	}
	return layers, nil
}

// OverlayRun is what package etcmerge works on for the files that overlays have in /run.
func (m *Machine) OverlayRun() etcmerge.Dirs {
	return etcmerge.Dirs{Etc: "/run", Name: "/run", Store: filepath.Join(m.State.Run, "overlays-run")}
}

// OverlayEtcToRead is the same by paths that all processes can use; on OSTree, nothing can be written by them.
func (m *Machine) OverlayEtcToRead() etcmerge.Dirs {
	store := filepath.Join(m.Root, m.State.Lib, "overlays-etc")
	if m.IsOSTree() {
		store = filepath.Join(m.PhysicalRoot(), m.Booted.BackingPath(), "liveapply", overlaysName)
	}
	return etcmerge.Dirs{Etc: filepath.Join(m.Root, "etc"), Store: store, Repair: repairOverlayEtc(store)}
}

// repairOverlayEtc is the advice for a damaged journal: the originals of what overlays have put into /etc are in it.
func repairOverlayEtc(store string) string {
	return fmt.Sprintf("to keep in /etc what overlays have put there, remove %s; the files that they replaced are in its directory saved", store)
}
