// Package deployments keeps what a live commit or overlays have put into /etc out of the deployments that come next: those that are staged are not finalized
// while there is anything of it, and those that are not staged get the administrator's own afterwards.
package deployments

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
)

// `ostree admin deploy` and `ostree admin upgrade` without --stage merge /etc at once, as it is then: with what a live commit or overlays have put there. libostree
// touches /ostree/deploy afterwards, which liveapply-deployments.path waits for while /etc has anything of ours. Such a deployment gets the /etc that the same merge
// would have made of the administrator's own. That is done, too, before each change of /etc and before each way back, for afterwards it is not known any more; and
// at the next boot, if power was lost in between.

// What libostree is making of /etc at that instant is not among the deployments yet. So the lock under which libostree makes deployments is held from before that
// until /etc is what it is to be: each deployment is made of what it was before, and settled then, or of what it is afterwards.

// HoldOff keeps libostree from making deployments until the function that it returns is called. Whoever has libostree's lock may have it for hours, to pull a commit
// for example: longer than holdLimit, nothing is kept waiting.
func HoldOff(ctx context.Context, s *machine.Storage) (end func()) {
	limited, cancel := context.WithTimeout(ctx, holdLimit)
	defer cancel()
	lock, err := s.LockSysroot(limited)
	if err != nil {
		report.Warn("%v: if it is making a deployment now, that may keep what live commits or overlays have in /etc (compare with ostree admin config-diff once it is booted)", err)
		return func() {}
	}
	return lock.Close
}

// SettleAndHoldOff is called before /etc is changed, or taken back: it is HoldOff, and settles what was deployed.
func SettleAndHoldOff(ctx context.Context, s *machine.Storage) (end func()) {
	end = HoldOff(ctx, s)
	if err := Settle(ctx, s, s.Machine.Booted); err != nil {
		report.Warn("a deployment that was made while a commit or overlays were live may have kept what they have in /etc: %v", err)
	}
	return end
}

// holdLimit is longer than libostree takes from the merge of /etc to the end.
const holdLimit = time.Minute

// Settle settles what was deployed while the /etc of a deployment had something of ours in it. The caller has libostree's lock.
func Settle(ctx context.Context, s *machine.Storage, of ostree.Deployment) error {
	since, found, err := changedSince(s, of)
	if err != nil || !found {
		return err
	}
	all, err := s.Machine.Sysroot.Deployments()
	if err != nil {
		return err
	}
	own := filepath.Join(s.Root(), of.BackingPath(), "liveapply", machine.OwnEtcName)
	makeOwn := sync.OnceValue(func() error { return copyOwnEtc(ctx, s, of, own) }) // for the first that needs it
	defer func() {
		if err := beneath.Remove(own); err != nil {
			report.Warn("%v", err)
		}
	}()
	var failed []error
	for _, made := range all {
		if made.Staged || made.OSName != of.OSName || made.ID() == of.ID() {
			continue
		}
		begun, err := birth(filepath.Join(s.Root(), made.Path(), "etc"))
		if errors.Is(err, fs.ErrNotExist) || err == nil && begun.Add(mergeTime).Before(since) {
			continue
		}
		if err == nil {
			err = makeOwn()
		}
		settled := state.Settled{Deployment: made.ID()}
		if err == nil {
			settled.Restored, settled.Kept, err = settleOne(ctx, s, of, filepath.Join(own, "etc"), made)
		}
		if err != nil {
			settled.Failure = err.Error()
			failed = append(failed, fmt.Errorf("deployment %s: %w", made.ID(), err))
		}
		failed = append(failed, s.Machine.State.NoteSettled(settled, func(id string) bool {
			return slices.ContainsFunc(all, func(d ostree.Deployment) bool { return d.ID() == id })
		}))
	}
	return errors.Join(failed...)
}

// mergeTime is how long libostree may take from making a deployment's /etc until it has merged it. One that was merged before anything of ours came stays as it is
// all the same: it has what the administrator's own makes.
const mergeTime = 10 * time.Second

// changedSince tells when something of ours has come into the /etc of a deployment, if anything has.
func changedSince(s *machine.Storage, of ostree.Deployment) (since time.Time, found bool, err error) {
	for _, dirs := range s.EtcDirsOf(of) {
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

// settleOne settles one deployment, which was made of the /etc of another, whose administrator's own is at a path.
func settleOne(ctx context.Context, s *machine.Storage, of ostree.Deployment, own string, made ostree.Deployment) (restored, kept []string, err error) {
	at := func(d ostree.Deployment, path string) string { return filepath.Join(s.Root(), d.Path(), path) }
	result, err := etcmerge.Remerge{
		Defaults: at(of, machine.EtcTree), Merged: at(of, "etc"), Own: own, New: at(made, machine.EtcTree), Etc: at(made, "etc"),
	}.Do(ctx)
	if err != nil {
		return nil, nil, err
	}
	t := &state.Transaction{From: of.Commit, Target: made.Commit}
	for _, path := range result.Kept {
		report.Announce(t, report.MessageKept, fmt.Sprintf("/etc/%s of deployment %s is neither as libostree has merged it nor the administrator's own, and stays as it is", path, made.ID()),
			map[string]string{"LIVEAPPLY_PATH": filepath.Join("/", made.Path(), "etc", path)})
	}
	if len(result.Restored) > 0 {
		report.Announce(t, report.MessageSettled, fmt.Sprintf("Deployment %s, which was made while a commit or overlays were live, has the administrator's own /etc now: %s",
			made.ID(), report.Abbreviated(result.Restored)), nil)
	}
	return result.Restored, result.Kept, nil
}

// copyOwnEtc makes that of a deployment: it copies /etc and the journals, and takes everything back there.
func copyOwnEtc(ctx context.Context, s *machine.Storage, of ostree.Deployment, dir string) error {
	if err := beneath.Remove(dir); err != nil { // of a run that was killed
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	dirs := s.EtcDirsOf(of)
	var copied [2]etcmerge.Dirs
	for i := range dirs {
		copied[i] = etcmerge.Dirs{Etc: filepath.Join(dir, "etc"), Store: filepath.Join(dir, "journal-"+filepath.Base(dirs[i].Store))}
		if _, err := os.Lstat(dirs[i].Store); err == nil {
			if err := copyAll(ctx, s, dirs[i].Store, copied[i].Store); err != nil {
				return err
			}
		}
	}
	if err := copyAll(ctx, s, dirs[0].Etc, copied[0].Etc); err != nil {
		return err
	}
	if _, err := etcmerge.Put(ctx, copied[1], nil); err != nil {
		return err
	}
	_, err := etcmerge.Reset(ctx, copied[0])
	return err
}

// copyAll copies a directory of the view with all that is in it, and all that belongs to that: cp(1) knows best.
func copyAll(ctx context.Context, s *machine.Storage, from, to string) error {
	inherited := func(path string) string { return "/proc/self/fd/3" + strings.TrimPrefix(path, s.Root()) }
	cp := exec.CommandContext(ctx, "cp", "--archive", "--one-file-system", inherited(from), inherited(to))
	cp.ExtraFiles = []*os.File{s.Sysroot}
	output, err := cp.CombinedOutput()
	if err != nil {
		return fmt.Errorf("copying %s: %w: %s", from, err, strings.TrimSpace(string(output)))
	}
	return nil
}

// SettleOthers does it at boot for what an earlier boot, of another deployment, has not come to: the machine may run from one of those now. Once, as what is
// deployed from then on is made of another /etc.
func SettleOthers(ctx context.Context, s *machine.Storage) {
	all, err := s.Machine.Sysroot.Deployments()
	if err != nil {
		report.Warn("%v", err)
		return
	}
	for _, of := range all {
		if of.Booted || of.Staged {
			continue
		}
		mark := filepath.Join(s.Root(), of.BackingPath(), "liveapply", machine.SettledName)
		if _, found, err := changedSince(s, of); err != nil || !found {
			continue
		}
		if _, err := os.Lstat(mark); err == nil {
			continue
		}
		err := Settle(ctx, s, of)
		if err == nil {
			err = os.MkdirAll(mark, 0o700)
		}
		if err != nil {
			report.Warn("a deployment that was made while a commit or overlays were live on another may have kept what they have in /etc: %v", err)
		}
	}
}
