package phase

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/internal/underlay"
)

// What /usr shows is the live commit, and above that the overlays that are enabled: whoever switches to a commit takes them along.

// enabled are the overlays that are to be shown to all: none if it is not known which there are, as an index is damaged. The system works without.
func (m *Machine) enabled() (overlay.Stack, error) {
	all, err := m.Overlays()
	if errors.Is(err, overlay.ErrDamaged) {
		warn("%v; going on without overlays", err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return overlay.Enabled(all), nil
}

// stack is what shows a commit's layers under overlays. It is nothing, with no layer and no upper directory, if that is just the booted tree.
func (m *Machine) stack(commit ostree.Checksum, layers []string, overlays overlay.Stack) (underlay.Stack, error) {
	overlays, err := overlays.On("usr")
	if err != nil {
		return underlay.Stack{}, err
	}
	trees, err := overlays.Trees("usr")
	if err != nil {
		return underlay.Stack{}, err
	}
	stack := underlay.Stack{
		Source: underlay.Source{Live: underlay.Base, Digest: overlays.Digest(), Names: overlays.Names()},
		Layers: append(trees, layers...),
	}
	if m.IsOSTree() {
		stack.Source.Live = commit.String()
	}
	if writable := overlays.Writable(); writable != nil {
		stack.Upper, stack.Work = writable.Store.Upper(writable.Overlay), writable.Store.Work(writable.Overlay)
	}
	return stack, nil
}

func isNothing(stack underlay.Stack) bool { return len(stack.Layers) == 0 && stack.Upper == "" }

// show makes /usr show a commit's layers under overlays. With nothing but the booted tree, nothing of ours stays mounted.
func (m *Machine) show(commit ostree.Checksum, layers []string, overlays overlay.Stack) (underlay.Switched, error) {
	overlays, err := overlays.On("usr")
	if err != nil {
		return underlay.Switched{}, err
	}
	stack, err := m.stack(commit, layers, overlays)
	if err != nil {
		return underlay.Switched{}, err
	}
	if isNothing(stack) {
		if err := m.Usr.Detach(); err != nil {
			return underlay.Switched{}, err
		}
		return underlay.Switched{}, m.clearUnlocked()
	}
	if err := m.noteStack(stack.Source.Digest, overlays); err != nil {
		return underlay.Switched{}, err
	}
	if err := m.setUnlocked(); err != nil {
		return underlay.Switched{}, err
	}
	switched, err := m.Usr.Switch(stack)
	if err == nil && commit != m.Booted.Commit {
		m.rememberTree(commit)
	}
	return switched, err
}

// noteStack writes down which generations a mount with a digest shows, before there is such a mount: as long as there is one, they stay.
func (m *Machine) noteStack(digest string, overlays overlay.Stack) error {
	if digest == "" {
		return nil
	}
	var dirs []string
	for _, o := range overlays {
		dirs = append(dirs, o.Dir())
	}
	content, err := json.Marshal(dirs)
	if err == nil {
		err = os.MkdirAll(m.stacksDir(), 0o700)
	}
	if err == nil {
		err = renameio.WriteFile(m.stackNote(digest), content, 0o600, renameio.WithTempDir(m.stacksDir()))
	}
	if err != nil {
		return fmt.Errorf("noting which overlays are mounted: %w", err)
	}
	return nil
}

func (m *Machine) stacksDir() string { return filepath.Join(m.State.Run, "stacks") }

func (m *Machine) stackNote(digest string) string {
	return filepath.Join(m.stacksDir(), digest+".json")
}

// dropOverlayContent deletes the content of overlays that nothing shows any more, and the notes on stacks that nothing mounts.
func (m *Machine) dropOverlayContent(stores []overlay.Store) error {
	mounted, err := underlay.MountedSources()
	if err != nil {
		return err
	}
	notes, err := os.ReadDir(m.stacksDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading which overlays are mounted: %w", err)
	}
	used := map[string]bool{}
	unknown := false
	for _, source := range mounted {
		if source.Digest == "" {
			continue
		}
		var dirs []string
		content, err := os.ReadFile(m.stackNote(source.Digest))
		if err == nil {
			err = json.Unmarshal(content, &dirs)
		}
		unknown = unknown || err != nil // then all stays: it goes when that mount has gone
		for _, dir := range dirs {
			used[dir] = true
		}
	}
	for _, store := range stores {
		if err := store.Tidy(func(dir string) bool { return unknown || used[dir] || m.isExtension(dir) }); err != nil {
			return err
		}
	}
	for _, note := range notes {
		digest := strings.TrimSuffix(note.Name(), ".json")
		if slices.ContainsFunc(mounted, func(source underlay.Source) bool { return source.Digest == digest }) {
			continue
		}
		if err := os.Remove(filepath.Join(m.stacksDir(), note.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("dropping a note on a stack: %w", err)
		}
	}
	return nil
}

// isExtension tells whether a unit runs on a generation, by ExtensionDirectories=: then it is a layer of an overlay in the unit's namespace.
func (m *Machine) isExtension(dir string) bool {
	tables, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, table := range tables {
		content, err := os.ReadFile(table)
		if err == nil && strings.Contains(string(content), dir+"/") {
			return true
		}
	}
	return false
}
