package overlay

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
)

// In a store's directory there is the index, and a directory for each overlay. In that, a generation is <number>/: its content in tree, and beside
// it the manifest. It is built under another name, so one that has its name is whole. In the generation of a writable overlay, tree/usr is
// the upper directory, and work is beside tree.
const (
	IndexName    = "overlays.json"
	TreeName     = "tree"
	WorkName     = "work"
	manifestName = "manifest.json"
	building     = ".new"
)

// Store is a directory that holds overlays.
type Store struct {
	Dir  string // by which this process reads and writes it
	Path string // by which all processes can read it: what is mounted is named by this
}

// ErrDamaged tells that an index or a manifest is not as it was written.
var ErrDamaged = errors.New("the file is damaged")

// Index reads the store's index. Without one, there are no overlays.
func (s Store) Index() (*Index, error) {
	content, err := os.ReadFile(filepath.Join(s.Dir, IndexName))
	if errors.Is(err, fs.ErrNotExist) {
		return &Index{Version: indexVersion}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the overlays: %w", err)
	}
	index, err := parseIndex(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w (%w): move it away and restore the overlays from their backups", filepath.Join(s.Path, IndexName), ErrDamaged, err)
	}
	return index, nil
}

func parseIndex(content []byte) (*Index, error) {
	index := &Index{}
	if err := json.Unmarshal(content, index); err != nil {
		return nil, err
	}
	return index, index.check()
}

// Write replaces the index: all that it says is true from then on, also after a power cut. What it names has to be on disk before.
func (s Store) Write(index *Index) error {
	content, err := json.MarshalIndent(index, "", "  ")
	if err == nil {
		err = os.MkdirAll(s.Dir, 0o755)
	}
	if err == nil {
		err = renameio.WriteFile(filepath.Join(s.Dir, IndexName), append(content, '\n'), 0o644, renameio.WithTempDir(s.Dir))
	}
	if err == nil {
		err = syncDir(s.Dir)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Join(s.Path, IndexName), err)
	}
	return nil
}

func syncDir(dir string) error {
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Sync()
}

// Generation is the directory of an overlay's content, for this process.
func (s Store) Generation(name string, number int) string {
	return filepath.Join(s.Dir, name, strconv.Itoa(number))
}

// NextGeneration returns a number that no generation of the name has, also none that was left half made.
func (s Store) NextGeneration(name string) (int, error) {
	entries, err := os.ReadDir(filepath.Join(s.Dir, name))
	if err != nil {
		return 0, err
	}
	next := 1
	for _, entry := range entries {
		if number, err := strconv.Atoi(strings.TrimSuffix(entry.Name(), building)); err == nil && number >= next {
			next = number + 1
		}
	}
	return next, nil
}

// Building is the directory of a generation while it is made.
func (s Store) Building(name string, number int) string { return s.Generation(name, number) + building }

// Complete gives a generation its name. All that it has must be on disk.
func (s Store) Complete(name string, number int) error {
	if err := os.Rename(s.Building(name, number), s.Generation(name, number)); err != nil {
		return err
	}
	return syncDir(filepath.Join(s.Dir, name))
}

// Tree is where an overlay has its content, by the path that all processes can use; "" if it has none.
func (s Store) Tree(o Overlay) string {
	if o.Generation == 0 {
		return ""
	}
	return filepath.Join(s.Path, o.Name, strconv.Itoa(o.Generation), TreeName)
}

// Upper is the directory into which goes what is written to /usr through a writable overlay.
func (s Store) Upper(o Overlay) string { return filepath.Join(s.Tree(o), "usr") }

// Work is what overlayfs needs beside Upper.
func (s Store) Work(o Overlay) string { return filepath.Join(filepath.Dir(s.Tree(o)), WorkName) }

// Placed is an overlay and the store that has it.
type Placed struct {
	Overlay
	Store Store
}

// Tree is where the overlay has its content.
func (p Placed) Tree() string { return p.Store.Tree(p.Overlay) }

// Dir is the directory of its generation, which a mount of it uses.
func (p Placed) Dir() string { return filepath.Dir(p.Tree()) }

// All lists the overlays of all stores, the topmost first.
func All(stores []Store) ([]Placed, error) { return all(stores, Store.Index) }

// AllWith lists them as they will be when one of the stores has another index.
func AllWith(stores []Store, changed Store, index *Index) ([]Placed, error) {
	return all(stores, func(s Store) (*Index, error) {
		if s == changed {
			return index, nil
		}
		return s.Index()
	})
}

func all(stores []Store, indexOf func(Store) (*Index, error)) ([]Placed, error) {
	var all []Placed
	for _, store := range stores {
		index, err := indexOf(store)
		if err != nil {
			return nil, err
		}
		for _, o := range index.Overlays {
			all = append(all, Placed{o, store})
		}
	}
	Sort(all)
	return all, nil
}

// Sort puts the topmost first.
func Sort(all []Placed) {
	slices.SortStableFunc(all, func(a, b Placed) int { return above(a.Overlay, b.Overlay) })
}

// Stack is what lies above the live commit for all to see.
type Stack []Placed // the topmost first

// Enabled leaves of overlays those that are enabled and for all to see.
func Enabled(all []Placed) Stack {
	var stack Stack
	for _, o := range all {
		if o.Enabled && o.Scope.IsShared() && o.Generation > 0 {
			stack = append(stack, o)
		}
	}
	return stack
}

// On leaves those overlays that have something in one of usr, etc and run.
func (s Stack) On(top string) (Stack, error) {
	var on Stack
	for _, o := range s {
		has, err := o.has(top)
		if err != nil {
			return nil, err
		}
		if has {
			on = append(on, o)
		}
	}
	return on, nil
}

// has tells whether the content has something in one of usr, etc and run.
func (p Placed) has(top string) (bool, error) {
	if p.Generation == 0 {
		return false, nil
	}
	_, err := os.Lstat(filepath.Join(p.Tree(), top))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("overlay %s: %w", p.Name, err)
	}
	return true, nil
}

// Trees are the directories of the stack's content below one of usr, etc and run, as far as there are such. That of a writable overlay is none of them.
func (s Stack) Trees(top string) ([]string, error) {
	var trees []string
	for _, o := range s {
		has, err := o.has(top)
		if err != nil {
			return nil, err
		}
		if has && !o.Writable {
			trees = append(trees, filepath.Join(o.Tree(), top))
		}
	}
	return trees, nil
}

// Writable is the overlay through which /usr can be written, nil if there is none.
func (s Stack) Writable() *Placed {
	for i := range s {
		if s[i].Writable {
			return &s[i]
		}
	}
	return nil
}

// Names are the names of the overlays, the topmost first.
func (s Stack) Names() []string {
	var names []string
	for _, o := range s {
		names = append(names, o.Name)
	}
	return names
}

// Digest tells stacks apart: 12 hexadecimal digits that depend on each layer's place, "" for none.
func (s Stack) Digest() string {
	if len(s) == 0 {
		return ""
	}
	var text strings.Builder
	for _, o := range s {
		fmt.Fprintf(&text, "%s\n%t\n", filepath.Join(o.Store.Path, o.Name, strconv.Itoa(o.Generation)), o.Writable)
	}
	sum := sha256.Sum256([]byte(text.String()))
	return hex.EncodeToString(sum[:6])
}

// Tidy deletes what no overlay of the index has: generations, unless used, by their directories' Path, says that something still shows them,
// and what was being built when it was killed. Nobody else may change the store meanwhile.
func (s Store) Tidy(used func(generation string) bool) error {
	if err := s.tidy(used); err != nil {
		return fmt.Errorf("deleting old content of overlays: %w", err)
	}
	return nil
}

func (s Store) tidy(used func(string) bool) error {
	index, err := s.Index()
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		switch name := entry.Name(); {
		case entry.IsDir() && CheckName(name) == nil:
			err = s.tidyOverlay(name, index.Find(name), used)
		case strings.HasPrefix(name, "."+IndexName): // of renameio, for a new index
			err = os.Remove(filepath.Join(s.Dir, name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tidyOverlay does that for one name; o is nil if the index has no such overlay any more.
func (s Store) tidyOverlay(name string, o *Overlay, used func(string) bool) error {
	dir := filepath.Join(s.Dir, name)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		number, err := strconv.Atoi(strings.TrimSuffix(entry.Name(), building))
		if err != nil || !entry.IsDir() {
			continue // not of this program
		}
		isWhole := !strings.HasSuffix(entry.Name(), building)
		if isWhole && (o != nil && o.Generation == number || used(filepath.Join(s.Path, name, entry.Name()))) {
			continue
		}
		if err := s.drop(dir, number, isWhole); err != nil {
			return err
		}
	}
	if o != nil && o.Generation > 0 {
		return nil
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// drop deletes a generation, under a name of its own: one that has its name is whole.
func (s Store) drop(dir string, number int, isWhole bool) error {
	whole := filepath.Join(dir, strconv.Itoa(number))
	if isWhole {
		if err := os.Rename(whole, whole+building); err != nil {
			return err
		}
	}
	return beneath.Remove(whole + building)
}
