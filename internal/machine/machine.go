// Package machine is the machine as it is: what it was booted from, what /usr shows, what liveapply keeps beside the deployments, what is staged, and which
// overlays there are. It has no order of things; those who change the machine (packages transaction, follow and phase) have that, and the lock.
package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/stale"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/underlay"
)

// Machine is the running system: what it was booted from, and where its state is.
type Machine struct {
	Root    string // of the system: "/", or where an initrd has mounted it
	State   state.Dirs
	Config  config.Dirs
	Sysroot *ostree.Sysroot // nil if it was not booted from OSTree
	Booted  ostree.Deployment
	Usr     underlay.Usr
	Trees   stale.Trees
	Lock    *state.Lock // of a process that changes the machine, once it has it
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
	t, err := m.UnderWay()
	if errors.Is(err, state.ErrDamaged) {
		return false, nil
	}
	if err != nil || t != nil {
		return false, err
	}
	kept, err := os.ReadDir(filepath.Join(PhysicalRoot, m.Booted.BackingPath(), "liveapply"))
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	// The journal of what overlays have put into /etc is no reset's business.
	return err == nil && !slices.ContainsFunc(kept, func(entry os.DirEntry) bool { return entry.Name() != overlaysName }), err
}

// repo opens the repo, to read. A process that writes to it has one of its storage.
func (m *Machine) repo() (*ostree.Repo, error) {
	return ostree.OpenRepo(filepath.Join(m.PhysicalRoot(), "ostree/repo"))
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

// UnderWay returns the transaction under way; nil if there is none. If its file is damaged, or gone while the stamp says that there is
// one, that is state.ErrDamaged: then nobody knows what there is to take back, and all of it has to be.
func (m *Machine) UnderWay() (*state.Transaction, error) {
	t, err := m.State.Transaction()
	if t != nil || err != nil || !m.IsOSTree() {
		return t, err
	}
	stamp, err := m.State.Stamp(m.Booted)
	if err != nil || stamp == nil || stamp.Phase == "" {
		return nil, nil // a damaged stamp says nothing
	}
	// One that has begun meanwhile was written before its stamp.
	if t, err = m.State.Transaction(); t != nil || err != nil {
		return t, err
	}
	return nil, fmt.Errorf("the file of transaction %s is gone: %w", stamp.Transaction, state.ErrDamaged)
}

// initrdRoot is where an initrd mounts the system that it starts, and initrdFlag tells that this is an initrd (systemd's rule).
const (
	initrdRoot = "/sysroot"
	initrdFlag = "/etc/initrd-release"
)

// OpenForUpdates looks at the system that updates images are for: the running one, or in the initrd the one that is about to be started.
func OpenForUpdates() (*Machine, error) {
	if _, err := os.Lstat(initrdFlag); errors.Is(err, os.ErrNotExist) {
		return OpenAnywhereAsRoot()
	}
	m := newMachine(initrdRoot)
	m.Config.Root = "/" // its own kernel command line
	if err := m.lookForOSTree(); err != nil {
		return nil, err
	}
	return m, m.State.Make()
}

// lookForOSTree finds out in an initrd whether the system that is about to be started is a deployment.
func (m *Machine) lookForOSTree() error {
	sysroot, err := ostree.OpenSysroot(m.Root)
	if err == nil {
		sysroot = sysroot.InInitrd()
		m.Booted, err = sysroot.Booted()
	}
	if errors.Is(err, ostree.ErrNotBooted) {
		return nil
	}
	m.Sysroot = sysroot
	return err
}

// InInitrd tells whether the system has yet to be started: no service of it runs, and not all of its filesystems need be mounted.
func (m *Machine) InInitrd() bool { return m.Root != "/" }

// OpenAnywhere looks at the running system, whether it was booted from OSTree or not: overlays do without that.
func OpenAnywhere() (*Machine, error) {
	m, err := Open()
	if err == nil || !errors.Is(err, ostree.ErrNotBooted) {
		return m, err
	}
	return newMachine("/"), nil
}

// IsOSTree tells whether the machine was booted from OSTree.
func (m *Machine) IsOSTree() bool { return m.Sysroot != nil }
