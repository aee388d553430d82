// Package auto applies what somebody has staged, without a person, as far as [Auto] of liveapply.conf allows it.
package auto

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
	"github.com/liveapply/liveapply/internal/transaction"
)

// Unit is what runs [Run], by the name under which the history knows it.
const Unit = "liveapply-staged.service"

// Decision is whether a staged deployment is applied. There is nothing to decide if Commit is zero.
type Decision struct {
	Commit ostree.Checksum
	Allow  config.Allow // the policy under which it is applied
	Slot   bool         // a slot of the fleet is to be taken before
	Why    string       // it is not; empty if it is
	Before string       // why it was refused the last time, if that is not held against it
}

// Decide looks at what is staged now. It only reads.
func Decide(ctx context.Context, m *machine.Machine, now time.Time) (Decision, error) {
	commit, locked, err := staged(m)
	if err != nil || commit.IsZero() {
		return Decision{}, err
	}
	c, err := m.Config.LoadAuto()
	if err != nil {
		return Decision{Commit: commit}, err
	}
	entries, err := m.State.Entries()
	if err != nil {
		return Decision{Commit: commit}, err
	}
	d := Decision{Commit: commit}
	allow, ok := c.AutoAllow()
	against, before := verdict(entries, commit)
	switch {
	case !ok:
		d.Why = "applying without a person is switched off (Apply=no in liveapply.conf, or liveapply.auto=no)"
	case locked:
		d.Why = "its finalization is locked (ostree admin lock-finalization)"
	case against != "":
		d.Why = against
	default:
		d.Allow, d.Slot, d.Before = allow, c.Auto.FleetLock != "", before
		d.Why, err = outside(ctx, c.Auto.Windows, now)
	}
	return d, err
}

// staged returns the commit of the staged deployment that there is something to decide about; the zero one if there is none. What liveapply
// itself has staged was asked for by a person, and is live, or about to be.
func staged(m *machine.Machine) (commit ostree.Checksum, locked bool, err error) {
	deployment, found, err := m.Sysroot.Staged()
	if err != nil || !found || deployment.OSName != m.Booted.OSName {
		return ostree.Checksum{}, false, err
	}
	own, err := m.State.Staging()
	if err != nil && !errors.Is(err, state.ErrDamaged) { // then, what is staged is somebody else's
		return ostree.Checksum{}, false, err
	}
	live, err := m.Live()
	if err != nil {
		return ostree.Checksum{}, false, err
	}
	switch deployment.Commit {
	case own.Commit, live, m.Booted.Commit:
		return ostree.Checksum{}, false, nil
	}
	return deployment.Commit, deployment.Locked, nil
}

// verdict says what the history has against applying a commit once more; nothing is "". A person who applies it changes that. What may have passed
// is not held against it, and is what it waited for before.
func verdict(entries []state.Entry, commit ostree.Checksum) (against, before string) {
	last := lastOf(entries, commit)
	switch {
	case last != nil && last.Target == commit && last.Result == state.Applied && last.Partial != nil:
		return "only a part of it was applied before: " + last.Partial.String(), ""
	case last == nil || last.Target == commit && last.Result == state.Applied:
		return "", ""
	case last.Target == commit && last.Passing:
		return "", "it was refused for a reason that may pass, and is tried again: " + last.Reason
	case last.Target == commit:
		return fmt.Sprintf("it was %s before: %s", strings.ReplaceAll(string(last.Result), "-", " "), last.Reason), ""
	}
	return "it was live before, and was left by " + describe(last), ""
}

// lastOf returns the last transaction that made a commit live, or was to, or led from it to another; nil if there is none.
func lastOf(entries []state.Entry, commit ostree.Checksum) *state.Entry {
	for i := len(entries) - 1; i >= 0; i-- {
		if entries[i].Result == state.NotFinalized {
			continue
		}
		led := entries[i].Result == state.Applied || entries[i].Result == state.Reset
		if entries[i].Target == commit || led && entries[i].From == commit {
			return &entries[i]
		}
	}
	return nil
}

func describe(e *state.Entry) string {
	if e.Result == state.Reset {
		return "a reset"
	}
	return "an application of commit " + e.Target.String()
}

// Run applies what is staged, if it is to be, and what is staged meanwhile: systemd watches for that only when this has ended. A commit that is
// refused stays staged, which is no failure; one that had to be rolled back is. One that was refused for a reason that may pass is tried again by a timer, not
// here. Where a slot of the fleet is needed, it is waited for, and held
// until this unit has ended, to which systemd has bound it.
func Run(ctx context.Context, m *machine.Machine) error {
	var tried ostree.Checksum
	var failed error
	holds := false
	for {
		// It is in the history when it has ended, and decides, too: a reset, for example.
		if err := transaction.AwaitUnderWay(ctx, m); err != nil {
			return errors.Join(failed, err)
		}
		d, err := Decide(ctx, m, time.Now())
		if err != nil {
			return errors.Join(failed, err)
		}
		if d.Why != "" {
			fmt.Printf("commit %s stays staged: %s\n", d.Commit, d.Why)
		}
		if d.Commit.IsZero() || d.Why != "" || d.Commit == tried {
			if d.Commit == tried && d.Before != "" {
				fmt.Printf("commit %s stays staged: %s\n", d.Commit, d.Before)
				failed = errors.Join(failed, tryAgain(ctx))
			}
			return failed
		}
		if d.Slot && !holds {
			if err := takeSlot(ctx); err != nil {
				return errors.Join(failed, err)
			}
			holds = true
			continue // after hours, maybe: another commit is staged, or the window has ended
		}
		err = apply(ctx, m, d)
		if errors.Is(err, errUnderWay) {
			report.Status("waiting for whoever applies commit %s already", d.Commit)
			if err := transaction.AwaitTurn(ctx, m); err != nil {
				return errors.Join(failed, err)
			}
			continue // what became of that decides
		}
		tried, failed = d.Commit, err
	}
}

// tryAgain has this run once more after a time, which begins anew if the timer runs already.
func tryAgain(ctx context.Context) error {
	return systemd.With(ctx, func(manager *systemd.Manager) error { return manager.Restart(ctx, systemd.AgainUnit) })
}

// takeSlot waits for a slot of the fleet. If it fails, the server may have given one all the same, and the answer alone was lost.
func takeSlot(ctx context.Context) error {
	manager, err := systemd.Connect(ctx)
	if err != nil {
		return err
	}
	defer manager.Close()
	failure := manager.Run(ctx, systemd.FleetLockUnit)
	if failure == nil {
		return nil
	}
	return errors.Join(failure, manager.Queue(context.WithoutCancel(ctx), systemd.FleetLockReleaseUnit))
}

// errUnderWay tells that somebody else applies the commit just now: then it is for them.
var errUnderWay = errors.New("somebody else applies it")

// apply applies a commit and waits for the end.
func apply(ctx context.Context, m *machine.Machine, d Decision) error {
	manager, err := systemd.Connect(ctx)
	if err != nil {
		return err
	}
	defer manager.Close()
	request := config.Request{Allow: d.Allow, LeaveStaged: true, RequestedBy: Unit}
	begun, err := transaction.TryAsk(ctx, m, manager, d.Commit, request)
	if err != nil {
		return err
	}
	if begun == nil {
		return errUnderWay
	}
	failure := begun.Outcome(ctx)
	if failure == nil {
		return nil
	}
	entries, err := m.State.Entries()
	if err != nil {
		return errors.Join(failure, err)
	}
	if last := lastOf(entries, d.Commit); last == nil || last.Target != d.Commit || last.Result != state.Refused {
		return failure
	}
	// Nothing has changed, and nobody waits for it: no unit has to stay failed until somebody looks.
	return manager.ResetFailed(ctx, systemd.ApplyUnit(d.Commit.String()))
}
