package state

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watch calls done, now and after every event of mask (inotify(7)) in dir, until it returns true or an error, or ctx is
// done.
func watch(ctx context.Context, dir string, mask uint32, done func() (bool, error)) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watching %s: %w", dir, err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, dir, mask|unix.IN_ONLYDIR); err != nil {
		return fmt.Errorf("watching %s: %w", dir, err)
	}
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
