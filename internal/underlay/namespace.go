package underlay

import (
	"fmt"
	"os"
	"runtime"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// InMountNamespace runs f in a mount namespace of its own, which starts as a copy of the present one: what f mounts or unmounts is
// seen by f and by the programs it starts, and is gone when it returns, except where a descriptor or such a program holds it. What
// is mounted outside meanwhile does arrive.
//
// The namespace belongs to the thread that f runs on, not to other goroutines that f starts. It is the view of /proc/thread-self
// there, and not of /proc/self; file descriptors are shared with the whole process.
func InMountNamespace(f func() error) error {
	result := make(chan error)
	go onOwnThread(func() { result <- runInMountNamespace(f) })
	return <-result
}

// onOwnThread runs f on a thread that ends with it, since nothing leads back from a mount namespace: the goroutine ends
// without unlocking it. That must not be the process' first thread, whose namespaces /proc/PID shows as the process'.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() { // on another thread, since the first one is taken until then
		defer close(done)
		onOwnThread(f)
	}()
	<-done
	runtime.UnlockOSThread()
}

func runInMountNamespace(f func() error) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("making a mount namespace: unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("making a mount namespace private: %w", err)
	}
	return f()
}

// inNamespaceOf runs f in a mount namespace, of which it is given the mount table. The namespace is a path to its file in /proc.
func inNamespaceOf(namespace string, f func(table []*mountinfo.Info) error) error {
	result := make(chan error)
	go onOwnThread(func() { result <- runInNamespaceOf(namespace, f) })
	return <-result
}

func runInNamespaceOf(namespace string, f func(table []*mountinfo.Info) error) error {
	target, err := os.Open(namespace)
	if err != nil {
		return err
	}
	defer target.Close()
	proc, err := os.Open("/proc") // there need not be one inside
	if err != nil {
		return err
	}
	defer proc.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("entering a mount namespace: unshare: %w", err)
	}
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("entering the mount namespace %s: setns: %w", namespace, err)
	}
	fd, err := unix.Openat(int(proc.Fd()), "thread-self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("reading the mounts of %s: %w", namespace, err)
	}
	file := os.NewFile(uintptr(fd), "mountinfo")
	defer file.Close()
	table, err := mountinfo.GetMountsFromReader(file, nil)
	if err != nil {
		return fmt.Errorf("reading the mounts of %s: %w", namespace, err)
	}
	return f(table)
}
