package etcmerge

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/ostree"
)

// fileState tells what a file object makes at a path. A regular file's content is not read: Checksum stays empty.
func fileState(file *ostree.File) State {
	s := State{Type: typeOf(file.Mode), Mode: file.Mode & 0o7777, UID: file.UID, GID: file.GID, Xattrs: xattrsOf(file.Xattrs)}
	if s.Type == Symlink {
		s.Checksum = sha256.Sum256([]byte(file.Target))
	}
	return s
}

func dirState(meta *ostree.Dirmeta) State {
	return State{Type: Directory, Mode: meta.Mode & 0o7777, UID: meta.UID, GID: meta.GID, Xattrs: xattrsOf(meta.Xattrs)}
}

func xattrsOf(xattrs []ostree.Xattr) []Xattr {
	var result []Xattr
	for _, x := range xattrs {
		result = append(result, Xattr{Name: []byte(x.Name), Value: x.Value})
	}
	return result
}

// stateOf tells what an entry of a tree makes at a path, but for a regular file's content.
func stateOf(repo *ostree.Repo, e ostree.Entry) (State, error) {
	switch e.Kind {
	case ostree.KindFile:
		file, err := repo.File(e.Checksum)
		if err != nil {
			return State{}, err
		}
		return fileState(file), nil
	case ostree.KindDirectory:
		meta, err := repo.Dirmeta(e.Meta)
		if err != nil {
			return State{}, err
		}
		return dirState(meta), nil
	}
	return State{}, nil
}

// isDefault tells whether a path is as the default has it, by libostree's rule. It completes p if it has to read the content.
func (m *merge) isDefault(path string, p *present, e ostree.Entry) (bool, error) {
	if e.Kind != ostree.KindFile {
		want, err := stateOf(m.repo, e)
		return err == nil && sameDefault(State{Type: p.Type, Mode: p.Mode, UID: p.UID, GID: p.GID}, want), err
	}
	file, err := m.repo.File(e.Checksum)
	if err != nil {
		return false, err
	}
	want := fileState(file)
	if p.Type != want.Type || p.Mode != want.Mode || p.UID != want.UID || p.GID != want.GID || p.size != file.Size {
		return false, nil
	}
	if err := m.etc.complete(path, p); err != nil {
		return false, err
	}
	if want.Type == Regular {
		if want.Checksum, err = contentChecksum(m.repo, e.Checksum); err != nil {
			return false, err
		}
	}
	if p.Checksum == want.Checksum {
		return true, nil
	}
	// Before a file is taken for the administrator's: is it not the object that is damaged?
	return false, m.repo.VerifyFile(e.Checksum)
}

// contentChecksum returns the SHA-256 of a regular file object's content. The object is not verified.
func contentChecksum(repo *ostree.Repo, c ostree.Checksum) (ostree.Checksum, error) {
	f, err := openObject(repo, c)
	if err != nil {
		return ostree.Checksum{}, err
	}
	defer f.Close()
	sum, err := checksumOf(f)
	if err != nil {
		return sum, fmt.Errorf("read object %s.file of the OSTree repo %s: %w", c, repo.Name(), err)
	}
	return sum, nil
}

func openObject(repo *ostree.Repo, c ostree.Checksum) (*os.File, error) {
	for {
		fd, err := unix.Openat(repo.Fd(), repo.FilePath(c), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open object %s.file of the OSTree repo %s: %w", c, repo.Name(), err)
		}
		return os.NewFile(uintptr(fd), repo.FilePath(c)), nil
	}
}

// touched tells whether the administrator changed an entry of a directory or added one. It is what decides over the directory's own
// mode and owner: libostree copies those along with each such entry (ensure_directory_from_template), and otherwise takes the new default's.
func (m *merge) touched(path string, old ostree.Entry) (bool, error) {
	names, defaults, err := m.compare(path, old)
	if err != nil || hasOther(names, defaults) { // the cheap question first
		return err == nil, err
	}
	for _, name := range names {
		child := filepath.Join(path, name)
		p, err := m.etc.stat(child)
		if err != nil {
			return false, err
		}
		isDefault, err := m.isDefault(child, &p, defaults.Entry(name))
		if err != nil || !isDefault {
			return !isDefault, err
		}
	}
	return false, nil
}

// hasAdded tells whether a directory has an entry that its default has not.
func (m *merge) hasAdded(path string, old ostree.Entry) (bool, error) {
	names, defaults, err := m.compare(path, old)
	return err == nil && hasOther(names, defaults), err
}

// compare returns what a directory has, and what its default has.
func (m *merge) compare(path string, old ostree.Entry) (names []string, defaults *ostree.Dirtree, err error) {
	if defaults, err = m.repo.Dirtree(old.Checksum); err != nil {
		return nil, nil, err
	}
	names, err = m.etc.names(path)
	return names, defaults, err
}

func hasOther(names []string, defaults *ostree.Dirtree) bool {
	return slices.ContainsFunc(names, func(name string) bool { return defaults.Entry(name).Kind == ostree.KindNone })
}

// sameDir tells whether a directory's attributes are all as wanted. What the system labels by itself does not count if
// the target does not say it.
func sameDir(have, want State) bool {
	if have.Type != Directory || have.Mode != want.Mode || have.UID != want.UID || have.GID != want.GID {
		return false
	}
	missing, extra := xattrDifference(have.Xattrs, want.Xattrs)
	return len(missing) == 0 && len(extra) == 0
}

// xattrDifference tells which of want have to be set, and which of have to be removed. Nothing of security.* is removed: that
// is the kernel's, and an object without it says nothing about it.
func xattrDifference(have, want []Xattr) (set, remove []Xattr) {
	values := make(map[string][]byte, len(have))
	for _, x := range have {
		values[string(x.Name)] = x.Value
	}
	for _, x := range want {
		if value, ok := values[string(x.Name)]; !ok || !bytes.Equal(value, x.Value) {
			set = append(set, x)
		}
		delete(values, string(x.Name))
	}
	for _, x := range have {
		if _, ok := values[string(x.Name)]; ok && !bytes.HasPrefix(x.Name, []byte("security.")) {
			remove = append(remove, x)
		}
	}
	return set, remove
}
