package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watch calls done, now and after every event of mask (inotify(7)) in dir, until it returns true or an error, or ctx is
// done. Where root has no more inotify instances or watches to give (fs.inotify), it looks every now and then instead.
func watch(ctx context.Context, dir string, mask uint32, done func() (bool, error)) error {
	events, err := openEvents(dir, mask)
	if isExhausted(err) {
		return look(ctx, done)
	}
	if err != nil {
		return fmt.Errorf("watching %s: %w", dir, err)
	}
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buffer := make([]byte, 4096)
	for {
		if ended, err := done(); ended || err != nil {
			return err
		}
		if _, err := events.Read(buffer); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			return fmt.Errorf("watching %s: %w", dir, err)
		}
	}
}

func openEvents(dir string, mask uint32) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if _, err := unix.InotifyAddWatch(fd, dir, mask|unix.IN_ONLYDIR); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

// isExhausted: inotify_init1(2) and inotify_add_watch(2) where a limit is reached.
func isExhausted(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOSPC)
}

// lookEvery is how often look looks.
const lookEvery = 200 * time.Millisecond

func look(ctx context.Context, done func() (bool, error)) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		if ended, err := done(); ended || err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
