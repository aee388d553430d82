package machine

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
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/underlay"
)

// What /usr shows is the live commit, and above that the overlays that are enabled: whoever switches to a commit takes them along.

// EnabledOverlays are the overlays that are to be shown to all: none if it is not known which there are, as an index is damaged. The system works without.
func (m *Machine) EnabledOverlays() (overlay.Stack, error) {
	all, err := m.Overlays()
	if errors.Is(err, overlay.ErrDamaged) {
		report.Warn("%v; going on without overlays", err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return overlay.Enabled(all), nil
}

// Stack is what /usr is to show: a commit's layers under overlays.
type Stack struct {
	underlay.Stack
	commit      ostree.Checksum
	generations []string // the directories of the overlays' content
}

// Stack puts one together.
func (m *Machine) Stack(commit ostree.Checksum, layers []string, overlays overlay.Stack) (*Stack, error) {
	overlays, err := overlays.On("usr")
	if err != nil {
		return nil, err
	}
	trees, err := overlays.Trees("usr")
	if err != nil {
		return nil, err
	}
	s := &Stack{commit: commit, Stack: underlay.Stack{
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

// IsNothing tells whether that is just the booted tree.
func (s *Stack) IsNothing() bool { return len(s.Layers) == 0 && s.Upper == "" }

// IsShown tells whether /usr shows just this already.
func (s *Stack) IsShown(usr underlay.State) bool {
	if s.IsNothing() {
		return usr.Shown.Live == ""
	}
	return !usr.Unfinished && usr.Shown.Live == s.Source.Live && usr.Shown.Digest == s.Source.Digest
}

// Show makes /usr show a commit's layers under overlays.
func (m *Machine) Show(commit ostree.Checksum, layers []string, overlays overlay.Stack) (underlay.Switched, error) {
	s, err := m.Stack(commit, layers, overlays)
	if err != nil {
		return underlay.Switched{}, err
	}
	return m.SwitchTo(s)
}

// SwitchTo makes /usr show a stack. With nothing but the booted tree, nothing of ours stays mounted.
func (m *Machine) SwitchTo(s *Stack) (underlay.Switched, error) {
	if s.IsNothing() {
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
func (m *Machine) noteStack(s *Stack) error {
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

// DropOverlayContent deletes the content of overlays that nothing shows any more, and the notes on stacks that nothing mounts.
func (m *Machine) DropOverlayContent(stores []overlay.Store) error {
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

// rememberTree notes what /usr shows now. Only needs-restart knows less without that.
func (m *Machine) rememberTree(commit ostree.Checksum) {
	if err := m.Trees.Shows(m.Usr.Path, commit); err != nil {
		report.Warn("%v", err)
	}
}

// unlockedFlag is libostree's own mark of a deployment with something on its /usr that the next boot will not have
// (ostree_sysroot_deployment_unlock): `ostree admin status` shows it, and `ostree admin unlock` refuses.
func (m *Machine) unlockedFlag() string {
	return filepath.Join(m.State.DeploymentDir(m.Booted), "unlocked-transient")
}

func (m *Machine) setUnlocked() error {
	if err := os.MkdirAll(filepath.Dir(m.unlockedFlag()), 0o755); err != nil {
		return fmt.Errorf("marking the deployment as unlocked: %w", err)
	}
	if err := os.WriteFile(m.unlockedFlag(), nil, 0o644); err != nil {
		return fmt.Errorf("marking the deployment as unlocked: %w", err)
	}
	return nil
}

func (m *Machine) clearUnlocked() error {
	if err := os.Remove(m.unlockedFlag()); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("marking the deployment as locked again: %w", err)
	}
	return nil
}

// InspectToSwitch tells what is mounted on /usr, and fails if systemd-sysext has put its overlay there.
func (m *Machine) InspectToSwitch() (underlay.State, error) {
	usr, err := m.Usr.Inspect()
	if err == nil && usr.Extended {
		err = fmt.Errorf("%s: %w", m.Usr.Path, underlay.ErrExtended)
	}
	return usr, err
}
