package etcmerge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/ostree"
)

// store is the Store and /etc, open and locked for one operation.
type store struct {
	ctx     context.Context
	dirs    Dirs
	etc     *root
	fd      int // the Store
	saved   int // saved/
	fresh   int // new/
	journal *journal
	staged  int  // how many files were made in new/
	apart   bool // no links and renames between the Store and /etc: they are different mounts, or file systems
}

// errNoStore tells that there is no Store, so nothing was ever changed, or everything was taken back.
var errNoStore = errors.New("there is no journal")

// openStore opens the Store, waits for its lock, reads the journal, and clears away what a killed operation left.
// With create it is made if it does not exist; without, that is errNoStore.
func openStore(ctx context.Context, dirs Dirs, create bool) (*store, error) {
	fd, err := lockStore(ctx, dirs, create)
	if err != nil {
		return nil, err
	}
	s := &store{ctx: ctx, dirs: dirs, fd: fd, saved: -1, fresh: -1}
	if err := s.open(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *store) open() (err error) {
	if s.journal, err = readJournal(s.dirs); err != nil {
		return err
	}
	if s.etc, err = openRoot(s.dirs.Etc, s.dirs.name()); err != nil {
		return err
	}
	if s.apart, err = areApart(s.fd, s.etc.fd); err != nil {
		return fmt.Errorf("compare the mounts of %s and %s: %w", s.dirs.inStore(), s.dirs.name(), err)
	}
	if err := s.openDirs(); err != nil {
		return fmt.Errorf("open the journal's directory %s: %w", s.dirs.inStore(), err)
	}
	return s.clear()
}

// openDirs opens what is in the Store, and makes it at the first use: the journal before saved/, see readJournal.
func (s *store) openDirs() (err error) {
	if _, err := statAt(s.fd, journalName); errors.Is(err, fs.ErrNotExist) {
		if err := s.writeJournal(onlyJournal); err != nil {
			return err
		}
	}
	if s.saved, err = ensureDir(s.fd, savedName); err != nil {
		return err
	}
	s.fresh, err = ensureDir(s.fd, freshName)
	return err
}

func (s *store) close() {
	for _, fd := range []int{s.saved, s.fresh, s.fd} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if s.etc != nil {
		s.etc.close()
	}
}

// lockStore opens the Store and locks it against other operations. Reset removes it: whoever waited meanwhile begins again.
func lockStore(ctx context.Context, dirs Dirs, create bool) (int, error) {
	path := dirs.Store
	for {
		if create {
			if err := unix.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return -1, fmt.Errorf("make the journal's directory %s: %w", dirs.inStore(), err)
			}
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, fs.ErrNotExist) && !create {
			return -1, errNoStore
		}
		if err != nil {
			return -1, fmt.Errorf("open the journal's directory %s: %w", dirs.inStore(), err)
		}
		if err := poll(ctx, func() error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("lock the journal's directory %s: %w", dirs.inStore(), err)
		}
		var held, there unix.Stat_t
		if unix.Fstat(fd, &held) == nil && unix.Stat(path, &there) == nil && held.Ino == there.Ino && held.Dev == there.Dev {
			return fd, nil
		}
		unix.Close(fd)
	}
}

func ensureDir(dir int, name string) (int, error) {
	if err := unix.Mkdirat(dir, name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return -1, err
	}
	return beneath.Open(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
}

// areApart tells whether two directories are on different mounts, between which link(2) and rename(2) do not work, even on
// one file system. Before Linux 5.8 the file system is all that can be asked for.
func areApart(a, b int) (bool, error) {
	var stats [2]unix.Statx_t
	for i, fd := range []int{a, b} {
		if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_MNT_ID, &stats[i]); err != nil {
			return false, err
		}
	}
	return stats[0].Mnt_id != stats[1].Mnt_id || stats[0].Dev_major != stats[1].Dev_major || stats[0].Dev_minor != stats[1].Dev_minor, nil
}

// clear removes what a killed operation left: a journal that did not get its name, all of new/, what the journal does not know in saved/, and
// temporary files in /etc.
func (s *store) clear() error {
	if err := removeAt(s.fd, journalTmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", s.dirs.inStore(journalTmp), err)
	}
	if err := s.removeFrom(s.fresh, freshName, nil); err != nil {
		return err
	}
	if err := s.removeFrom(s.saved, savedName, s.journal.savedNames()); err != nil {
		return err
	}
	if s.journal.Apart {
		for _, section := range []*section{&s.journal.Current, &s.journal.Committed} {
			for _, r := range section.Records {
				_ = s.etc.removeTemporary(r.Path)
			}
		}
	}
	return nil
}

// removeFrom removes everything from a directory of the Store but what is in keep. A directory that is not empty stays: what
// the administrator put into it at the very moment when it was replaced is not ours to delete.
func (s *store) removeFrom(dir int, name string, keep map[string]bool) error {
	fd, err := beneath.Open(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	names, err := namesOf(fd, s.dirs.inStore(name))
	if err != nil {
		return err
	}
	for _, n := range names {
		if keep[n] {
			continue
		}
		if err := removeAt(dir, n); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("remove %s: %w", s.dirs.inStore(name, n), err)
		}
	}
	return nil
}

// removeAt removes a file or an empty directory.
func removeAt(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	}
	return err
}

// nextSaved returns a new name in saved/.
func (s *store) nextSaved() string {
	s.journal.Next++
	return strconv.Itoa(s.journal.Next)
}

// nextFresh returns a new name in new/.
func (s *store) nextFresh() string {
	s.staged++
	return strconv.Itoa(s.staged)
}

// errChanged tells that a path is not what it was a moment ago.
var errChanged = errors.New("it was changed meanwhile")

// save keeps the file or symbolic link at path in saved/, by a hard link: renamed back, it is the inode that it was. A file that cannot be linked
// (other file system, too many links) is copied. p is what is there; if it is not any more, that is errChanged.
func (s *store) save(path string, p present) (string, error) {
	dir, name, err := s.etc.parent(path)
	if err != nil {
		return "", err
	}
	saved := s.nextSaved()
	err = unix.EXDEV
	if !s.apart {
		err = unix.Linkat(dir, name, s.saved, saved, 0)
	}
	switch {
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EMLINK), errors.Is(err, unix.EOPNOTSUPP):
		if err := copyAt(dir, name, s.saved, saved); err != nil {
			return "", err
		}
		now, err := statAt(dir, name)
		if err == nil && now.identity != p.identity {
			err = errChanged
		}
		return saved, err
	case err != nil:
		return "", err
	}
	linked, err := statAt(s.saved, saved)
	if err == nil && linked.identity != p.identity {
		err = errChanged
	}
	return saved, err
}

// saveText writes a file to saved/.
func (s *store) saveText(content []byte, attributes State) (string, error) {
	saved := s.nextSaved()
	_, err := createFile(s.saved, saved, attributes, fromBytes(content))
	return saved, err
}

// readSaved reads an account file from saved/.
func (s *store) readSaved(name string) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	content, err := readSmall(s.saved, name)
	if err != nil {
		return nil, fmt.Errorf("read %s, which the journal names: %w", s.dirs.inStore(savedName, name), err)
	}
	return content, nil
}

// stage makes what a change puts into /etc in new/, with everything that belongs to it. It returns the name there, and the state with the
// checksum of its content.
func (s *store) stage(repo *ostree.Repo, c Change) (string, State, error) {
	name := s.nextFresh()
	state := c.After
	var err error
	switch {
	case state.Type == Directory:
		err = createDir(s.fresh, name, state)
	case c.source != nil:
		err = s.stageFrom(c.source, name, &state)
	case state.Type == Symlink:
		err = stageSymlink(s.fresh, name, repo, c)
	case c.hasText():
		state.Checksum, err = createFile(s.fresh, name, state, fromBytes(c.Text))
	default:
		state.Checksum, err = createFile(s.fresh, name, state, fromObject(repo, c.Object))
	}
	return name, state, err
}

func stageSymlink(dir int, name string, repo *ostree.Repo, c Change) error {
	if err := repo.VerifyFile(c.Object); err != nil {
		return err
	}
	file, err := repo.File(c.Object)
	if err != nil {
		return err
	}
	return createSymlink(dir, name, file.Target, c.After)
}

func fromBytes(content []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	}
}

// smallObject is the size, in bytes, up to which an object is read into memory and verified in one go.
const smallObject = 1 << 20

func fromObject(repo *ostree.Repo, c ostree.Checksum) func(io.Writer) error {
	return func(w io.Writer) error {
		file, err := repo.File(c)
		if err != nil {
			return err
		}
		if file.Size <= smallObject {
			content, err := repo.ReadFile(c, smallObject)
			if err != nil {
				return err
			}
			_, err = w.Write(content)
			return err
		}
		if err := repo.VerifyFile(c); err != nil {
			return err
		}
		object, err := openObject(repo, c)
		if err != nil {
			return err
		}
		defer object.Close()
		_, err = io.Copy(w, object)
		return err
	}
}
