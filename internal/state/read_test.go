package state

import (
	"path/filepath"
	"testing"
)

func TestEntriesAreAllThatCanBeRead(t *testing.T) {
	d := testDirs(t)
	if entries, err := d.Entries(); err != nil || entries == nil || len(entries) != 0 {
		t.Errorf("without a history: got %+v, %v, want an empty list", entries, err)
	}
	writeFile(t, filepath.Join(d.Lib, "history.jsonl"), "noise\x00\n{}\n\n{\"transaction\": \"torn")
	for _, id := range []string{"one", "two"} {
		if err := d.AppendHistory(NewEntry(&Transaction{ID: id}, Refused, "why")); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := d.Entries()
	if err != nil || len(entries) != 2 || entries[0].Transaction != "one" || entries[1].Transaction != "two" || entries[1].Reason != "why" {
		t.Errorf("got %+v, %v", entries, err)
	}
}
