package ostree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/lockfile"
)

// SetRef makes the local ref name (refs/heads/<name>) stand for commit c, as _ostree_repo_write_ref in
// ostree-repo-refs.c does: parents are made, the file is written and synced (unless core.fsync is false) before
// it has a name, and the repo's mtime tells that a ref was written. Killed or cut off at any instant, the ref is
// as it was or as it shall be. At worst a file stays in the repo's tmp directory, where libostree does not look
// for refs, and where it removes what is older than a day; the next SetRef replaces it.
//
// The repo must have been opened below a mount that is writable, and one process at a time may set refs.
//
// Unlike libostree, SetRef does not write the summary when core.auto-update-summary is set, does not notice
// transactions, and refuses a name under which there is a directory, also when no ref is below it. Like
// libostree it takes no lock, does not ask whether the repo has the commit, and does not sync the directory:
// after a power cut the ref may be as it was.
func (r *Repo) SetRef(name string, c Checksum) error {
	if err := r.setRef(name, c); err != nil {
		return fmt.Errorf("set ref %q in the OSTree repo %s to %s: %w", name, r.name, c, err)
	}
	return nil
}

// LockShared keeps libostree from pruning the repo (ostree_repo_lock_push) until the file is closed.
func (r *Repo) LockShared(ctx context.Context) (*os.File, error) {
	fd, err := unix.Openat(r.fd, ".lock", unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o660)
	if err == nil {
		file := os.NewFile(uintptr(fd), ".lock")
		if err = lockfile.FlockShared(ctx, file); err == nil {
			return file, nil
		}
	}
	return nil, fmt.Errorf("lock the OSTree repo %s: %w", r.name, err)
}

// RemoveRef removes the local ref name, if there is one. The directory that it was in stays, as libostree leaves
// it. The removal is not synced.
func (r *Repo) RemoveRef(name string) error {
	if err := r.removeRef(name); err != nil {
		return fmt.Errorf("remove ref %q in the OSTree repo %s: %w", name, r.name, err)
	}
	return nil
}

func (r *Repo) setRef(name string, c Checksum) error {
	if err := validateRef(name); err != nil {
		return err
	}
	if c.IsZero() {
		return errors.New("there is no commit to set it to")
	}
	dir, base, err := r.openRefDir(name, true)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	file, err := r.writeUnnamed([]byte(c.String()+"\n"), func(fd int) error { return unix.Fchmod(fd, 0o644) }) // others read refs, too
	if err != nil {
		return err
	}
	defer unix.Close(file)
	if err := r.linkOver(file, dir, base); err != nil {
		return err
	}
	return r.touch()
}

func (r *Repo) removeRef(name string) error {
	if err := validateRef(name); err != nil {
		return err
	}
	dir, base, err := r.openRefDir(name, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	err = unix.Unlinkat(dir, base, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unlink it: %w", err)
	}
	return r.touch()
}

// validateRef mirrors ostree_validate_rev, and what write_checksum_file_at refuses besides: a ref that would be
// taken for a checksum.
func validateRef(name string) error {
	if remote, _, ok := parseRefspec(name); !ok || remote != "" {
		return errors.New("it is not a valid name of a local ref")
	}
	if _, err := ParseChecksum(name); err == nil {
		return errors.New("it looks like a checksum")
	}
	return nil
}

// openRefDir opens the directory below refs/heads that holds a ref. It follows no symbolic link below refs/heads:
// an alias is a link to a ref, never to a directory.
func (r *Repo) openRefDir(name string, create bool) (dir int, base string, err error) {
	at := "refs/heads"
	if dir, err = openAt(r.fd, at, unix.O_PATH|unix.O_DIRECTORY); err != nil {
		return -1, "", fmt.Errorf("open %s: %w", at, err)
	}
	fragments := strings.Split(name, "/")
	for _, fragment := range fragments[:len(fragments)-1] {
		at += "/" + fragment
		next, err := openDirIn(dir, fragment, create)
		if err := errors.Join(err, unix.Close(dir)); err != nil {
			return -1, "", fmt.Errorf("open %s: %w", at, err)
		}
		dir = next
	}
	return dir, fragments[len(fragments)-1], nil
}

func openDirIn(dir int, name string, create bool) (int, error) {
	if create { // with the mode that libostree gives, less the umask
		if err := unix.Mkdirat(dir, name, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
			return -1, err
		}
	}
	fd, err := openAt(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOTDIR) {
		return -1, fmt.Errorf("there is a ref of that name: %w", err)
	}
	return fd, err
}

// writeUnnamed writes a file that has no name yet, and whose attributes are set by a function. It is on disk when it gets one: a ref that is
// empty after a power cut would make ostree prune and ostree fsck fail.
func (r *Repo) writeUnnamed(data []byte, setAttributes func(fd int) error) (int, error) {
	fd, err := unix.Openat(r.fd, "tmp", unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, fmt.Errorf("make a file in tmp: %w", err)
	}
	if err := r.fill(fd, data, setAttributes); err != nil {
		return -1, errors.Join(fmt.Errorf("write a file in tmp: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func (r *Repo) fill(fd int, data []byte, setAttributes func(fd int) error) error {
	if err := writeAll(fd, data); err != nil {
		return err
	}
	if err := setAttributes(fd); err != nil {
		return err
	}
	if r.noSync {
		return nil
	}
	return unix.Fsync(fd)
}

// newRef is the name in tmp of a ref on its way over another.
const newRef = "tmp/liveapply-ref"

// linkOver gives a file its name, in the place of another if need be. Only whole files ever have newRef's name.
func (r *Repo) linkOver(file, dir int, name string) error {
	path := fmt.Sprintf("/proc/self/fd/%d", file)
	err := unix.Linkat(unix.AT_FDCWD, path, dir, name, unix.AT_SYMLINK_FOLLOW)
	if err == nil {
		return nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := unix.Unlinkat(r.fd, newRef, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unlink %s: %w", newRef, err)
	}
	if err := unix.Linkat(unix.AT_FDCWD, path, r.fd, newRef, unix.AT_SYMLINK_FOLLOW); err != nil {
		return fmt.Errorf("link %s: %w", newRef, err)
	}
	err = unix.Renameat(r.fd, newRef, dir, name)
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EISDIR) {
		err = fmt.Errorf("there is a directory of that name, for the refs below it: %w", err)
	}
	return errors.Join(fmt.Errorf("rename %s to %s: %w", newRef, name, err), unix.Unlinkat(r.fd, newRef, 0))
}

// touch mirrors _ostree_repo_update_mtime.
func (r *Repo) touch() error {
	now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
	if err := unix.UtimesNanoAt(r.fd, ".", now, 0); err != nil {
		return fmt.Errorf("set the repo's mtime: %w", err)
	}
	return nil
}
