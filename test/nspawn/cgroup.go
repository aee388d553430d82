package nspawn

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
)

// cgroup2Mount returns where the host has the unified hierarchy: /sys/fs/cgroup, or
// /sys/fs/cgroup/unified on a machine that still has version 1 beside it.
func cgroup2Mount() (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return "", fmt.Errorf("look for a cgroup2 mount: %w", err)
	}
	if len(mounts) == 0 {
		return "", errors.New("no cgroup2 is mounted: the machines of the tests need one (mount -t cgroup2 cgroup2 DIR)")
	}
	return mounts[0].Mountpoint, nil
}

// killLimit is how long killed processes may take to end.
const killLimit = 3 * time.Minute

// killCgroup kills every process in a control group and below, at once (cgroup.kill, Linux 5.14), and
// removes the group.
func killCgroup(group string) error {
	err := os.WriteFile(filepath.Join(group, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill the processes of %s: %w", group, err)
	}
	// A killed process leaves its group when it has ended. That takes a moment, but one that waits for the disk, as in sync(2), ends only after that.
	for deadline := time.Now().Add(killLimit); ; time.Sleep(10 * time.Millisecond) {
		if err = removeCgroup(group); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

func removeCgroup(group string) error {
	children, err := os.ReadDir(group)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, child := range children {
		if child.IsDir() {
			if err := removeCgroup(filepath.Join(group, child.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(group)
}

// firstProcess returns the host's number of the process that is number 1 in a machine, or 0 if systemd
// has not got as far as to move itself to init.scope.
func firstProcess(group string) int {
	procs, err := os.ReadFile(filepath.Join(group, "payload", "init.scope", "cgroup.procs"))
	if err != nil {
		return 0
	}
	for _, pid := range strings.Fields(string(procs)) {
		status, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			numbers, ok := strings.CutPrefix(line, "NSpid:")
			if fields := strings.Fields(numbers); ok && len(fields) == 2 && fields[1] == "1" {
				n, _ := strconv.Atoi(pid)
				return n
			}
		}
	}
	return 0
}
