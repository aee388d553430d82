package phase

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/state"
)

// `ostree admin deploy` and `ostree admin upgrade` without --stage merge /etc at once, as it is then: with what a live commit or overlays have put there. libostree
// touches /ostree/deploy afterwards, which liveapply-deployments.path waits for while /etc has anything of ours. Such a deployment gets the /etc that the same merge
// would have made of the administrator's own. That is done, too, before each change of /etc and before each way back, for afterwards it is not known any more; and
// at the next boot, if power was lost in between.

// Deployments does it now.
func (m *Machine) Deployments(ctx context.Context, _ string) error {
	if err := m.acquire(ctx); err != nil {
		return err
	}
	storage, err := m.openStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	return storage.settleDeployments(ctx, m.Booted)
}

// settleDeploymentsOrTell keeps nothing else from going on.
func (s *storage) settleDeploymentsOrTell(ctx context.Context) {
	if err := s.settleDeployments(ctx, s.machine.Booted); err != nil {
		warn("a deployment that was made while a commit or overlays were live may have kept what they have in /etc: %v", err)
	}
}

// settledName is a mark beside the journals: what was deployed meanwhile has been settled when this deployment was not booted any more.
const settledName = "settled"

// settleDeployments settles what was deployed while the /etc of a deployment had something of ours in it.
func (s *storage) settleDeployments(ctx context.Context, of ostree.Deployment) error {
	since, found, err := s.changedSince(of)
	if err != nil || !found {
		return err
	}
	all, err := s.machine.Sysroot.Deployments()
	if err != nil {
		return err
	}
	own := filepath.Join(s.root(), of.BackingPath(), "liveapply", ownEtcName)
	makeOwn := sync.OnceValue(func() error { return s.copyOwnEtc(ctx, of, own) }) // for the first that needs it
	defer func() {
		if err := beneath.Remove(own); err != nil {
			warn("%v", err)
		}
	}()
	var failed []error
	for _, made := range all {
		if made.Staged || made.OSName != of.OSName || made.ID() == of.ID() {
			continue
		}
		begun, err := birth(filepath.Join(s.root(), made.Path()))
		if errors.Is(err, fs.ErrNotExist) || err == nil && begun.Before(since) {
			continue
		}
		if err == nil {
			err = makeOwn()
		}
		if err == nil {
			err = s.settle(ctx, of, filepath.Join(own, "etc"), made)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("deployment %s: %w", made.ID(), err), s.machine.State.NoteSettled(state.Settled{Deployment: made.ID(), Failure: err.Error()}))
		}
	}
	return errors.Join(failed...)
}

// changedSince tells when something of ours has come into the /etc of a deployment, if anything has.
func (s *storage) changedSince(of ostree.Deployment) (since time.Time, found bool, err error) {
	for _, dirs := range s.etcDirsOf(of) {
		pending, err := etcmerge.Pending(dirs)
		if err != nil {
			return since, false, err
		}
		if !pending {
			continue
		}
		begun, err := birth(dirs.Store)
		if err != nil {
			return since, false, err
		}
		if !found || begun.Before(since) {
			since, found = begun, true
		}
	}
	return since, found, nil
}

// birth is when a file was made; on a file system that does not know, when it was changed last.
func birth(path string) (time.Time, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME|unix.STATX_CTIME, &st)
	if err != nil {
		return time.Time{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	when := st.Btime
	if st.Mask&unix.STATX_BTIME == 0 {
		when = st.Ctime
	}
	return time.Unix(when.Sec, int64(when.Nsec)), nil
}

// settle settles one deployment, which was made of the /etc of another, whose administrator's own is at a path.
func (s *storage) settle(ctx context.Context, of ostree.Deployment, own string, made ostree.Deployment) error {
	at := func(d ostree.Deployment, path string) string { return filepath.Join(s.root(), d.Path(), path) }
	result, err := etcmerge.Remerge{
		Defaults: at(of, etcTree), Merged: at(of, "etc"), Own: own, New: at(made, etcTree), Etc: at(made, "etc"),
	}.Do(ctx)
	if err != nil {
		return err
	}
	t := &state.Transaction{From: of.Commit, Target: made.Commit}
	for _, path := range result.Kept {
		announce(t, messageKept, fmt.Sprintf("/etc/%s of deployment %s is neither as libostree has merged it nor the administrator's own, and stays as it is", path, made.ID()),
			map[string]string{"LIVEAPPLY_PATH": filepath.Join("/", made.Path(), "etc", path)})
	}
	if len(result.Restored) > 0 {
		announce(t, messageSettled, fmt.Sprintf("Deployment %s, which was made while a commit or overlays were live, has the administrator's own /etc now: %s",
			made.ID(), abbreviated(result.Restored)), nil)
	}
	if len(result.Restored)+len(result.Kept) == 0 {
		return nil
	}
	return s.machine.State.NoteSettled(state.Settled{Deployment: made.ID(), Restored: result.Restored, Kept: result.Kept})
}

// ownEtcName is the directory, beside the journals, of a copy of /etc as it is without anything of ours.
const ownEtcName = "own-etc"

// copyOwnEtc makes that of a deployment: it copies /etc and the journals, and takes everything back there.
func (s *storage) copyOwnEtc(ctx context.Context, of ostree.Deployment, dir string) error {
	if err := beneath.Remove(dir); err != nil { // of a run that was killed
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	dirs := s.etcDirsOf(of)
	var copied [2]etcmerge.Dirs
	for i := range dirs {
		copied[i] = etcmerge.Dirs{Etc: filepath.Join(dir, "etc"), Store: filepath.Join(dir, "journal-"+filepath.Base(dirs[i].Store))}
		if _, err := os.Lstat(dirs[i].Store); err == nil {
			if err := s.copyAll(ctx, dirs[i].Store, copied[i].Store); err != nil {
				return err
			}
		}
	}
	if err := s.copyAll(ctx, dirs[0].Etc, copied[0].Etc); err != nil {
		return err
	}
	if _, err := etcmerge.Put(ctx, copied[1], nil); err != nil {
		return err
	}
	_, err := etcmerge.Reset(ctx, copied[0])
	return err
}

// copyAll copies a directory of the view with all that is in it, and all that belongs to that: cp(1) knows best.
func (s *storage) copyAll(ctx context.Context, from, to string) error {
	inherited := func(path string) string { return "/proc/self/fd/3" + strings.TrimPrefix(path, s.root()) }
	cp := exec.CommandContext(ctx, "cp", "--archive", "--one-file-system", inherited(from), inherited(to))
	cp.ExtraFiles = []*os.File{s.sysroot}
	output, err := cp.CombinedOutput()
	if err != nil {
		return fmt.Errorf("copying %s: %w: %s", from, err, strings.TrimSpace(string(output)))
	}
	return nil
}

// settleOthers does it at boot for what an earlier boot, of another deployment, has not come to: the machine may run from one of those now. Once, as what is
// deployed from then on is made of another /etc.
func (s *storage) settleOthers(ctx context.Context) {
	all, err := s.machine.Sysroot.Deployments()
	if err != nil {
		warn("%v", err)
		return
	}
	for _, of := range all {
		if of.Booted || of.Staged {
			continue
		}
		mark := filepath.Join(s.root(), of.BackingPath(), "liveapply", settledName)
		if _, found, err := s.changedSince(of); err != nil || !found {
			continue
		}
		if _, err := os.Lstat(mark); err == nil {
			continue
		}
		err := s.settleDeployments(ctx, of)
		if err == nil {
			err = os.MkdirAll(mark, 0o700)
		}
		if err != nil {
			warn("a deployment that was made while a commit or overlays were live on another may have kept what they have in /etc: %v", err)
		}
	}
}
