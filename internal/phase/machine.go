// Package phase holds the phases of a transaction, and their ways back. Each file reads like the paragraph on its phase in
// docs/architecture.md; what the steps consist of is in the packages below.
//
// A phase is a process of its own, started by its unit. It takes over from the phase before through the files of package
// state, and can be run again after it was killed at any instruction.
package phase

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/stale"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/underlay"
)

// liveRef keeps the objects of the live commit from being pruned, and tells what is live to those who look into the repo.
const liveRef = "liveapply/live"

// Machine is the running system: what it was booted from, and where its state is.
type Machine struct {
	Root    string // of the system: "/", or where an initrd has mounted it
	State   state.Dirs
	Config  config.Dirs
	Sysroot *ostree.Sysroot // nil if it was not booted from OSTree
	Booted  ostree.Deployment
	Usr     underlay.Usr
	Trees   stale.Trees
	lock    *state.Lock // of a process that changes the machine, once it has it
}

// Open looks at the running system. It fails if that was not booted from OSTree.
func Open() (*Machine, error) {
	sysroot, err := ostree.OpenSysroot("/")
	if err != nil {
		return nil, err
	}
	booted, err := sysroot.Booted()
	if errors.Is(err, ostree.ErrNotBooted) {
		return nil, fmt.Errorf("this system was %w: there is nothing to apply a commit to", err)
	}
	if err != nil {
		return nil, err
	}
	m := newMachine("/")
	m.Sysroot, m.Booted = sysroot, booted
	return m, nil
}

// newMachine is a system of which nothing is known but its root directory.
func newMachine(root string) *Machine {
	configuration := config.System
	configuration.Root = root
	return &Machine{
		Root:   root,
		State:  state.System,
		Config: configuration,
		Usr:    underlay.Usr{Path: filepath.Join(root, "usr"), Private: filepath.Join(state.System.Run, "mnt")},
		Trees:  stale.Trees(state.System.Trees()),
	}
}

// OpenAsRoot is Open for what changes the system.
func OpenAsRoot() (*Machine, error) { return asRoot(Open) }

// OpenAnywhereAsRoot is OpenAnywhere for what changes the system.
func OpenAnywhereAsRoot() (*Machine, error) { return asRoot(OpenAnywhere) }

func asRoot(open func() (*Machine, error)) (*Machine, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("only root can change the running system; start the unit: systemctl start liveapply@COMMIT.service")
	}
	m, err := open()
	if err != nil {
		return nil, err
	}
	return m, m.State.Make()
}

// Live returns the commit that /usr shows. The mount table says it, not the stamp, which may be lost.
func (m *Machine) Live() (ostree.Checksum, error) {
	usr, err := m.Usr.Inspect()
	if err != nil || usr.Live == "" {
		return m.Booted.Commit, err
	}
	return ostree.ParseChecksum(usr.Live)
}

// IsClean tells whether there is nothing that a reset would take back: nothing is live, and nothing was interrupted.
func (m *Machine) IsClean() (bool, error) {
	live, err := m.Live()
	if err != nil || live != m.Booted.Commit {
		return false, err
	}
	t, err := m.transaction()
	if errors.Is(err, state.ErrDamaged) {
		return false, nil
	}
	if err != nil || t != nil {
		return false, err
	}
	kept, err := os.ReadDir(filepath.Join(physicalRoot, m.Booted.BackingPath(), "liveapply"))
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	// The journal of what overlays have put into /etc is no reset's business.
	return err == nil && !slices.ContainsFunc(kept, func(entry os.DirEntry) bool { return entry.Name() != overlaysName }), err
}

// repo opens the repo, to read. A process that writes to it has one of its storage.
func (m *Machine) repo() (*ostree.Repo, error) {
	return ostree.OpenRepo(filepath.Join(m.physicalRoot(), "ostree/repo"))
}

// Resolve finds the commit that a checksum, an abbreviated one, or a ref names.
func (m *Machine) Resolve(rev string) (ostree.Checksum, error) {
	repo, err := m.repo()
	if err != nil {
		return ostree.Checksum{}, err
	}
	defer repo.Close()
	return repo.Resolve(rev)
}

// hasCommit tells whether a commit is in the repo.
func (m *Machine) hasCommit(commit ostree.Checksum) (bool, error) {
	repo, err := m.repo()
	if err != nil {
		return false, err
	}
	defer repo.Close()
	_, err = repo.Commit(commit)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// NextBoot is the deployment that the machine will boot: the staged one, else the first in boot order.
func (m *Machine) NextBoot() (ostree.Deployment, error) {
	deployments, err := m.Sysroot.Deployments()
	if err != nil {
		return ostree.Deployment{}, err
	}
	for _, deployment := range deployments {
		if deployment.Pending {
			return deployment, nil
		}
	}
	return m.Booted, nil
}

// storage is a way to write to /sysroot, which is mounted read-only, and what liveapply keeps there for the booted deployment.
type storage struct {
	sysroot *os.File     // a detached, writable view, see underlay.OpenWritable; or /sysroot itself, to look
	Repo    *ostree.Repo // set by openRepo
	dir     string       // <backing>/liveapply, through the view
	machine *Machine
}

// physicalRoot is where that is for this process: in an initrd, the system is not at its place yet.
func (m *Machine) physicalRoot() string { return filepath.Join(m.Root, physicalRoot) }

// physicalRoot is where an OSTree machine mounts the filesystem that holds the repo and the deployments.
const physicalRoot = "/sysroot"

// openStorage gives access to /sysroot. It does not open the repo: the ways back do without it as long as they can.
func (m *Machine) openStorage() (*storage, error) {
	view, err := underlay.OpenWritable(m.physicalRoot())
	if err != nil {
		return nil, err
	}
	return m.newStorage(view), nil
}

// viewStorage is openStorage for what only looks.
func (m *Machine) viewStorage() (*storage, error) {
	view, err := os.Open(m.physicalRoot())
	if err != nil {
		return nil, err
	}
	return m.newStorage(view), nil
}

func (m *Machine) newStorage(view *os.File) *storage {
	s := &storage{sysroot: view, machine: m}
	s.dir = filepath.Join(s.root(), m.Booted.BackingPath(), "liveapply")
	return s
}

// root is the path of the view, for this process.
func (s *storage) root() string { return fmt.Sprintf("/proc/self/fd/%d", s.sysroot.Fd()) }

// openRepo gives access to the repo.
func (s *storage) openRepo() (err error) {
	s.Repo, err = ostree.OpenRepoAs(filepath.Join(s.root(), "ostree/repo"), filepath.Join(physicalRoot, "ostree/repo"))
	return err
}

// Close gives the view back.
func (s *storage) Close() {
	if s.Repo != nil {
		s.Repo.Close()
	}
	s.sysroot.Close()
}

// etcDirs is what package etcmerge works on for the booted deployment and its live commit.
func (s *storage) etcDirs() etcmerge.Dirs { return s.etcDirsOf(s.machine.Booted)[0] }

// overlayEtcDirs is the same for what overlays have put there.
func (s *storage) overlayEtcDirs() etcmerge.Dirs { return s.etcDirsOf(s.machine.Booted)[1] }

// etcDirsOf are the two for any deployment: its /etc by its path below /sysroot, so that files can be renamed between it and the journals' directories.
func (s *storage) etcDirsOf(of ostree.Deployment) [2]etcmerge.Dirs {
	dirs := func(store string) etcmerge.Dirs {
		store = filepath.Join(of.BackingPath(), "liveapply", store)
		return etcmerge.Dirs{
			Etc:       filepath.Join(s.root(), of.Path(), "etc"),
			Store:     filepath.Join(s.root(), store),
			StoreName: filepath.Join(physicalRoot, store),
		}
	}
	live, overlays := dirs("etc"), dirs(overlaysName)
	overlays.Repair = repairOverlayEtc(overlays.StoreName)
	return [2]etcmerge.Dirs{live, overlays}
}

// usrTree and etcTree are where a commit's tree has what becomes /usr and /etc.
const (
	usrTree = "usr"
	etcTree = "usr/etc"
)

// tree returns a directory of a commit, the zero Tree if the commit has none there.
func (s *storage) tree(commit ostree.Checksum, path string) (ostree.Tree, error) {
	entry, err := s.lookup(commit, path)
	return entry.Tree(), err
}

// lookup returns an entry of a commit, the zero Entry if the commit has none there.
func (s *storage) lookup(commit ostree.Checksum, path string) (ostree.Entry, error) {
	c, err := s.Repo.Commit(commit)
	if err != nil {
		return ostree.Entry{}, err
	}
	entry, err := s.Repo.Lookup(c.Root, path)
	if errors.Is(err, os.ErrNotExist) {
		return ostree.Entry{}, nil
	}
	return entry, err
}

// resume takes a transaction over from the phase before, and says so in the stamp and in the unit's status.
func (m *Machine) resume(ctx context.Context, phase, request string) (*state.Transaction, *state.Plan, error) {
	if err := m.acquire(ctx); err != nil {
		return nil, nil, err
	}
	t, err := m.transaction()
	if err != nil {
		return nil, nil, err
	}
	if t == nil || services.UnitOf(t) != services.ApplyUnit(request) {
		return nil, nil, fmt.Errorf("no transaction for %s is under way: start liveapply@%s.service, which runs all phases", request, request)
	}
	plan, err := m.State.Plan(t)
	if err != nil {
		return nil, nil, err
	}
	return t, plan, m.begin(t, phase)
}

// begin notes in the transaction and in the stamp that a phase starts.
func (m *Machine) begin(t *state.Transaction, phase string) error {
	t.Begin(phase)
	if err := m.lock.Write(t); err != nil {
		return err
	}
	return m.updateStamp(func(stamp *state.Stamp) {
		stamp.Transaction, stamp.Target, stamp.Phase = t.ID, t.Target, phase
	})
}

// end notes that the phase has done its work.
func (m *Machine) end(t *state.Transaction) error {
	t.End()
	return m.lock.Write(t)
}

// Phase is a step of a transaction, as a command of liveapply-helper; request is what the unit's instance names.
type Phase func(ctx context.Context, request string) error
