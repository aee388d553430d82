package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/partial"
)

// Transaction is one run of the phases. Its file exists from its [Lock.Begin] until its [Lock.End]: it says whose the machine is between the
// phases, which are separate processes. It is written under the lock alone.
type Transaction struct {
	ID          string          `json:"transaction"`
	Unit        string          `json:"unit"`    // whose transaction it is: the unit that was started to have it done
	Request     string          `json:"request"` // what that was asked for: a commit, a ref, ResetRequest, an OverlayRequest
	From        ostree.Checksum `json:"from"`    // live when the transaction began
	Target      ostree.Checksum `json:"target"`
	Live        ostree.Checksum `json:"live"` // what it makes live: Target, or a commit made of a part of it; prepare finds that out
	Partial     *partial.About  `json:"partial,omitempty"`
	Started     time.Time       `json:"started"`
	RequestedBy string          `json:"requested_by"`
	Allow       string          `json:"allow"`                  // the policy that allowed it, Allow=; empty for a reset
	Staged      *StagedBefore   `json:"staged"`                 // set if prepare stages a deployment
	Switched    bool            `json:"switched"`               // mount is about to change, or has changed, /usr
	Services    []Task          `json:"services,omitempty"`     // what is being, or was, done to services; rollback undoes it
	EtcRestored []string        `json:"etc_restored,omitempty"` // by a reset: paths in /etc that it has taken back
	Committed   bool            `json:"committed"`              // all is done: from here it is only brought to its end, never rolled back
	Phases      []PhaseRun      `json:"phases"`
}

// PhaseRun is one phase of a transaction.
type PhaseRun struct {
	Name    string    `json:"name"`
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
	Steps   []Step    `json:"steps,omitempty"`
}

// Step is a part of a phase that others may feel: the switch of /usr, a reload.
type Step struct {
	Name    string    `json:"name"`
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
}

// StagedBefore is what has to come back when the deployment that prepare stages is dropped.
type StagedBefore struct {
	Deployed ostree.Checksum  `json:"deployed"` // what prepare stages
	Replaced StagedDeployment `json:"replaced"` // whose place that takes
	Staging  Staging          `json:"staging"`
}

// ResetRequest is the request of a transaction that goes back to the booted tree; it is no valid ref name.
const ResetRequest = "(reset)"

// check refuses what no Lock.Write has written.
func (t *Transaction) check() error {
	if t.ID == "" || t.Request == "" {
		return errors.New("it does not say what was requested")
	}
	return nil
}

// Begin appends a phase that starts now; a phase that runs again after it was killed replaces its first run.
func (t *Transaction) Begin(phase string) {
	run := PhaseRun{Name: phase, Started: time.Now().UTC()}
	if n := len(t.Phases); n > 0 && t.Phases[n-1].Name == phase {
		t.Phases[n-1] = run
		return
	}
	t.Phases = append(t.Phases, run)
}

// HasBegun tells whether a phase was begun.
func (t *Transaction) HasBegun(phase string) bool {
	return slices.ContainsFunc(t.Phases, func(run PhaseRun) bool { return run.Name == phase })
}

// End notes how long the phase that was begun last took.
func (t *Transaction) End() {
	last := &t.Phases[len(t.Phases)-1]
	last.Seconds = time.Since(last.Started).Seconds()
}

// SwitchStep is the step at whose end /usr shows another tree.
const SwitchStep = "switch /usr"

// Step does a part of the phase that was begun last, and notes how long it took.
func (t *Transaction) Step(name string, do func() error) error {
	started := time.Now().UTC()
	err := do()
	last := &t.Phases[len(t.Phases)-1]
	last.Steps = append(last.Steps, Step{Name: name, Started: started, Seconds: time.Since(started).Seconds()})
	return err
}

// Transaction reads the transaction under way; nil if there is none.
func (d Dirs) Transaction() (*Transaction, error) {
	t := &Transaction{}
	found, err := readJSON(d.transactionPath(), t)
	if err != nil || !found {
		return nil, err
	}
	return t, nil
}

// AwaitEnd waits until no transaction is under way, or ctx is done.
func (d Dirs) AwaitEnd(ctx context.Context) error {
	err := watch(ctx, d.Run, unix.IN_DELETE|unix.IN_MOVED_FROM, func() (bool, error) {
		_, err := os.Lstat(d.transactionPath())
		return errors.Is(err, os.ErrNotExist), nil
	})
	if err != nil {
		return fmt.Errorf("waiting for the end of a transaction: %w", err)
	}
	return nil
}

func (d Dirs) transactionPath() string { return filepath.Join(d.Run, "transaction.json") }
