package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// overlayPrefix starts the requests of transactions that change overlays; no ref name of an OSTree repo is taken for one by the units.
const overlayPrefix = "(overlay)"

// OverlayRequest names the transaction that carries out a request to change overlays. Without an id it is the one that makes the system what the
// stores say.
func OverlayRequest(id string) string { return overlayPrefix + id }

// IsOverlayRequest tells whether a transaction is about overlays, and which request it carries out.
func IsOverlayRequest(request string) (id string, is bool) {
	return strings.CutPrefix(request, overlayPrefix)
}

func (d Dirs) overlayRequestPath(id string) string {
	return filepath.Join(d.Run, "overlay", id+".json")
}

// overlayContentPath is the directory of a request for content that is in no other file.
func (d Dirs) overlayContentPath(id string) string { return filepath.Join(d.Run, "overlay", id+".d") }

// WriteOverlayRequest leaves a request to change overlays.
func (d Dirs) WriteOverlayRequest(id string, content []byte) error {
	path := d.overlayRequestPath(id)
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = replace(path, 0o600, content)
	}
	if err != nil {
		return fmt.Errorf("writing what is to be done: %w", err)
	}
	return nil
}

// TakeOverlayRequest reads a request, once.
func (d Dirs) TakeOverlayRequest(id string) ([]byte, error) {
	if err := checkOverlayID(id); err != nil {
		return nil, err
	}
	content, err := os.ReadFile(d.overlayRequestPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no request %s: change overlays with liveapplyctl overlay", id)
	}
	if err == nil {
		err = remove(d.overlayRequestPath(id))
	}
	if err != nil {
		return nil, fmt.Errorf("reading what is to be done: %w", err)
	}
	return content, nil
}

// MakeOverlayContent makes the directory for content that belongs to a request, and goes with it.
func (d Dirs) MakeOverlayContent(id string) (dir string, err error) {
	dir = d.overlayContentPath(id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making room for content: %w", err)
	}
	return dir, nil
}

// RemoveOverlayRequest removes a request and its content: it has been carried out, or given up.
func (d Dirs) RemoveOverlayRequest(id string) error {
	if checkOverlayID(id) != nil {
		return nil // there was none
	}
	err := remove(d.overlayRequestPath(id))
	if err == nil {
		err = os.RemoveAll(d.overlayContentPath(id))
	}
	if err != nil {
		return fmt.Errorf("removing what was to be done: %w", err)
	}
	return nil
}

func checkOverlayID(id string) error {
	if id == "" || strings.ContainsRune(id, '/') {
		return fmt.Errorf("%q is not the id of a request", id)
	}
	return nil
}
