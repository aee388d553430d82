package overlay

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

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
