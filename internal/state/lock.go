package state

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/lockfile"
)

// Lock is the right to change the machine: flock(2) on a file in /run. Every process that does has it until it ends, however it ends. Only who has
// it can begin, write and end a transaction.
type Lock struct {
	dirs Dirs
	file *os.File
}

// Lock waits for the lock until ctx is done. It calls busy first if somebody else has it.
func (d Dirs) Lock(ctx context.Context, busy func()) (*Lock, error) {
	file, err := d.openLock()
	if err == nil {
		err = lockfile.Flock(ctx, file, busy)
	}
	if err != nil {
		return nil, fmt.Errorf("waiting for what changes the machine now: %w", err)
	}
	return &Lock{d, file}, nil
}

// TryLock takes it if nobody has it; else it returns nil.
func (d Dirs) TryLock() (*Lock, error) {
	file, err := d.openLock()
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		if err == unix.EWOULDBLOCK {
			return nil, nil
		}
		return nil, fmt.Errorf("%s: %w", file.Name(), err)
	}
	return &Lock{d, file}, nil
}

func (d Dirs) openLock() (*os.File, error) {
	return os.OpenFile(filepath.Join(d.Run, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
}

// Close lets others have it.
func (l *Lock) Close() { l.file.Close() }

// Begin begins a transaction of a unit for a request. It takes the place of one whose file is damaged or gone.
func (l *Lock) Begin(unit, request string) (*Transaction, error) {
	t := &Transaction{ID: NewID(), Unit: unit, Request: request, Started: time.Now().UTC()}
	return t, l.Write(t)
}

// NewID names a transaction, or another line of the history.
func NewID() string {
	id := make([]byte, 16)
	rand.Read(id)
	return hex.EncodeToString(id)
}

// Write records what a transaction has come to.
func (l *Lock) Write(t *Transaction) error { return writeJSON(l.dirs.transactionPath(), 0o600, t) }

// End lets the next one begin. Nothing is to be done if the transaction has ended, and another one has begun.
func (l *Lock) End(t *Transaction) error {
	if current, err := l.dirs.Transaction(); err == nil && current != nil && current.ID != t.ID {
		return nil
	}
	return l.Clear()
}

// Clear removes what a killed Begin has left, and a damaged file.
func (l *Lock) Clear() error {
	if err := remove(l.dirs.transactionPath()); err != nil {
		return fmt.Errorf("ending the transaction: %w", err)
	}
	return nil
}
