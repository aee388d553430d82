package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/partial"
)

// Result is how a transaction ended.
type Result string

// The results of transactions.
const (
	Applied    Result = "applied"
	RolledBack Result = "rolled-back"
	Refused    Result = "refused"
	Reset      Result = "reset"
	// NotFinalized is no transaction's: at a shutdown, what was staged did not become a deployment.
	NotFinalized Result = "not-finalized"
)

// ExitStatus is with which liveapply@.service, and who waits for it, ends. The numbers have no name in systemd.exec(5) that would say something else.
func (r Result) ExitStatus() int {
	switch r {
	case Applied, Reset:
		return 0
	case Refused:
		return 80
	case RolledBack:
		return 81
	}
	return 1
}

// Entry is one line of the history.
type Entry struct {
	Transaction string          `json:"transaction"`
	From        ostree.Checksum `json:"from"`
	Target      ostree.Checksum `json:"target"`
	Partial     *partial.About  `json:"partial,omitempty"` // if only a part of Target was to be applied
	Started     time.Time       `json:"started"`
	Result      Result          `json:"result"`
	Reason      string          `json:"reason"`
	Passing     bool            `json:"passing,omitempty"` // it was refused for a reason that may pass by itself
	RequestedBy string          `json:"requested_by"`
	Allow       string          `json:"allow"` // the policy under which it was applied or refused; empty for a reset
	Phases      []PhaseRun      `json:"phases"`
}

// NewEntry is the line that ends a transaction.
func NewEntry(t *Transaction, result Result, reason string) Entry {
	return Entry{
		Transaction: t.ID, From: t.From, Target: t.Target, Partial: t.Partial, Started: t.Started,
		Result: result, Reason: reason, RequestedBy: t.RequestedBy, Allow: t.Allow, Phases: t.Phases,
	}
}

// AppendHistory adds a line to /var/lib/liveapply/history.jsonl, unless the last one is of the same transaction: whatever ends a transaction
// does so again if it was killed. The line goes out in one write, so that a crash leaves at most the last line incomplete, and a next
// line starts on its own.
func (d Dirs) AppendHistory(e Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("writing the history: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(d.Lib, "history.jsonl"), os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return fmt.Errorf("writing the history: %w", err)
	}
	defer file.Close()
	last, torn, err := lastLine(file)
	if err != nil {
		return fmt.Errorf("writing the history: %w", err)
	}
	if torn {
		line = append([]byte{'\n'}, line...)
	}
	var before Entry
	if !torn && json.Unmarshal(last, &before) == nil && before.Transaction == e.Transaction {
		return nil
	}
	if _, err := file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("writing the history: %w", err)
	}
	return file.Sync()
}

// LastEntry returns what the history tells of the last transaction; nil if nothing. Lines that are damaged are left out.
func (d Dirs) LastEntry() (*Entry, error) {
	file, err := os.Open(filepath.Join(d.Lib, "history.jsonl"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the history: %w", err)
	}
	defer file.Close()
	tail, err := readTail(file)
	if err != nil {
		return nil, fmt.Errorf("reading the history: %w", err)
	}
	lines := bytes.Split(tail, []byte{'\n'})
	for _, line := range slices.Backward(lines) {
		entry := &Entry{}
		if json.Unmarshal(line, entry) == nil && entry.Result != "" {
			return entry, nil
		}
	}
	return nil, nil
}

// historyTail is more than a line of the history takes, in bytes.
const historyTail = 1 << 20

// lastLine returns the last line of a file, and whether its end is missing.
func lastLine(file *os.File) (line []byte, torn bool, err error) {
	tail, err := readTail(file)
	if err != nil || len(tail) == 0 {
		return nil, false, err
	}
	line, ended := bytes.CutSuffix(tail, []byte{'\n'})
	return line[bytes.LastIndexByte(line, '\n')+1:], !ended, nil
}

// readTail returns the end of a file.
func readTail(file *os.File) ([]byte, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	tail := make([]byte, min(info.Size(), historyTail))
	_, err = file.ReadAt(tail, info.Size()-int64(len(tail)))
	return tail, err
}
