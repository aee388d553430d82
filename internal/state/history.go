package state

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/ostree"
)

// Result is how a transaction ended.
type Result string

// The results of transactions.
const (
	Applied    Result = "applied"
	RolledBack Result = "rolled-back"
	Refused    Result = "refused"
	Reset      Result = "reset"
)

// Entry is one line of the history.
type Entry struct {
	Transaction string          `json:"transaction"`
	From        ostree.Checksum `json:"from"`
	Target      ostree.Checksum `json:"target"`
	Started     time.Time       `json:"started"`
	Result      Result          `json:"result"`
	Reason      string          `json:"reason"`
	RequestedBy string          `json:"requested_by"`
	Phases      []PhaseRun      `json:"phases"`
}

// NewEntry is the line that ends a transaction.
func NewEntry(t *Transaction, result Result, reason string) Entry {
	return Entry{
		Transaction: t.ID, From: t.From, Target: t.Target, Started: t.Started,
		Result: result, Reason: reason, RequestedBy: t.RequestedBy, Phases: t.Phases,
	}
}

// AppendHistory adds a line to /var/lib/liveapply/history.jsonl. It goes out in one write, so that a crash leaves at most the
// last line incomplete, and a next line starts on its own.
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
	if torn, err := lastLineIsTorn(file); err != nil {
		return fmt.Errorf("writing the history: %w", err)
	} else if torn {
		line = append([]byte{'\n'}, line...)
	}
	if _, err := file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("writing the history: %w", err)
	}
	return file.Sync()
}

func lastLineIsTorn(file *os.File) (bool, error) {
	info, err := file.Stat()
	if err != nil || info.Size() == 0 {
		return false, err
	}
	last := make([]byte, 1)
	_, err = file.ReadAt(last, info.Size()-1)
	return last[0] != '\n', err
}
