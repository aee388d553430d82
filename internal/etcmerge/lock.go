package etcmerge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lockPoll = 20 * time.Millisecond
	// accountsWait is how long lckpwdf(3) of glibc waits.
	accountsWait = 15 * time.Second
)

// lockAccounts takes the lock of lckpwdf(3), which useradd, passwd, systemd-sysusers and others hold while they write account files: a
// write lock on /etc/.pwd.lock, made if it is missing. As with those the file stays afterwards: a lock that is removed is none, since somebody
// else may be waiting for it. It is an open file description lock (Linux 3.15), which excludes the traditional ones of other processes.
func lockAccounts(ctx context.Context, etc *root) (unlock func(), err error) {
	const name = ".pwd.lock"
	how := unix.OpenHow{
		Flags:   unix.O_WRONLY | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Mode:    0o600,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(etc.fd, name, &how)
	if err != nil {
		return nil, fmt.Errorf("lock the account files: open %s: %w", etc.display(name), err)
	}
	ctx, cancel := context.WithTimeout(ctx, accountsWait)
	defer cancel()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	err = poll(ctx, func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock) })
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("lock the account files: %s is held by another program (useradd, passwd, vipw, …), see lslocks(8): let it end, and try again: %w", etc.display(name), err)
	}
	return func() { unix.Close(fd) }, nil
}

// poll tries to get a lock until ctx ends. Waiting in the kernel could not be interrupted.
func poll(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil || !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lockPoll):
		}
	}
}
