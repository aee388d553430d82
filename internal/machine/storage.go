package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/underlay"
)

// What is in <backing>/liveapply of a deployment.
const (
	layersName   = "layers"   // layers, see BuildLayer
	etcName      = "etc"      // the journal of what a live commit has put into /etc
	overlaysName = "overlays" // the journal of what overlays have put there; elsewhere, a directory of stores of overlays
	OwnName      = "own"      // the machine's own programs; also the link to it in /run/liveapply
	OwnEtcName   = "own-etc"  // for an instant, a copy of /etc without anything of ours
	SettledName  = "settled"  // what was deployed meanwhile has been settled when this deployment was not booted any more
)

// Storage is a way to write to /sysroot, which is mounted read-only, and what liveapply keeps there for the booted deployment.
type Storage struct {
	Sysroot *os.File     // a detached, writable view, see underlay.OpenWritable; or /sysroot itself, to look
	Repo    *ostree.Repo // set by OpenRepo
	Dir     string       // <backing>/liveapply, through the view
	Machine *Machine
}

// PhysicalRoot is where that is for this process: in an initrd, the system is not at its place yet.
func (m *Machine) PhysicalRoot() string { return filepath.Join(m.Root, PhysicalRoot) }

// PhysicalRoot is where an OSTree machine mounts the filesystem that holds the repo and the deployments.
const PhysicalRoot = "/sysroot"

// OpenStorage gives access to /sysroot. It does not open the repo: the ways back do without it as long as they can.
func (m *Machine) OpenStorage() (*Storage, error) {
	view, err := underlay.OpenWritable(m.PhysicalRoot())
	if err != nil {
		return nil, err
	}
	return m.newStorage(view), nil
}

// ViewStorage is OpenStorage for what only looks.
func (m *Machine) ViewStorage() (*Storage, error) {
	view, err := os.Open(m.PhysicalRoot())
	if err != nil {
		return nil, err
	}
	return m.newStorage(view), nil
}

func (m *Machine) newStorage(view *os.File) *Storage {
	s := &Storage{Sysroot: view, Machine: m}
	s.Dir = filepath.Join(s.Root(), m.Booted.BackingPath(), "liveapply")
	return s
}

// Root is the path of the view, for this process.
func (s *Storage) Root() string { return fmt.Sprintf("/proc/self/fd/%d", s.Sysroot.Fd()) }

// OpenRepo gives access to the repo.
func (s *Storage) OpenRepo() (err error) {
	s.Repo, err = ostree.OpenRepoAs(filepath.Join(s.Root(), "ostree/repo"), filepath.Join(PhysicalRoot, "ostree/repo"))
	return err
}

// Close gives the view back.
func (s *Storage) Close() {
	if s.Repo != nil {
		s.Repo.Close()
	}
	s.Sysroot.Close()
}

// EtcDirs is what package etcmerge works on for the booted deployment and its live commit.
func (s *Storage) EtcDirs() etcmerge.Dirs { return s.EtcDirsOf(s.Machine.Booted)[0] }

// OverlayEtcDirs is the same for what overlays have put there.
func (s *Storage) OverlayEtcDirs() etcmerge.Dirs { return s.EtcDirsOf(s.Machine.Booted)[1] }

// EtcDirsOf are the two for any deployment: its /etc by its path below /sysroot, so that files can be renamed between it and the journals' directories.
func (s *Storage) EtcDirsOf(of ostree.Deployment) [2]etcmerge.Dirs {
	dirs := func(store string) etcmerge.Dirs {
		store = filepath.Join(of.BackingPath(), "liveapply", store)
		return etcmerge.Dirs{
			Etc:       filepath.Join(s.Root(), of.Path(), "etc"),
			Store:     filepath.Join(s.Root(), store),
			StoreName: filepath.Join(PhysicalRoot, store),
		}
	}
	live, overlays := dirs(etcName), dirs(overlaysName)
	overlays.Repair = repairOverlayEtc(overlays.StoreName)
	return [2]etcmerge.Dirs{live, overlays}
}

// UsrTree and EtcTree are where a commit's tree has what becomes /usr and /etc.
const (
	UsrTree = "usr"
	EtcTree = "usr/etc"
)

// Tree returns a directory of a commit, the zero Tree if the commit has none there.
func (s *Storage) Tree(commit ostree.Checksum, path string) (ostree.Tree, error) {
	entry, err := s.Lookup(commit, path)
	return entry.Tree(), err
}

// Lookup returns an entry of a commit, the zero Entry if the commit has none there.
func (s *Storage) Lookup(commit ostree.Checksum, path string) (ostree.Entry, error) {
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

// HasChangesOfEtc tells whether there is anything in /etc to be taken back, or that may be.
func (s *Storage) HasChangesOfEtc() bool {
	for _, dirs := range s.EtcDirsOf(s.Machine.Booted) {
		if pending, err := etcmerge.Pending(dirs); pending || err != nil {
			return true
		}
	}
	return s.IsJournalAbandoned()
}

// AbandonedJournal is where a damaged journal goes, beside its place, until /etc has been taken back without it: by that name, a way back
// that was interrupted is known.
func (s *Storage) AbandonedJournal() string { return s.EtcDirs().Store + DamagedSuffix }

// DamagedSuffix ends its name.
const DamagedSuffix = ".damaged"

// IsJournalAbandoned tells whether there is one there.
func (s *Storage) IsJournalAbandoned() bool {
	_, err := os.Lstat(s.AbandonedJournal())
	return err == nil
}

// SetLiveRef makes the ref name the live commit. With the booted one, which its deployment keeps, there is no ref.
func (s *Storage) SetLiveRef(commit ostree.Checksum) error {
	if s.Repo == nil {
		if err := s.OpenRepo(); err != nil {
			return err
		}
	}
	var err error
	if commit == s.Machine.Booted.Commit {
		err = s.Repo.RemoveRef(liveRef)
	} else {
		err = s.Repo.SetRef(liveRef, commit)
	}
	if err != nil {
		return err
	}
	return s.Repo.RemoveRef(NextRef)
}

// liveRef keeps the objects of the live commit from being pruned, and tells what is live to those who look into the repo.
const liveRef = "liveapply/live"

// NextRef keeps the commit that is about to be live from being pruned: one that was made here, and one that was asked for by its checksum.
const NextRef = "liveapply/next"

// ScratchPrefix begins the names of what a phase has in /run/liveapply for a moment: what tools write, an origin file.
const ScratchPrefix = "scratch-"

// RemoveScratch removes what a phase left of that when it was killed.
func (m *Machine) RemoveScratch() error {
	left, err := filepath.Glob(filepath.Join(m.State.Run, ScratchPrefix+"*"))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("removing what a killed phase left: %w", err)
		}
	}
	return nil
}

// DropAll removes what liveapply keeps for any deployment. Only the journal of /etc outlives that, for a deployment that lost power
// while its /etc was changed and was not booted since: it is taken back when it is.
func (s *Storage) DropAll() error {
	if err := s.SetLiveRef(s.Machine.Booted.Commit); err != nil {
		return err
	}
	deployments, err := s.Machine.Sysroot.Deployments()
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, deployment := range deployments {
		kept[deployment.BackingPath()] = true
	}
	root := s.Root()
	dirs, err := filepath.Glob(filepath.Join(root, "ostree/deploy/*/backing/*/liveapply"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		backing, err := filepath.Rel(root, filepath.Dir(dir))
		if err != nil {
			return err
		}
		leftovers := []string{dir}
		if kept[backing] {
			leftovers = []string{filepath.Join(dir, layersName), filepath.Join(dir, OwnName), filepath.Join(dir, OwnEtcName)}
		}
		for _, leftover := range leftovers {
			if err := beneath.Remove(leftover); err != nil {
				return err
			}
		}
		if err := removeEmpty(dir, filepath.Dir(dir)); err != nil {
			return err
		}
	}
	return s.Tidy()
}

// Tidy removes the directories of the booted deployment that have nothing in them any more.
func (s *Storage) Tidy() error {
	pending, err := etcmerge.Pending(s.EtcDirs())
	if err != nil && !errors.Is(err, etcmerge.ErrDamaged) {
		return err
	}
	if err == nil && !pending { // with a damaged one, it is not known
		for _, dir := range []string{s.EtcDirs().Store, filepath.Join(s.Dir, OwnEtcName), filepath.Join(s.Dir, SettledName)} {
			if err := beneath.Remove(dir); err != nil {
				return err
			}
		}
	}
	return removeEmpty(s.LayersDir(), s.Dir, filepath.Dir(s.Dir))
}

// removeEmpty removes directories in which nothing is any more: <backing>/liveapply, <backing>. libostree has its own files there for deployments with a
// transient root. Their parent stays: libostree makes it when it stages a deployment, and needs it to finalize that.
func removeEmpty(dirs ...string) error {
	for _, dir := range dirs {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("removing what is no longer needed: %w", err)
		}
	}
	return nil
}
