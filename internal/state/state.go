// Package state keeps what liveapply knows between its programs: the stamp that other programs read, the
// transaction under way, the plan that prepare hands to the later phases, and the history.
//
// Every file is replaced by rename, so a reader sees the old or the new content, and each is written after the fact
// that it states. All but the history live below /run and are gone after a reboot, as is everything they speak of.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Dirs are the directories that hold the state; tests give their own.
type Dirs struct {
	Run         string // working files of the transaction, 0700 content
	Deployments string // libostree's state of the deployments of this boot, with the stamp
	Lib         string // what survives a reboot: the history
}

// System is where the state is on a running machine.
var System = Dirs{
	Run:         "/run/liveapply",
	Deployments: "/run/ostree/deployment-state",
	Lib:         "/var/lib/liveapply",
}

// Trees is the directory in which package stale remembers what /usr has shown since the machine was booted.
func (d Dirs) Trees() string { return filepath.Join(d.Run, "trees") }

// Make creates the directories. Those of Run are for root only, but for Run itself: it holds the mounts, and
// `findmnt` of an unprivileged user should not lie about them.
func (d Dirs) Make() error {
	for dir, mode := range map[string]os.FileMode{d.Run: 0o755, d.jobRequests(): 0o755, d.outcomes(): 0o700, d.Lib: 0o755} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return fmt.Errorf("creating a state directory: %w", err)
		}
	}
	return nil
}

// writeJSON replaces the file at path. Nothing is synced: it is in /run.
func writeJSON(path string, mode os.FileMode, value any) error {
	content, err := json.Marshal(value)
	if err == nil {
		err = replace(path, mode, append(content, '\n'))
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// replace writes a file aside and renames it. What a killed writer leaves is overwritten by the next one, or goes with the file.
func replace(path string, mode os.FileMode, content []byte) error {
	file, err := os.OpenFile(aside(path), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Chmod(mode); err != nil {
		return err
	}
	if _, err := file.Write(content); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

func aside(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}

// ErrDamaged tells that a file does not hold what was written to it.
var ErrDamaged = errors.New("the file is damaged")

// damaged says that of a file, and what to do.
func damaged(path string, why error) error {
	return fmt.Errorf("%s: %w (%w): liveapplyctl reset goes back to the booted tree without it", path, ErrDamaged, why)
}

// readJSON fills value from the file at path and tells whether there is such a file. One that is not as it was written is ErrDamaged.
func readJSON(path string, value interface{ check() error }) (bool, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the state: %w", err)
	}
	if err := json.Unmarshal(content, value); err != nil {
		return false, damaged(path, err)
	}
	if err := value.check(); err != nil {
		return false, damaged(path, err)
	}
	return true, nil
}

// remove deletes the file at path, if there is one, and before it what a killed writer of it has left: without the file, nobody would look.
func remove(path string) error {
	for _, name := range []string{aside(path), path} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
