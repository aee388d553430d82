package state

import (
	"context"
	"crypto/rand"
	"encoding/hex"
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

// Transaction is one run of the phases. Its file exists from the moment in which prepare claims the machine until
// record, rollback or reset has finished with it: it is the lock between phases, which are separate processes.
type Transaction struct {
	ID          string          `json:"transaction"`
	Request     string          `json:"request"` // the instance of the units: a commit, a ref, or ResetRequest
	From        ostree.Checksum `json:"from"`    // live when the transaction began
	Target      ostree.Checksum `json:"target"`
	Live        ostree.Checksum `json:"live"` // what it makes live: Target, or a commit made of a part of it; prepare finds that out
	Partial     *partial.About  `json:"partial,omitempty"`
	Started     time.Time       `json:"started"`
	RequestedBy string          `json:"requested_by"`
	Allow       string          `json:"allow"`              // the policy that allowed it, Allow=; empty for a reset
	Staged      *StagedBefore   `json:"staged"`             // set if prepare stages a deployment
	Switched    bool            `json:"switched"`           // mount is about to change, or has changed, /usr
	Services    []Task          `json:"services,omitempty"` // what is being, or was, done to services; rollback undoes it
	Committed   bool            `json:"committed"`          // all is done: from here it is only brought to its end, never rolled back
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

// check refuses what no WriteTransaction has written.
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

// WriteTransaction records what the transaction under way has come to. It fails if another one has taken its place, as a reset does if the
// file is damaged.
func (d Dirs) WriteTransaction(t *Transaction) error {
	if current, err := d.Transaction(); err == nil && current != nil && current.ID != t.ID {
		return fmt.Errorf("transaction %s of %s has taken the place of this one", current.ID, current.Request)
	}
	return writeJSON(d.transactionPath(), 0o600, t)
}

// EndTransaction lets the next one begin.
func (d Dirs) EndTransaction() error {
	if err := remove(d.transactionPath()); err != nil {
		return fmt.Errorf("ending the transaction: %w", err)
	}
	return nil
}

// AwaitEnd waits until no transaction is under way, or ctx is done.
func (d Dirs) AwaitEnd(ctx context.Context) error {
	if err := awaitRemoval(ctx, d.transactionPath()); err != nil {
		return fmt.Errorf("waiting for the end of a transaction: %w", err)
	}
	return nil
}

// Claim begins a transaction for a request, or returns the one that this same request has begun before (its phase
// was killed and runs again). If another one is under way it calls waiting once and waits until that has ended or ctx is
// done. A reset takes the place of one whose file is damaged; for others that is an error.
func (d Dirs) Claim(ctx context.Context, request string, waiting func(*Transaction)) (*Transaction, error) {
	told := false
	for {
		current, err := d.tryClaim(request)
		if err != nil || current.Request == request {
			return current, err
		}
		if !told {
			waiting(current)
			told = true
		}
		if err := awaitRemoval(ctx, d.transactionPath()); err != nil {
			return nil, fmt.Errorf("transaction %s of %s has not ended: wait for it (systemctl list-jobs), or take it back with liveapplyctl reset: %w",
				current.ID, current.Request, err)
		}
	}
}

// tryClaim returns the transaction under way, which is the caller's own unless another was first.
func (d Dirs) tryClaim(request string) (*Transaction, error) {
	lock, err := d.lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	current, err := d.Transaction()
	if errors.Is(err, ErrDamaged) && request == ResetRequest {
		current, err = nil, nil
	}
	if err != nil || current != nil {
		return current, err
	}
	id := make([]byte, 16)
	rand.Read(id)
	current = &Transaction{ID: hex.EncodeToString(id), Request: request, Started: time.Now().UTC()}
	return current, d.WriteTransaction(current)
}

// lock lets nobody else claim the machine until it is closed.
func (d Dirs) lock() (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(d.Run, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("claiming the machine for a transaction: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		lock.Close()
		return nil, fmt.Errorf("claiming the machine for a transaction: %s: %w", lock.Name(), err)
	}
	return lock, nil
}

// Locked does something while nobody claims the machine, and nobody else does something Locked.
func (d Dirs) Locked(do func() error) error {
	lock, err := d.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	return do()
}

// ClearClaim removes what a claim has left that was killed before there was a transaction.
func (d Dirs) ClearClaim() error {
	lock, err := d.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if current, err := d.Transaction(); current != nil || err != nil {
		return nil
	}
	return d.EndTransaction()
}

// awaitRemoval returns when there is no file at path.
func awaitRemoval(ctx context.Context, path string) error {
	return watch(ctx, filepath.Dir(path), unix.IN_DELETE|unix.IN_MOVED_FROM, func() (bool, error) {
		_, err := os.Lstat(path)
		return errors.Is(err, os.ErrNotExist), nil
	})
}

func (d Dirs) transactionPath() string { return filepath.Join(d.Run, "transaction.json") }

// RequestPath is where a request for one transaction, a drop-in of liveapply.conf, is left for prepare.
func (d Dirs) RequestPath(target ostree.Checksum) string {
	return filepath.Join(d.requests(), target.String()+".conf")
}

// RemoveRequest removes a request: prepare has consumed it, or nobody will.
func (d Dirs) RemoveRequest(target ostree.Checksum) error { return remove(d.RequestPath(target)) }

// ResetRequestPath is where a request for a reset is left, of which RequestedBy= counts alone.
func (d Dirs) ResetRequestPath() string { return filepath.Join(d.requests(), "reset.conf") }

// RemoveResetRequest removes it: the reset has ended.
func (d Dirs) RemoveResetRequest() error { return remove(d.ResetRequestPath()) }

func (d Dirs) requests() string { return filepath.Join(d.Run, "request") }
