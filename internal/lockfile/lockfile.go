// Package lockfile takes locks of the kernel's on files, until a context is done.
package lockfile

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Flock takes flock(2) on a file, or closes it. It calls busy first if somebody else has it.
func Flock(ctx context.Context, file *os.File, busy func()) error {
	if unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return nil
	}
	busy()
	return take(ctx, file, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX) })
}

// FlockShared takes a shared flock(2) on a file, or closes it.
func FlockShared(ctx context.Context, file *os.File) error {
	return take(ctx, file, func(fd int) error { return unix.Flock(fd, unix.LOCK_SH) })
}

// OFD takes an open file description lock (fcntl_locking(2)) on the whole of a file, or closes it. It calls busy first if somebody else has it.
func OFD(ctx context.Context, file *os.File, busy func()) error {
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	if unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &whole) == nil {
		return nil
	}
	busy()
	return take(ctx, file, func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLKW, &whole) })
}

func take(ctx context.Context, file *os.File, lock func(fd int) error) error {
	taken := make(chan error, 1)
	go func() {
		err := lock(int(file.Fd()))
		for err == unix.EINTR {
			err = lock(int(file.Fd()))
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
