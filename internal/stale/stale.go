// Package stale finds the processes that run on files of /usr which are no longer what /usr has at their paths.
//
// What a process runs on is what it maps, its program among it (/proc/PID/maps). The kernel keeps such a file for it, and tells its inode
// and the path that it had. Three things are to know about these with overlays on /usr:
//
//   - The inode number of a file is the same in all trees, if it is the same file; the device is another one in each tree. Files of
//     two filesystems can have the same number; the time of the last change tells them apart.
//   - Where a filesystem gives other inode numbers, or a layer has a copy, the content decides.
//   - A tree that is no longer mounted has no place: of its files the kernel tells the path within /usr, "/bin/sleep".
//
// It knows nothing of units: it takes a /proc, and returns processes with their cgroups.
package stale

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Reason says why a process does not run on what /usr has.
type Reason string

// The reasons.
const (
	Replaced Reason = "replaced" // it maps a file, and the path has another one now
	Deleted  Reason = "deleted"  // it maps a file, and the path has none now
	OldTree  Reason = "old tree" // all of its /usr is what was live before: its mount namespace did not follow
	Script   Reason = "script"   // it has a file open that its command line names, and the path has another one now
	Argument Reason = "argument" // its command line names a file, and the path had another one when it was started
)

// File is what a process should no longer use.
type File struct {
	Path   string `json:"path"`
	Reason Reason `json:"reason"`
}

// Process is one that runs on something old.
type Process struct {
	PID         int    `json:"pid"`
	Name        string `json:"name"`
	Files       []File `json:"files"`
	Cgroup      string `json:"-"`
	OwnPIDSpace bool   `json:"-"` // it sees other process numbers than the system, as in a container
}

// System is where processes are looked at. Those with another root directory, as in a container or a chroot, are left alone: what is
// in there is none of this /usr.
type System struct {
	Proc  string // /proc
	Usr   string // /usr
	Trees Trees
	// Started returns the command line that a cgroup's processes were started with, of which they may have made a title. It may be nil,
	// is called by several workers, and returns nothing if it does not know.
	Started func(cgroup string) []string
}

// Found is what a scan found.
type Found struct {
	Processes []Process // by their numbers
	Complete  bool      // false: there are processes that the caller may not look at
}

// Scan looks at all processes. One that ends meanwhile is none.
func (s System) Scan(ctx context.Context) (Found, error) {
	scan, err := s.begin()
	if err != nil {
		return Found{}, fmt.Errorf("looking at the processes: %w", err)
	}
	defer scan.end()
	pids, err := s.processes()
	if err != nil {
		return Found{}, fmt.Errorf("looking at the processes: %w", err)
	}
	found, err := scan.all(ctx, pids)
	if err != nil {
		return Found{}, fmt.Errorf("looking at the processes: %w", err)
	}
	return found, nil
}

// processes lists the numbers of all processes.
func (s System) processes() ([]int, error) {
	dir, err := os.Open(s.Proc)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// scan is one Scan under way.
type scan struct {
	System
	root     identity // of the system
	usr      identity
	links    links
	live     string // the commit that Usr shows, "" if it is not known
	lists    lists
	rootDirs map[string]bool // the directories in /, by their names
	host     *view           // what processes in the caller's mount namespace see
	pidns    string
	denied   atomic.Bool

	mu    sync.Mutex
	views map[string]*view // by mount namespace
}

func (s System) begin() (*scan, error) {
	sc := &scan{System: s, views: map[string]*view{}, lists: lists{trees: s.Trees, loaded: map[string]map[string]string{}}}
	var err error
	if sc.root, err = identify(unix.AT_FDCWD, "/", 0); err != nil {
		return nil, err
	}
	if sc.usr, err = identify(unix.AT_FDCWD, s.Usr, 0); err != nil {
		return nil, err
	}
	if sc.rootDirs, err = directoriesIn("/"); err != nil {
		return nil, err
	}
	if sc.links, err = s.Trees.links(); err != nil {
		return nil, err
	}
	sc.live = sc.links.commitAt(sc.usr)
	if sc.pidns, err = os.Readlink(s.Proc + "/self/ns/pid"); err != nil {
		return nil, err
	}
	mntns, err := os.Readlink(s.Proc + "/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	if sc.host, err = openView("/"); err != nil {
		return nil, err
	}
	sc.views[mntns] = sc.host
	return sc, nil
}

// directoriesIn goes by what a directory says of its entries: what is mounted on one of them is not looked at.
func directoriesIn(path string) (map[string]bool, error) {
	entries, err := os.ReadDir(path)
	found := map[string]bool{}
	for _, entry := range entries {
		if entry.IsDir() {
			found[entry.Name()] = true
		}
	}
	return found, err
}

func (s *scan) end() {
	for _, v := range s.views {
		unix.Close(v.root)
	}
}

// all looks at processes, a few at a time.
func (s *scan) all(ctx context.Context, pids []int) (Found, error) {
	results := make([]*Process, len(pids))
	var next atomic.Int64
	workers, ctx := errgroup.WithContext(ctx)
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() error {
			reader := newReader()
			for i := int(next.Add(1)) - 1; i < len(pids); i = int(next.Add(1)) - 1 {
				if err := ctx.Err(); err != nil {
					return err
				}
				var err error
				if results[i], err = s.look(reader, pids[i]); err != nil {
					return fmt.Errorf("process %d: %w", pids[i], err)
				}
			}
			return nil
		})
	}
	if err := workers.Wait(); err != nil {
		return Found{}, err
	}
	found := Found{Complete: !s.denied.Load()}
	for _, process := range results {
		if process != nil {
			found.Processes = append(found.Processes, *process)
		}
	}
	return found, nil
}

// look returns what is wrong with a process, nil if nothing is.
func (s *scan) look(r *reader, pid int) (*Process, error) {
	p := &candidate{scan: s, reader: r, dir: s.Proc + "/" + strconv.Itoa(pid)}
	files, err := p.files()
	switch {
	case isGone(err):
		return nil, nil
	case err == nil && len(files) > 0:
		var process *Process
		if process, err = p.describe(pid, files); err == nil || isGone(err) {
			return process, nil
		}
	}
	if err != nil { // not for who looks, or on a filesystem that does not answer: nothing is said about this one
		s.denied.Store(true)
	}
	return nil, nil
}

// isGone tells the errors of a process that has ended.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}
