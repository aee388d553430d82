package etcmerge

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// meanwhile tells whether a call failed because the administrator, or a program, changed the path or the way to it just now, or something is mounted
// there: then it is theirs.
func meanwhile(err error) bool {
	return errors.Is(err, errChanged) || notThere(err) || isMountPoint(err) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY)
}

// temporary is the name under which a file is made next to path when it cannot be renamed from the Store. It ends in "~", so that what reads
// all files of a directory (run-parts(8), systemd, …) leaves it out.
func temporary(path string) string {
	sum := sha256.Sum256([]byte(path))
	return fmt.Sprintf(".liveapply-%x~", sum[:8])
}

// removeTemporary removes what a killed operation left next to path.
func (r *root) removeTemporary(path string) error {
	dir, _, err := r.parent(path)
	if err == nil {
		err = removeAt(dir, temporary(path))
	}
	if errors.Is(err, unix.ENOENT) || notThere(err) {
		return nil
	}
	return err
}

// place is a name in a directory.
type place struct {
	dir  int
	name string
}

// into renames what is at from, in the Store, to path below /etc, with the flags of renameat2(2). With RENAME_EXCHANGE what was at
// path is then at the place that it returns. Where renames from the Store do not work a copy is made next to path first.
func (s *store) into(from place, path string, flags uint) (place, error) {
	dir, name, err := s.etc.parent(path)
	if err != nil {
		return place{}, err
	}
	if !s.apart {
		err = unix.Renameat2(from.dir, from.name, dir, name, flags)
		if !errors.Is(err, unix.EXDEV) { // which project quotas and overlayfs answer, too
			return from, err
		}
	}
	near := place{dir, temporary(path)}
	if err := copyNear(from, near); err != nil {
		return place{}, err
	}
	if err := unix.Renameat2(near.dir, near.name, dir, name, flags); err != nil {
		_ = removeAt(near.dir, near.name)
		return place{}, err
	}
	return near, nil
}

// copyNear copies what is at from to a temporary name, in the place of what a killed operation left there.
func copyNear(from, near place) error {
	if err := removeAt(near.dir, near.name); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	err := copyAt(from.dir, from.name, near.dir, near.name)
	if err == nil {
		err = syncFile(near)
	}
	if err != nil {
		_ = removeAt(near.dir, near.name)
	}
	return err
}

// syncFile waits until a file is on disk, before it gets the name of another: after a power cut an empty file there would look like the
// administrator's. What Apply makes in new/ is synced with the journal.
func syncFile(p place) error {
	now, err := statAt(p.dir, p.name)
	if err != nil || now.Type != Regular {
		return err
	}
	f, err := openRegular(p.dir, p.name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// recheck tells, by errChanged, whether path is not what it was when p was looked at. A directory may have other entries.
func (s *store) recheck(path string, p present) error {
	now, err := s.etc.stat(path)
	if err != nil {
		return err
	}
	if p.Type == Directory && sameAttributes(now.State, p.State) && now.ino == p.ino || now.identity == p.identity {
		return nil
	}
	return errChanged
}

func sameAttributes(a, b State) bool {
	return a.Type == b.Type && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID
}

// replace puts the file or symbolic link at from in place of the one at path: there is no instant without one.
func (s *store) replace(from place, path string, p present) error {
	if err := s.recheck(path, p); err != nil {
		return err
	}
	_, err := s.into(from, path, 0)
	return err
}

// exchange puts a directory in place of a file at path, or the reverse. A directory that is not empty stays: ENOTEMPTY.
func (s *store) exchange(from place, path string, p present) error {
	defer s.etc.forget()
	if err := s.recheck(path, p); err != nil {
		return err
	}
	old, err := s.into(from, path, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		// A file system that cannot do that, or overlayfs with a directory of a lower layer.
		if err := s.remove(path, p); err != nil {
			return err
		}
		_, err = s.into(from, path, unix.RENAME_NOREPLACE)
		return err
	}
	if err != nil {
		return err
	}
	if err = removeExchanged(old, p); err == nil {
		return nil
	}
	dir, name, back := s.etc.parent(path)
	if back == nil {
		back = unix.Renameat2(old.dir, old.name, dir, name, unix.RENAME_EXCHANGE)
	}
	if back != nil {
		return fmt.Errorf("put back %s: %w", s.etc.display(path), back)
	}
	return err
}

// removeExchanged removes what came out of an exchange, if it is what was looked at.
func removeExchanged(old place, p present) error {
	if p.Type == Directory {
		return unix.Unlinkat(old.dir, old.name, unix.AT_REMOVEDIR)
	}
	now, err := statAt(old.dir, old.name)
	if err != nil {
		return err
	}
	if now.identity != p.identity {
		return errChanged
	}
	return unix.Unlinkat(old.dir, old.name, 0)
}

// remove removes a file, a symbolic link or an empty directory.
func (s *store) remove(path string, p present) error {
	if err := s.recheck(path, p); err != nil {
		return err
	}
	dir, name, err := s.etc.parent(path)
	if err != nil {
		return err
	}
	flags := 0
	if p.Type == Directory {
		flags = unix.AT_REMOVEDIR
	}
	return unix.Unlinkat(dir, name, flags)
}

// openSame opens the directory at path that was looked at.
func (s *store) openSame(path string, p present) (int, error) {
	fd, err := s.etc.openDir(path)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && (st.Ino != p.ino || st.Mode != p.mode || st.Uid != p.uid || st.Gid != p.gid) {
		err = errChanged
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// syncEtc waits until all changes in /etc are on disk: one syncfs instead of a fsync of each directory.
func (s *store) syncEtc() error {
	if err := unix.Syncfs(s.etc.fd); err != nil {
		return fmt.Errorf("sync %s: %w", s.dirs.name(), err)
	}
	return nil
}
