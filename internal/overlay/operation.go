package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// Verb is what an operation does.
type Verb string

// The verbs. All but Create, Import and Restore work on an overlay that is there.
const (
	Create  Verb = "create"
	Add     Verb = "add"     // take the file at Path as it is now
	Set     Verb = "set"     // Path gets the content of From
	Mask    Verb = "mask"    // Path disappears
	Unset   Verb = "unset"   // Path is as without the overlay
	Enable  Verb = "enable"  //
	Disable Verb = "disable" //
	Remove  Verb = "remove"  // the overlay goes, and its content
	Freeze  Verb = "freeze"  // what was written through a writable overlay becomes its content
	Import  Verb = "import"  // a new overlay, or the new content of one, from the image From
	Restore Verb = "restore" // a new overlay from the backup From
)

// Operation is one change of overlays.
type Operation struct {
	Verb Verb   `json:"verb"`
	Name string `json:"name"`           // of the overlay; of restore, "" is the name that it had
	Path string `json:"path,omitempty"` // of add, set, mask and unset, absolute
	From string `json:"from,omitempty"` // the path of the file that set, import and restore read; of import, it may be a URL
	// Mode are the permission bits of a file that set makes new.
	Mode     uint32 `json:"mode,omitempty"`
	Scope    Scope  `json:"scope,omitempty"`   // of create, import and restore; "" is System
	Runtime  bool   `json:"runtime,omitempty"` // until the reboot
	Priority int    `json:"priority,omitempty"`
	Writable bool   `json:"writable,omitempty"`
	SHA256   string `json:"sha256,omitempty"` // of the image
	// Image is the image of import, where it is open already; nil if From is to be opened.
	Image *os.File `json:"-"`
}

// Request is what is to be done in one step.
type Request struct {
	Operations  []Operation `json:"operations"`
	Force       bool        `json:"force,omitempty"` // also content that would hide what the system cannot do without
	RequestedBy string      `json:"requested_by"`
}

// ParseRequest reads a request, and refuses one that cannot be carried out by anybody.
func ParseRequest(content []byte) (*Request, error) {
	r := &Request{}
	if err := json.Unmarshal(content, r); err != nil {
		return nil, fmt.Errorf("the request is damaged: %w", err)
	}
	if len(r.Operations) == 0 {
		return nil, errors.New("nothing was requested")
	}
	for _, o := range r.Operations {
		if err := o.Check(); err != nil {
			return nil, fmt.Errorf("overlay %s: %s: %w", o.Name, o.Verb, err)
		}
	}
	return r, nil
}

// needs is what a verb cannot do without.
type needs struct{ path, from bool }

var verbs = map[Verb]needs{
	Create: {}, Enable: {}, Disable: {}, Remove: {}, Freeze: {},
	Add: {path: true}, Mask: {path: true}, Unset: {path: true}, Set: {path: true, from: true},
	Import: {from: true}, Restore: {from: true},
}

// Check refuses what nobody can carry out.
func (o Operation) Check() error {
	need, known := verbs[o.Verb]
	switch {
	case !known:
		return errors.New("this is nothing that can be done to an overlay")
	case need.path != (o.Path != "") || need.from != (o.From != ""):
		return errors.New("it does not say what to do it with, or says too much")
	case o.Mode != o.Mode&0o7777:
		return fmt.Errorf("%#o is no mode of a file", o.Mode)
	}
	if o.Verb != Restore || o.Name != "" {
		if err := CheckName(o.Name); err != nil {
			return err
		}
	}
	if o.Scope == "" {
		return nil
	}
	_, err := ParseScope(string(o.Scope))
	return err
}

// IsNew tells whether the operation may make an overlay.
func (o Operation) IsNew() bool { return o.Verb == Create || o.Verb == Import || o.Verb == Restore }
