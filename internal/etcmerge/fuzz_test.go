package etcmerge

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/liveapply/liveapply/internal/fuzztest"
	"github.com/liveapply/liveapply/internal/treediff"
)

// perByte is how much memory may be taken for a byte of a journal: the least that a record can be is a
// few bytes, of which many things are remembered.
const perByte = 512

// sampleJournal has everything that a journal can have.
func sampleJournal() *journal {
	j := &journal{Next: 3, Reverting: revertingAll, Apart: true}
	j.Current.Records = []record{{
		Path: "a", Before: State{Type: Regular, Mode: 0o644, Xattrs: []Xattr{{Name: []byte("user.\xff"), Value: []byte{0}}}},
		Saved: "1", After: []State{{}, {Type: Directory}}, Put: "2",
	}}
	j.Committed.Dirs = []dirTime{{Path: "", MTime: -1, Stamps: []int64{5}}}
	j.Committed.Opaque = []string{"a", "a/b"}
	return j
}

// What is read as a journal leads nowhere but below /etc and saved/, and is read the same when it is written again.
func FuzzJournal(f *testing.F) {
	good, err := encodeJournal(sampleJournal())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"journal":{"next":0},"sha256":"` + strings.Repeat("0", 64) + `"}`))
	f.Fuzz(checkJournal)
}

// FuzzJournalContent gets behind the checksum, which no mutation fits.
func FuzzJournalContent(f *testing.F) {
	f.Add([]byte(`{"next":1,"committed":{"records":[{"path":"a","saved":"1","after":[{"type":"file","mode":420}]}],"dirs":[{"path":"","mtime":1,"stamps":[2]}]}}`))
	f.Add([]byte(`{"current":{"records":[{"path":"a","saved":"../1","after":null}]}}`))
	f.Add([]byte(`{"committed":{"records":[{"path":"a/b","after":[{}]},{"path":"a-","after":null}],"opaque":["a","a-/../b"]}}`))
	f.Add([]byte(`{"current":{"records":[{"path":"../a","after":null}]}}`))
	f.Add([]byte(`{"current":{"records":[{"path":"b","after":null},{"path":"a","after":null}]}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		checkJournal(t, fmt.Appendf(nil, `{"version":%d,"journal":%s,"sha256":"%x"}`, journalVersion, content, sha256.Sum256(content)))
	})
}

func checkJournal(t *testing.T, data []byte) {
	var j *journal
	var err error
	fuzztest.Bounded(t, len(data), perByte, func() { j, err = decodeJournal(data) })
	if err != nil {
		return
	}
	for _, s := range []*section{&j.Committed, &j.Current} {
		for i := range s.Records {
			if r := &s.Records[i]; s.record(r.Path) != r || strings.HasPrefix(r.Path, "/") || slices.Contains(strings.Split(r.Path, "/"), "..") {
				t.Errorf("record %q leads elsewhere, or cannot be found", r.Path)
			}
		}
		for _, path := range s.Opaque {
			if !s.isOpaque(path) || strings.HasPrefix(path, "/") || slices.Contains(strings.Split(path, "/"), "..") {
				t.Errorf("directory %q leads elsewhere, or cannot be found", path)
			}
			for _, r := range s.below(path) {
				if !treediff.Below(r.Path, path) {
					t.Errorf("%q is not below %q", r.Path, path)
				}
			}
		}
		for i := range s.Dirs {
			if d := &s.Dirs[i]; s.dirTime(d.Path) != d {
				t.Errorf("directory %q cannot be found", d.Path)
			}
		}
	}
	for name := range j.savedNames() {
		if strings.Trim(name, "0123456789") != "" {
			t.Errorf("%q is no name in saved/", name)
		}
	}
	again, err := encodeJournal(j)
	if err != nil {
		t.Fatal(err)
	}
	same, err := decodeJournal(again)
	if err != nil {
		t.Fatalf("what was read cannot be written and read again: %v", err)
	}
	if diff := cmp.Diff(j, same, cmp.AllowUnexported(journal{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("written and read again it is another (-read +again):\n%s", diff)
	}
}
