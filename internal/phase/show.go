package phase

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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

// stack is what /usr is to show: a commit's layers under overlays.
type stack struct {
	underlay.Stack
	commit      ostree.Checksum
	generations []string // the directories of the overlays' content
}

// stack puts one together.
func (m *Machine) stack(commit ostree.Checksum, layers []string, overlays overlay.Stack) (*stack, error) {
	overlays, err := overlays.On("usr")
	if err != nil {
		return nil, err
	}
	trees, err := overlays.Trees("usr")
	if err != nil {
		return nil, err
	}
	s := &stack{commit: commit, Stack: underlay.Stack{
		Source: underlay.Source{Live: underlay.Base, Digest: overlays.Digest(), Names: overlays.Names()},
		Layers: append(trees, layers...),
	}}
	if m.IsOSTree() {
		s.Source.Live = commit.String()
	}
	if writable := overlays.Writable(); writable != nil {
		s.Upper, s.Work = writable.Store.Upper(writable.Overlay), writable.Store.Work(writable.Overlay)
	}
	for _, o := range overlays {
		s.generations = append(s.generations, o.Dir())
	}
	return s, nil
}

// isNothing tells whether that is just the booted tree.
func (s *stack) isNothing() bool { return len(s.Layers) == 0 && s.Upper == "" }

// isShown tells whether /usr shows just this already.
func (s *stack) isShown(usr underlay.State) bool {
	if s.isNothing() {
		return usr.Shown.Live == ""
	}
	return !usr.Unfinished && usr.Shown.Live == s.Source.Live && usr.Shown.Digest == s.Source.Digest
}

// show makes /usr show a commit's layers under overlays.
func (m *Machine) show(commit ostree.Checksum, layers []string, overlays overlay.Stack) (underlay.Switched, error) {
	s, err := m.stack(commit, layers, overlays)
	if err != nil {
		return underlay.Switched{}, err
	}
	return m.switchTo(s)
}

// switchTo makes /usr show a stack. With nothing but the booted tree, nothing of ours stays mounted.
func (m *Machine) switchTo(s *stack) (underlay.Switched, error) {
	if s.isNothing() {
		if err := m.Usr.Detach(); err != nil {
			return underlay.Switched{}, err
		}
		m.rememberTree(s.commit)
		return underlay.Switched{}, m.clearUnlocked()
	}
	if err := m.noteStack(s); err != nil {
		return underlay.Switched{}, err
	}
	if err := m.setUnlocked(); err != nil {
		return underlay.Switched{}, err
	}
	switched, err := m.Usr.Switch(s.Stack)
	if err == nil {
		m.rememberTree(s.commit)
	}
	return switched, err
}

// noteStack writes down which generations a mount with a digest shows, before there is such a mount: as long as there is one, they stay.
func (m *Machine) noteStack(s *stack) error {
	if s.Source.Digest == "" {
		return nil
	}
	content, err := json.Marshal(s.generations)
	if err == nil {
		err = os.MkdirAll(m.stacksDir(), 0o700)
	}
	if err == nil {
		err = renameio.WriteFile(m.stackNote(s.Source.Digest), content, 0o600, renameio.WithTempDir(m.stacksDir()))
	}
	if err != nil {
		return fmt.Errorf("noting which overlays are mounted: %w", err)
	}
	return nil
}

// stackGenerations reads which generations are in a mount with a digest.
func (m *Machine) stackGenerations(digest string) (dirs []string, err error) {
	content, err := os.ReadFile(m.stackNote(digest))
	if err == nil {
		err = json.Unmarshal(content, &dirs)
	}
	return dirs, err
}

func (m *Machine) stacksDir() string { return filepath.Join(m.State.Run, "stacks") }

const stackNoteSuffix = ".json"

func (m *Machine) stackNote(digest string) string {
	return filepath.Join(m.stacksDir(), digest+stackNoteSuffix)
}

// dropOverlayContent deletes the content of overlays that nothing shows any more, and the notes on stacks that nothing mounts.
func (m *Machine) dropOverlayContent(stores []overlay.Store) error {
	sources, err := underlay.MountedSources()
	if err != nil {
		return err
	}
	mounted := map[string]bool{} // by digest
	used := map[string]bool{}    // generations
	unknown := false
	for _, source := range sources {
		if source.Digest == "" || mounted[source.Digest] {
			continue
		}
		mounted[source.Digest] = true
		dirs, err := m.stackGenerations(source.Digest)
		unknown = unknown || err != nil // then all stays: it goes when that mount has gone
		for _, dir := range dirs {
			used[dir] = true
		}
	}
	for _, store := range stores {
		if err := store.Tidy(func(dir string) bool { return unknown || used[dir] || isExtension(dir) }); err != nil {
			return err
		}
	}
	return m.dropStackNotes(mounted)
}

// dropStackNotes deletes the notes on stacks but for those that are mounted.
func (m *Machine) dropStackNotes(mounted map[string]bool) error {
	notes, err := os.ReadDir(m.stacksDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, note := range notes {
		if err == nil && !mounted[strings.TrimSuffix(note.Name(), stackNoteSuffix)] {
			err = os.Remove(filepath.Join(m.stacksDir(), note.Name()))
		}
	}
	if err != nil {
		return fmt.Errorf("dropping the notes on overlays that were mounted: %w", err)
	}
	return nil
}

// isExtension tells whether a unit may run on a generation, by ExtensionDirectories=: the generator has what such a unit sees mounted at its own place
// as well.
func isExtension(dir string) bool {
	mounted, err := underlay.IsMountedBelow(dir)
	return mounted || err != nil
}
