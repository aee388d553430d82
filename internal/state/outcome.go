package state

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Outcome is how a request ended. It is left for liveapply@.service, which runs when the phases have ended or the rollback has,
// and tells whoever started it.
type Outcome struct {
	Result  Result `json:"result"`
	Reason  string `json:"reason"`  // why it failed; empty if it did not
	Phase   string `json:"phase"`   // that failed; empty if none did
	Passing bool   `json:"passing"` // it was refused for a reason that may pass by itself
}

// check refuses what no SetOutcome has written.
func (o *Outcome) check() error {
	if o.Result == "" {
		return errors.New("it has no result")
	}
	return nil
}

// SetOutcome leaves how a request ended.
func (d Dirs) SetOutcome(request string, o Outcome) error {
	return writeJSON(d.outcomePath(request), 0o600, o)
}

// Outcome reads how a request ended; nil if that is not known, or no longer, because the file is damaged.
func (d Dirs) Outcome(request string) (*Outcome, error) {
	o := &Outcome{}
	found, err := readJSON(d.outcomePath(request), o)
	if errors.Is(err, ErrDamaged) {
		return nil, nil
	}
	if err != nil || !found {
		return nil, err
	}
	return o, nil
}

// TakeOutcome reads how a request ended, once.
func (d Dirs) TakeOutcome(request string) (*Outcome, error) {
	o, err := d.Outcome(request)
	if err != nil {
		return nil, err
	}
	if err := remove(d.outcomePath(request)); err != nil {
		return nil, fmt.Errorf("reading the outcome of %s: %w", request, err)
	}
	return o, nil
}

// outcomePath names the file after the request; a ref's slashes become a character that no ref and no checksum has.
func (d Dirs) outcomePath(request string) string {
	return filepath.Join(d.outcomes(), strings.ReplaceAll(request, "/", "\\"))
}

func (d Dirs) outcomes() string { return filepath.Join(d.Run, "outcome") }
