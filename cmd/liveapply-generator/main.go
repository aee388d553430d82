// Command liveapply-generator is a systemd.generator(7): it makes, at boot and at every daemon-reload, what depends on the state of
// the machine and on liveapply.conf. With liveapply=off on the kernel command line that is nothing, where
// nothing was booted from OSTree it is what has overlays and updates images shown, and in the initrd only the latter.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/ostree"
)

// unitDir is where the units are installed; set by the build.
var unitDir = "/usr/lib/systemd/system"

func main() {
	// The boot must not suffer: an error is told where one is looked for before there is a journal, and that is all.
	if len(os.Args) != 4 {
		fmt.Fprintf(os.Stderr, "usage: %s NORMAL-DIR EARLY-DIR LATE-DIR\nstarted by systemd, see systemd.generator(7)\n", os.Args[0])
		os.Exit(2)
	}
	if err := generate("/", os.Args[1]); err != nil {
		tell(err)
	}
}

// generate writes units for the system at root into dir.
func generate(root, dir string) error {
	left, err := filepath.Glob(filepath.Join(root, "ostree/deploy/*/backing/*/liveapply"))
	if err != nil {
		return err
	}
	configuration := config.System
	configuration.Root = root
	return errors.Join(holdStaged(root, left), generateUnits(root, dir, configuration, left))
}

// generateUnits writes the units. left are directories by which an earlier boot has left something to recover.
func generateUnits(root, dir string, configuration config.Dirs, left []string) error {
	if off, err := configuration.IsOff(); off || err != nil {
		return err
	}
	initrd, err := exists(root, "etc/initrd-release") // as systemd tells
	if err != nil {
		return err
	}
	asked := updates(configuration, dir, initrd)
	if initrd {
		return asked
	}
	shown := errors.Join(asked, overlays(root, dir))
	if booted, err := exists(root, "run/ostree-booted"); !booted || err != nil {
		return errors.Join(shown, err)
	}
	// What a power cut left is recovered whatever the configuration says.
	return errors.Join(shown, recoverAtBoot(root, dir, left), automatic(configuration, dir))
}

// holdStaged keeps libostree from merging /etc into what is staged when, at a boot, the /etc of what is booted has something that a boot which lost power has left there,
// whether liveapply-recover.service, which takes that back and lets libostree go on, comes to run or not. What is in /run/liveapply tells that it is no boot.
func holdStaged(root string, left []string) error {
	if len(left) == 0 {
		return nil
	}
	if later, err := exists(root, "run/liveapply"); later || err != nil {
		return err
	}
	for _, dir := range left {
		journals, err := filepath.Glob(filepath.Join(dir, "*/journal.json"))
		if err != nil {
			return err
		}
		if len(journals) == 0 {
			continue
		}
		sysroot, err := ostree.OpenSysroot(root)
		if err != nil {
			return err
		}
		backing, err := filepath.Rel(root, filepath.Dir(dir))
		if err != nil {
			return err
		}
		deployment := filepath.Join(filepath.Dir(filepath.Dir(backing)), "deploy", filepath.Base(backing))
		if booted, err := sysroot.IsBooted(deployment); !booted || err != nil {
			continue // or it is no more
		}
		if err := os.MkdirAll(filepath.Join(root, "run/liveapply/nothing-staged"), 0o755); err != nil { // see finalize-staged.conf
			return fmt.Errorf("keeping the changes of /etc out of the next deployment: %w", err)
		}
		return nil
	}
	return nil
}

func exists(root, path string) (bool, error) {
	_, err := os.Lstat(filepath.Join(root, path))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for /%s: %w", path, err)
	}
	return true, nil
}

// recoverAtBoot has liveapply-recover.service started if there is something to recover, as that unit has it.
func recoverAtBoot(root, dir string, left []string) error {
	refs, err := filepath.Glob(filepath.Join(root, "ostree/repo/refs/heads/liveapply/*"))
	if err != nil || len(left)+len(refs) == 0 {
		return err
	}
	return wantAtBoot(dir, filepath.Join(unitDir, "liveapply-recover.service"))
}

// bootTargets are those that a boot ends in. What they want is started once. What sysinit.target wants would be started again with
// every service, which requires that, for it does not stay active; being before sysinit.target is the unit's business.
var bootTargets = []string{"default.target", "rescue.target"}

// wantAtBoot has a unit started at boot.
func wantAtBoot(dir, unit string) error {
	for _, target := range bootTargets {
		if err := want(dir, target, unit); err != nil {
			return err
		}
	}
	return nil
}

// want has a unit started with another one. One that an administrator has masked is not started all the same: systemd takes what the
// link is called, and looks that up in /etc first.
func want(dir, by, unit string) error {
	wants := filepath.Join(dir, by+".wants")
	err := os.MkdirAll(wants, 0o755)
	if err == nil {
		err = os.Symlink(unit, filepath.Join(wants, filepath.Base(unit)))
	}
	if err != nil {
		return fmt.Errorf("having %s started: %w", filepath.Base(unit), err)
	}
	return nil
}

// tell writes an error to the kernel's log, with the priority of sd-daemon(3), or, in a container, to standard error.
func tell(err error) {
	message := fmt.Sprintf("<3>liveapply-generator: %v\n", err)
	kmsg, openErr := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if openErr != nil {
		fmt.Fprint(os.Stderr, message)
		return
	}
	defer kmsg.Close()
	fmt.Fprint(kmsg, message)
}
