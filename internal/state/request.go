package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/liveapply/liveapply/internal/lockfile"
)

// A request, a drop-in of liveapply.conf, says how the unit that is started with it is to do its work. It belongs to the job of systemd(1) that starts the
// unit, whose number systemd gives once in a boot: no other start of the unit takes it, also not of one whose name leads to the same commit. The
// number is known when the job is there; until the request has it, it lies beside under the unit's name.
//
//	request/job/                flock(2) on it is held by who asks, and by who takes
//	request/job/<number>.conf   is of that job
//	request/<unit>.asking       somebody is about to start the unit with it

// ErrUnclaimed is about a request of which it is not known which job it is for: whoever asked was killed in between.
var ErrUnclaimed = errors.New("whoever asked for this was killed while asking: it is not known what was wanted; ask again")

// Ask starts a unit, by start, which returns the number of its job, with a request, which write puts into a file. Requests of jobs that are not among
// those that jobs returns go: their units did not take them.
func (d Dirs) Ask(ctx context.Context, unit string, write func(path string) error, jobs func() ([]uint32, error), start func() (job uint32, err error)) error {
	lock, err := d.lockRequests(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := d.dropRequests(jobs); err != nil {
		return err
	}
	asking := d.askingPath(unit)
	if err := write(asking); err != nil {
		return fmt.Errorf("leaving a request for %s: %w", unit, err)
	}
	job, err := start()
	if err != nil {
		return errors.Join(err, remove(asking))
	}
	if err := os.Rename(asking, d.jobPath(job)); err != nil {
		return fmt.Errorf("leaving a request for %s: %w", unit, err)
	}
	return nil
}

// TakeRequest hands the request of a unit to read: to be called once, by what the job has started. The path is "" if the unit was started without one. job
// returns the number of the unit's job, 0 if there is none.
func (d Dirs) TakeRequest(ctx context.Context, unit string, job func() (uint32, error), read func(path string) error) error {
	lock, err := d.lockRequests(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	// Nobody is asking just now.
	if found, err := exists(d.askingPath(unit)); err != nil || found {
		return errors.Join(err, remove(d.askingPath(unit)), ErrUnclaimed)
	}
	if !d.HasRequests() {
		return read("") // whatever the job
	}
	number, err := job()
	if err != nil {
		return err
	}
	path := d.jobPath(number)
	if found, err := exists(path); err != nil || !found {
		return errors.Join(err, read(""))
	}
	return errors.Join(read(path), remove(path))
}

// HasRequests tells whether there are any that nobody has taken.
func (d Dirs) HasRequests() bool {
	entries, err := os.ReadDir(d.jobRequests())
	return err != nil || len(entries) > 0
}

func (d Dirs) dropRequests(jobs func() ([]uint32, error)) error {
	entries, err := os.ReadDir(d.jobRequests())
	if err != nil || len(entries) == 0 {
		return err
	}
	known, err := jobs()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		number, err := strconv.ParseUint(strings.TrimSuffix(entry.Name(), requestSuffix), 10, 32)
		if err == nil && slices.Contains(known, uint32(number)) {
			continue
		}
		if err := os.Remove(filepath.Join(d.jobRequests(), entry.Name())); err != nil {
			return fmt.Errorf("dropping a request that nobody took: %w", err)
		}
	}
	return nil
}

func (d Dirs) lockRequests(ctx context.Context) (*os.File, error) {
	lock, err := os.Open(d.jobRequests())
	if err == nil {
		err = lockfile.Flock(ctx, lock, func() {})
	}
	if err != nil {
		return nil, fmt.Errorf("waiting for who is asking now: %w", err)
	}
	return lock, nil
}

const requestSuffix = ".conf"

func (d Dirs) jobPath(job uint32) string {
	return filepath.Join(d.jobRequests(), strconv.FormatUint(uint64(job), 10)+requestSuffix)
}

func (d Dirs) askingPath(unit string) string { return filepath.Join(d.requests(), unit+".asking") }

func (d Dirs) requests() string { return filepath.Join(d.Run, "request") }

func (d Dirs) jobRequests() string { return filepath.Join(d.requests(), "job") }

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
