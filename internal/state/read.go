package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Entries returns the whole history, the oldest transaction first. Lines that are damaged are left out.
func (d Dirs) Entries() ([]Entry, error) {
	entries := []Entry{}
	content, err := os.ReadFile(filepath.Join(d.Lib, "history.jsonl"))
	if errors.Is(err, fs.ErrNotExist) {
		return entries, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the history: %w", err)
	}
	for line := range bytes.Lines(content) {
		entry := Entry{}
		if json.Unmarshal(line, &entry) == nil && entry.Result != "" {
			entries = append(entries, entry)
		}
	}
	return entries, nil
}
