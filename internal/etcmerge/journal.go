package etcmerge

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/treediff"
)

// The undo journal is one file in the Store. It is replaced as a whole, by rename, and always before what it describes is done to /etc:
//
//	{"version": 1, "journal": {"next": 7, "committed": {…}, "current": {…}}, "sha256": "…"}
//
// sha256 is that of the bytes of "journal", so that damage is known as such.
const (
	journalName    = "journal.json"
	journalTmp     = "journal.json.tmp"
	journalVersion = 1
)

// Directories of the Store.
const (
	savedName = "saved" // originals, and what was put into account files, by the names that the journal gives
	freshName = "new"   // what is about to be renamed into /etc; nothing in it outlives an operation
)

// ErrDamaged tells that the journal cannot be read. Nothing was changed.
var ErrDamaged = errors.New("the journal of changes is damaged")

// journal is what has to be known to take the changes back.
type journal struct {
	Next      int     `json:"next"` // the number of the next file in saved/
	Reverting string  `json:"reverting,omitempty"`
	Apart     bool    `json:"apart,omitempty"` // /etc is not on the Store's file system: temporary files may be in /etc
	Committed section `json:"committed,omitzero"`
	Current   section `json:"current,omitzero"`
}

// What Reverting says while something is being taken back.
const (
	revertingCurrent = "current"
	revertingAll     = "all"
)

// section is a journal of one transaction, or of all committed ones together. The lists are in tree order, each path is in a list once.
type section struct {
	Records []record  `json:"records,omitempty"`
	Dirs    []dirTime `json:"dirs,omitempty"`
	// Opaque has the directories in which Put hid all that a tree does not have: what is in them without a record came later.
	Opaque []string `json:"opaque,omitempty"`
}

// record is one path.
type record struct {
	Path   string  `json:"path"`
	Before State   `json:"before,omitzero"`
	Saved  string  `json:"saved,omitempty"` // the file or symbolic link of Before, in saved/
	After  []State `json:"after"`           // every state that may have been put there
	Put    string  `json:"put,omitempty"`   // of an account file: the content that was put last, in saved/
}

// isPut tells whether p is something that was put there.
func (r *record) isPut(p State) bool {
	return slices.ContainsFunc(r.After, func(s State) bool { return same(s, p) })
}

func (r *record) hasPut(t Type) bool {
	return slices.ContainsFunc(r.After, func(s State) bool { return s.Type == t })
}

func (r *record) addPut(states ...State) {
	for _, s := range states {
		if !r.isPut(s) {
			r.After = append(r.After, s)
		}
	}
}

// dirTime is a directory that came or went, or in which entries did or were replaced, so that it got another modification time. It gets its
// own back when they are taken back, unless somebody else changed an entry, too: then it has another than any of Stamps.
type dirTime struct {
	Path   string  `json:"path"`
	IsNew  bool    `json:"new,omitempty"`
	MTime  int64   `json:"mtime"`  // before, in nanoseconds since 1970; nothing if IsNew
	Stamps []int64 `json:"stamps"` // those that were set when all was done
}

func (d *dirTime) isStamp(mtime int64) bool {
	return slices.ContainsFunc(d.Stamps, func(stamp int64) bool {
		return mtime == stamp || mtime == stamp-stamp%1e9 // a file system that keeps whole seconds only
	})
}

func (s *section) isEmpty() bool {
	return len(s.Records) == 0 && len(s.Dirs) == 0 && len(s.Opaque) == 0
}

func (j *journal) isEmpty() bool    { return j.Committed.isEmpty() && j.Current.isEmpty() }
func (j *journal) unfinished() bool { return j.Reverting != "" || !j.Current.isEmpty() }

func (s *section) record(path string) *record {
	i, ok := slices.BinarySearchFunc(s.Records, path, func(r record, path string) int { return comparePaths(r.Path, path) })
	if !ok {
		return nil
	}
	return &s.Records[i]
}

func (s *section) dirTime(path string) *dirTime {
	i, ok := slices.BinarySearchFunc(s.Dirs, path, func(d dirTime, path string) int { return comparePaths(d.Path, path) })
	if !ok {
		return nil
	}
	return &s.Dirs[i]
}

func (s *section) sort() {
	slices.SortFunc(s.Records, func(a, b record) int { return comparePaths(a.Path, b.Path) })
	slices.SortFunc(s.Dirs, func(a, b dirTime) int { return comparePaths(a.Path, b.Path) })
}

// below returns the records of what is below a path.
func (s *section) below(path string) []record {
	start, _ := slices.BinarySearchFunc(s.Records, path, func(r record, path string) int { return comparePaths(r.Path, path) })
	end := start
	for end < len(s.Records) && (s.Records[end].Path == path || treediff.Below(s.Records[end].Path, path)) {
		end++
	}
	if start < end && s.Records[start].Path == path {
		start++
	}
	return s.Records[start:end]
}

// isOpaque tells whether a directory is one of Opaque.
func (s *section) isOpaque(path string) bool {
	_, ok := slices.BinarySearchFunc(s.Opaque, path, comparePaths)
	return ok
}

// savedNames returns the names in saved/ that are needed.
func (j *journal) savedNames() map[string]bool {
	names := map[string]bool{}
	for _, s := range []*section{&j.Committed, &j.Current} {
		for _, r := range s.Records {
			for _, name := range []string{r.Saved, r.Put} {
				if name != "" {
					names[name] = true
				}
			}
		}
	}
	return names
}

// envelope is the file.
type envelope struct {
	Version int             `json:"version"`
	Journal json.RawMessage `json:"journal"`
	SHA256  ostree.Checksum `json:"sha256"`
}

func encodeJournal(j *journal) ([]byte, error) {
	inner, err := json.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("encode the journal: %w", err)
	}
	b := bytes.NewBuffer(make([]byte, 0, len(inner)+128))
	fmt.Fprintf(b, `{"version":%d,"journal":`, journalVersion)
	b.Write(inner)
	fmt.Fprintf(b, `,"sha256":"%x"}`+"\n", sha256.Sum256(inner))
	return b.Bytes(), nil
}

// decodeJournal takes nothing but what encodeJournal made.
func decodeJournal(data []byte) (*journal, error) {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, err
	}
	if e.Version != journalVersion {
		return nil, fmt.Errorf("it is of version %d, this program knows version %d", e.Version, journalVersion)
	}
	if sha256.Sum256(e.Journal) != e.SHA256 {
		return nil, errors.New("its checksum does not fit its content")
	}
	j := &journal{}
	decoder := json.NewDecoder(bytes.NewReader(e.Journal))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(j); err != nil {
		return nil, err
	}
	return j, j.check()
}

// check refuses what would lead out of /etc or of saved/.
func (j *journal) check() error {
	if j.Next < 0 {
		return errors.New("it has a negative number")
	}
	for _, s := range []*section{&j.Committed, &j.Current} {
		for i, r := range s.Records {
			if err := checkPath(r.Path); err != nil {
				return err
			}
			if i > 0 && comparePaths(s.Records[i-1].Path, r.Path) >= 0 {
				return fmt.Errorf("%q is not in order", r.Path)
			}
			for _, name := range []string{r.Saved, r.Put} {
				if strings.Trim(name, "0123456789") != "" {
					return fmt.Errorf("%q is no name of a saved file", name)
				}
			}
		}
		for i, d := range s.Dirs {
			if err := checkPath(d.Path); err != nil {
				return err
			}
			if i > 0 && comparePaths(s.Dirs[i-1].Path, d.Path) >= 0 {
				return fmt.Errorf("%q is not in order", d.Path)
			}
		}
		for i, path := range s.Opaque {
			if err := checkPath(path); err != nil {
				return err
			}
			if i > 0 && comparePaths(s.Opaque[i-1], path) >= 0 {
				return fmt.Errorf("%q is not in order", path)
			}
		}
	}
	return nil
}

// checkPath takes paths below /etc; "" is /etc.
func checkPath(path string) error {
	if path == "" || path != "." && fs.ValidPath(path) && !strings.ContainsRune(path, 0) {
		return nil
	}
	return fmt.Errorf("%q leads elsewhere", path)
}

// readJournal reads the journal of a Store. Without a Store it is empty.
func readJournal(dirs Dirs) (*journal, error) {
	data, err := os.ReadFile(filepath.Join(dirs.Store, journalName))
	if errors.Is(err, fs.ErrNotExist) {
		// The journal is the first that is made in a Store, and the last that goes.
		if saved, err := os.ReadDir(filepath.Join(dirs.Store, savedName)); err == nil && len(saved) > 0 {
			return nil, damaged(dirs, errors.New("it is missing, but there are saved files"))
		}
		return &journal{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal %s: %w", dirs.inStore(journalName), bare(err))
	}
	j, err := decodeJournal(data)
	if err != nil {
		return nil, damaged(dirs, err)
	}
	return j, nil
}

func damaged(dirs Dirs, err error) error {
	repair := cmp.Or(dirs.Repair, "To take /etc back by the defaults of the commits: liveapplyctl reset")
	return fmt.Errorf("%w: %s: %w; nothing was done. %s", ErrDamaged, dirs.inStore(journalName), err, repair)
}

// scope says what has to be on disk before the journal is.
type scope int

const (
	onlyJournal scope = iota
	// wholeStore is everything that was written to the Store's file system: saved and new files, and their directories. It is one syncfs,
	// because a fsync of each file would commit the file system's own log each time.
	wholeStore
)

// writeJournal replaces the journal. When it returns, the new one, and what it needs, is on disk.
func (s *store) writeJournal(needs scope) error {
	if err := s.replaceJournal(needs); err != nil {
		return err
	}
	if err := unix.Fsync(s.fd); err != nil {
		return fmt.Errorf("sync the journal's directory %s: %w", s.dirs.inStore(), err)
	}
	return nil
}

// replaceJournal replaces the journal by one that is on disk, with what it needs. A power cut may bring the old one back, until the
// directory is synced.
func (s *store) replaceJournal(needs scope) error {
	data, err := encodeJournal(s.journal)
	if err == nil {
		err = s.renameJournal(data, needs)
	}
	if err != nil {
		_ = unix.Unlinkat(s.fd, journalTmp, 0)
		return fmt.Errorf("write the journal %s: %w", s.dirs.inStore(journalName), err)
	}
	return nil
}

func (s *store) renameJournal(data []byte, needs scope) error {
	_ = unix.Unlinkat(s.fd, journalTmp, 0) // of a killed one
	fd, err := openNew(s.fd, journalTmp)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), journalTmp)
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if needs == wholeStore {
		err = unix.Syncfs(fd)
	} else {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return unix.Renameat(s.fd, journalTmp, s.fd, journalName)
}
