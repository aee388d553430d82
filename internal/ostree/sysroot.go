package ostree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/liveapply/liveapply/internal/gvariant"
	"golang.org/x/sys/unix"
)

// ErrNotBooted tells that the system was not booted from an OSTree deployment.
var ErrNotBooted = errors.New("not booted from an OSTree deployment")

// Sysroot reads the deployments of a system, afresh at each call.
type Sysroot struct {
	root string
	run  string // the root directory that has run/
}

// The files that libostree keeps for a sysroot, relative to its root (ostree-sysroot-private.h, otcore.h).
const (
	bootedPath       = "run/ostree-booted"
	stagedPath       = "run/ostree/staged-deployment"
	stagedLockedPath = "run/ostree/staged-deployment-locked" // before libostree 2023.8
	runStatePath     = "run/ostree/deployment-state"
)

// OpenSysroot returns the sysroot whose root directory is at root: "/" on a booted machine, what is the
// argument of ostree admin --sysroot= elsewhere. A root without repo is ErrNotBooted.
func OpenSysroot(root string) (*Sysroot, error) {
	var st unix.Stat_t
	err := unix.Stat(filepath.Join(root, "ostree/repo"), &st)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s is not an OSTree sysroot, it has no ostree/repo", ErrNotBooted, root)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: look for ostree/repo: %w", root, err)
	}
	return &Sysroot{root: root, run: root}, nil
}

// InInitrd returns the sysroot of the system that an initrd has mounted and is about to start: /run is the initrd's until then.
func (s *Sysroot) InInitrd() *Sysroot { return &Sysroot{root: s.root, run: "/"} }

// RepoPath returns where the sysroot's repo is.
func (s *Sysroot) RepoPath() string { return filepath.Join(s.root, "ostree/repo") }

// Deployments returns the deployments as ostree admin status lists them: the staged one, then in boot order,
// the default first. None of them is Booted when the system is not booted from this sysroot.
func (s *Sysroot) Deployments() ([]Deployment, error) {
	deployments, err := s.bootLoaderDeployments()
	if err != nil {
		return nil, err
	}
	booted, err := s.markBooted(deployments)
	if errors.Is(err, ErrNotBooted) {
		return deployments, nil
	}
	if err != nil {
		return nil, err
	}
	staged, ok, err := s.readStaged()
	if err != nil {
		return nil, err
	}
	if ok {
		deployments = append([]Deployment{staged}, deployments...)
	}
	markPending(deployments, booted)
	return deployments, nil
}

// Booted returns the deployment that the machine booted, or ErrNotBooted.
func (s *Sysroot) Booted() (Deployment, error) {
	if _, err := s.rootIdentity(); err != nil {
		return Deployment{}, err
	}
	deployments, err := s.bootLoaderDeployments()
	if err != nil {
		return Deployment{}, err
	}
	return s.markBooted(deployments)
}

// IsBooted tells whether the machine booted the deployment in a directory below the sysroot. Nothing else has to be there or mounted for that.
func (s *Sysroot) IsBooted(path string) (bool, error) {
	booted, err := s.rootIdentity()
	if err != nil {
		return false, err
	}
	is, err := s.identity(path)
	return is == booted && err == nil, err
}

// Staged returns the deployment that libostree will finalize at shutdown, if there is one.
func (s *Sysroot) Staged() (Deployment, bool, error) {
	deployments, err := s.Deployments()
	if err != nil || len(deployments) == 0 || !deployments[0].Staged {
		return Deployment{}, false, err
	}
	return deployments[0], true, nil
}

// Unlocked returns how a deployment is unlocked, by the rules of parse_deployment in ostree-sysroot.c:
// "development" and "transient" by a flag in /run, "hotfix" by its origin, "" if it is not.
func (s *Sysroot) Unlocked(d Deployment) (string, error) {
	for _, state := range []string{"development", "transient"} {
		exists, err := s.exists(filepath.Join(runStatePath, d.ID(), "unlocked-"+state))
		if err != nil {
			return "", fmt.Errorf("deployment %s: is it unlocked: %w", d.ID(), err)
		}
		if exists {
			return state, nil
		}
	}
	origin, err := s.readOrigin(d)
	if err != nil {
		return "", err
	}
	if origin.get("origin", "unlocked") == "hotfix" {
		return "hotfix", nil
	}
	return "", nil
}

// markBooted finds the booted deployment and sets its Booted. It follows libostree in taking a system that
// says it is booted from OSTree, but from none of the deployments, for broken.
func (s *Sysroot) markBooted(deployments []Deployment) (Deployment, error) {
	want, err := s.rootIdentity()
	if err != nil {
		return Deployment{}, err
	}
	for i := range deployments {
		is, err := s.identity(deployments[i].Path())
		if err != nil {
			return Deployment{}, fmt.Errorf("deployment %s: %w", deployments[i].ID(), err)
		}
		if is == want {
			deployments[i].Booted = true
			return deployments[i], nil
		}
	}
	return Deployment{}, fmt.Errorf("/%s exists, but the root file system (device %d, inode %d) is none of the %d deployments in %s: "+
		"compare with ostree admin status", bootedPath, want.device, want.inode, len(deployments), filepath.Join(s.root, "boot/loader/entries"))
}

// markPending sets Pending as ostree_sysroot_query_deployments_for finds it: the first of the booted OS,
// unless that is the booted one.
func markPending(deployments []Deployment, booted Deployment) {
	for i := range deployments {
		if deployments[i].OSName == booted.OSName {
			deployments[i].Pending = !deployments[i].Booted
			return
		}
	}
}

// identity is what a deployment's directory is recognized by.
type identity struct{ device, inode uint64 }

func (s *Sysroot) identity(path string) (identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(s.root, path), &st); err != nil {
		return identity{}, fmt.Errorf("stat %s: %w", filepath.Join(s.root, path), err)
	}
	return identity{device: st.Dev, inode: st.Ino}, nil
}

// rootIdentity returns the identity of the booted deployment. ostree-prepare-root records it where it mounts
// something over the directory (composefs, a transient root), in a GVariant a{sv}; otherwise it is that of
// the root directory.
func (s *Sysroot) rootIdentity() (identity, error) {
	data, err := readFileAt(unix.AT_FDCWD, filepath.Join(s.run, bootedPath), maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return identity{}, fmt.Errorf("%w: there is no /%s", ErrNotBooted, bootedPath)
	}
	if errors.Is(err, fs.ErrPermission) { // an older libostree made it for root alone, and left it empty
		return s.identity("")
	}
	if err != nil {
		return identity{}, fmt.Errorf("read /%s: %w", bootedPath, err)
	}
	recorded, ok, err := backingRoot(data)
	if err != nil {
		return identity{}, fmt.Errorf("read /%s: %w", bootedPath, err)
	}
	if ok {
		return recorded, nil
	}
	return s.identity("")
}

// backingRoot reads backing-root-device-inode, a (tt) in the machine's byte order. An older libostree left
// the file empty.
func backingRoot(data []byte) (identity, bool, error) {
	metadata, err := gvariant.New("a{sv}", data)
	if err != nil {
		return identity{}, false, err
	}
	pair, ok, err := metadata.Lookup("backing-root-device-inode")
	if err != nil || !ok || pair.Type() != "(tt)" {
		return identity{}, false, err
	}
	var members [2]gvariant.Value
	if err := pair.Members(members[:]); err != nil {
		return identity{}, false, err
	}
	var id identity
	if id.device, err = members[0].Uint64(binary.NativeEndian); err != nil {
		return identity{}, false, err
	}
	id.inode, err = members[1].Uint64(binary.NativeEndian)
	return id, err == nil, err
}

func (s *Sysroot) exists(path string) (bool, error) {
	var st unix.Stat_t
	err := unix.Lstat(filepath.Join(s.root, path), &st)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	return err == nil, err
}
