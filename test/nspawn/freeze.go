package nspawn

import (
	"os/exec"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// runUnfreezing is Run of a command, with startUnfreezing.
func runUnfreezing(cmd *exec.Cmd) error {
	if err := startUnfreezing(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// startUnfreezing starts a program that is told, as all that it starts are, that its filesystems cannot be frozen (FIFREEZE of ioctl_fsfreeze(2)
// fails with EOPNOTSUPP). All machines are on one filesystem, which a real one has for itself. libostree freezes it for an instant when it
// has written to /boot; whoever remounts it then, as libostree does before it writes, fails, and a freeze outlives who is killed
// meanwhile. Where there is no freezing, libostree syncs instead (fsfreeze_thaw_cycle in ostree-sysroot-deploy.c).
func startUnfreezing(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		// A child has the filter of the thread that it is made by. That ends with this goroutine, which does not unlock it.
		runtime.LockOSThread()
		err := refuseFreezing()
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	return <-started
}

// refuseFreezing sets a filter of system calls for this thread, see seccomp(2) and struct seccomp_data.
func refuseFreezing() error {
	const (
		call, request = 0, 24 // the number of the call, and its second argument
		freeze        = 0xc0045877
	)
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: call},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_IOCTL, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: request},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: freeze, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EOPNOTSUPP)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}
