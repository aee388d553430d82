// Package overlay keeps an administrator's own layers: named trees that lie above what a commit has, on /usr, and that put files into
// /etc and /run.
//
// A Store holds overlays; its index says which there are, and which are enabled. The content of an overlay is a generation: a directory in
// overlayfs layer format that never changes once it has its name, unless it is the upper directory of a writable overlay. Here all of that is read;
// package content makes generations. Nothing here mounts anything, and little is imported: the generator runs at every reload of systemd.
package overlay

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kind tells where the content of an overlay comes from.
type Kind string

// The kinds of overlays.
const (
	Ordinary Kind = "overlay" // from an administrator, path by path
	Updates  Kind = "updates" // from an updates image
)

// Overlay is what the index says of an overlay.
type Overlay struct {
	Name     string `json:"name"`
	Kind     Kind   `json:"kind"`
	Scope    Scope  `json:"scope"`
	Priority int    `json:"priority"` // the higher is above the lower; of equal ones, the name that sorts later
	Enabled  bool   `json:"enabled"`
	Writable bool   `json:"writable"`
	// Generation is the number of the directory that holds its content, 0 if it has none. That of a writable one is where it is written, and
	// is the only kind that changes.
	Generation int       `json:"generation"`
	Created    time.Time `json:"created"`
	Changed    time.Time `json:"changed"`
	// Source is the image that the content of an updates overlay is from, SHA256 its checksum in hexadecimal digits if it has one.
	Source string `json:"source,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// Scope is who sees an overlay: "system" (this stateroot), "global" (every stateroot of the machine), "user:UID" (the manager of a
// user, and what it starts) or "unit:UNIT".
type Scope string

// The scopes that show an overlay to all.
const (
	System Scope = "system"
	Global Scope = "global"
)

const (
	userPrefix = "user:"
	unitPrefix = "unit:"
)

// What names are made of. These are no regular expressions, since the generator would compile them at each start, which takes longer than all that it
// does.
const (
	alphanumeric = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	inName       = alphanumeric + "._-"
	inUnitName   = alphanumeric + `:_.\-` // as in systemd.unit(5)
)

func hasOnly(s, allowed string) bool { return strings.Trim(s, allowed) == "" }

// isService tells what can be the name of a service, or of an instance of one. A template is none: nothing of it runs.
func isService(name string) bool {
	stem, ok := strings.CutSuffix(name, ".service")
	prefix, instance, isInstance := strings.Cut(stem, "@")
	return ok && len(name) < 256 && prefix != "" && (instance != "" || !isInstance) && hasOnly(prefix, inUnitName) && hasOnly(instance, inUnitName)
}

// ParseScope checks a scope.
func ParseScope(s string) (Scope, error) {
	uid, isUser := strings.CutPrefix(s, userPrefix)
	unit, isUnit := strings.CutPrefix(s, unitPrefix)
	switch {
	case s == string(System), s == string(Global):
		return Scope(s), nil
	case isUser:
		if _, err := strconv.ParseUint(uid, 10, 32); err == nil {
			return Scope(s), nil
		}
		return "", fmt.Errorf("the scope %q does not name a user by number: write user:1000", s)
	case isUnit:
		if isService(unit) {
			return Scope(s), nil
		}
		return "", fmt.Errorf("the scope %q does not name a service, or an instance of one: write unit:nginx.service, or unit:getty@tty1.service", s)
	}
	return "", fmt.Errorf("%q is no scope: system, global, user:UID or unit:UNIT", s)
}

// IsShared tells whether all see the overlay: it is a layer on /usr.
func (s Scope) IsShared() bool { return s == System || s == Global }

// Unit is the service that sees the overlay, "" if all do.
func (s Scope) Unit() string {
	if uid, ok := strings.CutPrefix(string(s), userPrefix); ok {
		return "user@" + uid + ".service"
	}
	unit, _ := strings.CutPrefix(string(s), unitPrefix)
	if s.IsShared() {
		return ""
	}
	return unit
}

// maxName keeps names short enough for those of files, mounts and units.
const maxName = 64

// CheckName refuses what cannot be the name of an overlay.
func CheckName(s string) error {
	if s == IndexName {
		return fmt.Errorf("%q cannot be the name of an overlay: the file that lists them has it", s)
	}
	if s == "" || len(s) > maxName || !hasOnly(s[:1], alphanumeric) || !hasOnly(s, inName) {
		return fmt.Errorf("%q cannot be the name of an overlay: up to 64 letters, digits, dots, dashes and underscores, the first of which is a letter or a digit", s)
	}
	return nil
}

// above orders overlays, the topmost first. A writable one is above all others: what is written goes to the top.
func above(a, b Overlay) int {
	switch {
	case a.Writable != b.Writable:
		if a.Writable {
			return -1
		}
		return 1
	case a.Priority != b.Priority:
		if a.Priority > b.Priority {
			return -1
		}
		return 1
	}
	return strings.Compare(b.Name, a.Name)
}

// Index is what a store holds.
type Index struct {
	Version  int       `json:"version"`
	Overlays []Overlay `json:"overlays"` // by name
}

const indexVersion = 1

// check refuses an index that this program has not written.
func (x *Index) check() error {
	if x.Version != indexVersion {
		return fmt.Errorf("it has version %d, this program knows %d", x.Version, indexVersion)
	}
	for i, o := range x.Overlays {
		if err := o.Check(); err != nil {
			return err
		}
		if i > 0 && x.Overlays[i-1].Name >= o.Name {
			return errors.New("its overlays are not in order")
		}
	}
	return nil
}

// Check refuses what no index says of an overlay.
func (o Overlay) Check() error {
	if err := CheckName(o.Name); err != nil {
		return err
	}
	if _, err := ParseScope(string(o.Scope)); err != nil {
		return fmt.Errorf("overlay %s: %w", o.Name, err)
	}
	isWritable := o.Writable && o.Generation > 0 && o.Kind == Ordinary && o.Scope.IsShared()
	if o.Generation < 0 || o.Kind != Ordinary && o.Kind != Updates || o.Writable && !isWritable {
		return fmt.Errorf("overlay %s is not described as it should be", o.Name)
	}
	return nil
}

// Find returns the overlay of a name, nil if there is none.
func (x *Index) Find(name string) *Overlay {
	i, found := slices.BinarySearchFunc(x.Overlays, name, func(o Overlay, name string) int { return strings.Compare(o.Name, name) })
	if !found {
		return nil
	}
	return &x.Overlays[i]
}

// Add puts an overlay in, of a name that there is not yet.
func (x *Index) Add(o Overlay) *Overlay {
	i, _ := slices.BinarySearchFunc(x.Overlays, o.Name, func(o Overlay, name string) int { return strings.Compare(o.Name, name) })
	x.Overlays = slices.Insert(x.Overlays, i, o)
	return &x.Overlays[i]
}

// Remove takes an overlay out.
func (x *Index) Remove(name string) {
	x.Overlays = slices.DeleteFunc(x.Overlays, func(o Overlay) bool { return o.Name == name })
}
