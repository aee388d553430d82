package services

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/liveapply/liveapply/internal/stale"
	"github.com/liveapply/liveapply/internal/systemd"
)

// NeedsRestart is what runs on files of /usr that are no longer there.
type NeedsRestart struct {
	Complete bool       `json:"complete"` // false: the caller may not look at all processes
	Owners   []Outdated `json:"owners"`
}

// Outdated is an owner with processes that run on old files.
type Outdated struct {
	Owner
	Processes []stale.Process `json:"processes"`
}

// FindOutdated looks at all processes of the system. Containers are left alone.
func FindOutdated(ctx context.Context, system stale.System) (NeedsRestart, error) {
	started := startedUnits{ctx: ctx, known: map[string][]string{}}
	defer started.close()
	system.Started = started.commandLine
	found, err := system.Scan(ctx)
	if err != nil {
		return NeedsRestart{}, err
	}
	return NeedsRestart{Complete: found.Complete, Owners: byOwner(found.Processes)}, nil
}

// byOwner collects the processes of each owner: units of the system first, then users', then sessions.
func byOwner(processes []stale.Process) []Outdated {
	owners := []Outdated{}
	for _, process := range processes {
		owner := OwnerOf(process.Cgroup)
		process.Files = withoutReadFiles(owner, process.Files)
		if len(process.Files) == 0 || process.OwnPIDSpace && isContainer(process.Cgroup) {
			continue
		}
		i := slices.IndexFunc(owners, func(o Outdated) bool { return compareOwners(o.Owner, owner) == 0 })
		if i < 0 {
			i = len(owners)
			owners = append(owners, Outdated{Owner: owner})
		}
		owners[i].Processes = append(owners[i].Processes, process)
	}
	slices.SortFunc(owners, func(a, b Outdated) int { return compareOwners(a.Owner, b.Owner) })
	return owners
}

// withoutReadFiles drops what a command line names, if it is none of a service: somebody may have named a file to read it once.
func withoutReadFiles(owner Owner, files []stale.File) []stale.File {
	if strings.HasSuffix(owner.Unit, ".service") {
		return files
	}
	return slices.DeleteFunc(files, func(f stale.File) bool { return f.Reason == stale.Argument })
}

var kindOrder = []OwnerKind{SystemUnit, UserUnit, Session, NoUnit}

func compareOwners(a, b Owner) int {
	return cmp.Or(
		cmp.Compare(slices.Index(kindOrder, a.Kind), slices.Index(kindOrder, b.Kind)),
		cmp.Compare(a.userNumber(), b.userNumber()),
		cmp.Compare(a.Unit, b.Unit),
	)
}

func (o Owner) userNumber() int64 {
	if o.User == nil {
		return -1
	}
	return int64(*o.User)
}

// Units are the units of the system that run on old files, each with the first of these.
func (n NeedsRestart) Units() (units []Stale) {
	for _, owner := range n.Owners {
		if owner.Kind == SystemUnit {
			file := owner.Processes[0].Files[0]
			units = append(units, Stale{Unit: owner.Unit, Why: fmt.Sprintf("it runs on %s (%s)", file.Path, file.Reason)})
		}
	}
	return units
}

// startedUnits are the command lines of units. Systemd is asked when the first one is wanted.
type startedUnits struct {
	ctx     context.Context
	mu      sync.Mutex
	systemd *systemd.Manager
	known   map[string][]string
}

// commandLine is what the unit of a cgroup was started with; nothing if systemd does not tell, or it is not of the system's.
func (s *startedUnits) commandLine(cgroup string) []string {
	owner := OwnerOf(cgroup)
	if owner.Kind != SystemUnit || !strings.HasSuffix(owner.Unit, ".service") {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	words, found := s.known[owner.Unit]
	if !found {
		words = s.ask(owner.Unit)
		s.known[owner.Unit] = words
	}
	return words
}

func (s *startedUnits) ask(unit string) []string {
	if s.systemd == nil {
		manager, err := systemd.ConnectToLook(s.ctx)
		if err != nil {
			return nil
		}
		s.systemd = manager
	}
	words, err := s.systemd.ExecStart(s.ctx, unit)
	if err != nil {
		return nil
	}
	return words
}

func (s *startedUnits) close() {
	if s.systemd != nil {
		s.systemd.Close()
	}
}
