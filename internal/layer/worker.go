package layer

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// workers share tasks among threads whose working directory is a directory of the caller's choice. There are no
// calls for xattrs that take a directory's descriptor (before Linux 6.13), and a path through /proc/self/fd costs so much that to list the xattrs of
// each object before it is linked would slow a build down by more than a fifth; relative to the working directory it is a twentieth.
type workers struct {
	ctx     context.Context
	tasks   chan func() error // not buffered: what is sent has found an idle worker
	pending atomic.Int64
}

// runIn runs the task that start makes, and those that it offers, on n threads in the directory dir. It returns the
// first error. Tasks that run then should look at ctx and end.
func runIn(ctx context.Context, dir, n int, start func(w *workers) func() error) error {
	group, ctx := errgroup.WithContext(ctx)
	w := &workers{ctx: ctx, tasks: make(chan func() error)}
	for range n {
		group.Go(func() error { return w.work(dir) })
	}
	w.pending.Add(1)
	task := start(w)
	select {
	case w.tasks <- task:
	case <-ctx.Done(): // no worker could start; the task still has to release what it holds
		return errors.Join(group.Wait(), task())
	}
	return group.Wait()
}

// offer hands a task to an idle worker, if there is one.
func (w *workers) offer(task func() error) bool {
	w.pending.Add(1)
	select {
	case w.tasks <- task:
		return true
	default:
		w.pending.Add(-1)
		return false
	}
}

func (w *workers) work(dir int) error {
	// The thread no longer shares its working directory with others. So it ends with this goroutine, which
	// does not unlock it. The process' first thread would stay, idle; therefore it leaves the directory.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Fchdir(dir); err != nil {
		return err
	}
	defer unix.Chdir("/")
	for {
		select {
		case task, ok := <-w.tasks:
			if !ok {
				return nil
			}
			if err := task(); err != nil {
				return err
			}
			if w.pending.Add(-1) == 0 {
				close(w.tasks)
			}
		case <-w.ctx.Done():
			return w.ctx.Err()
		}
	}
}
