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
)

// Lock is the right to change the machine: flock(2) on a file in /run. Every process that does has it until it ends, however it ends. Only who has
// it can begin, write and end a transaction.
type Lock struct {
	dirs Dirs
	file *os.File
}

// Lock waits for the lock until ctx is done.
func (d Dirs) Lock(ctx context.Context) (*Lock, error) {
	file, err := os.OpenFile(filepath.Join(d.Run, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		err = flock(ctx, file)
	}
	if err != nil {
		return nil, fmt.Errorf("waiting for what changes the machine now: %w", err)
	}
	return &Lock{d, file}, nil
}

// Close lets others have it.
func (l *Lock) Close() { l.file.Close() }

// Begin begins a transaction of a unit for a request. It takes the place of one whose file is damaged or gone.
func (l *Lock) Begin(unit, request string) (*Transaction, error) {
	id := make([]byte, 16)
	rand.Read(id)
	t := &Transaction{ID: hex.EncodeToString(id), Unit: unit, Request: request, Started: time.Now().UTC()}
	return t, l.Write(t)
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

// flock takes flock(2) on a file, or closes it.
func flock(ctx context.Context, file *os.File) error {
	taken := make(chan error, 1)
	go func() {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX)
		for err == unix.EINTR {
			err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
		}
		taken <- err
	}()
	select {
	case err := <-taken:
		if err != nil {
			file.Close()
			return fmt.Errorf("%s: %w", file.Name(), err)
		}
		return nil
	case <-ctx.Done():
		go func() { <-taken; file.Close() }() // nothing interrupts the call, but the end of the process
		return ctx.Err()
	}
}
