package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/auto"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
)

const statusDetails = `With --json it prints the stamp, also when nothing is applied, and the stack of /usr (liveapplyctl(1) describes the fields). A system that was not booted from
OSTree has only the stack.`

// statusFacts are what status tells programs.
type statusFacts struct {
	*state.Stamp                    // nil without OSTree
	Stack        []machine.UsrLayer `json:"stack"` // what /usr shows, from top to bottom
}

func statusCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	asJSON := flags.Bool("json", false, "print the stamp and the stack of /usr as JSON")
	return func(ctx context.Context, _ []string) error {
		m, err := machine.OpenAnywhere()
		if err != nil {
			return err
		}
		stack, err := m.UsrStack()
		if err != nil {
			return err
		}
		var stamp *state.Stamp
		if m.IsOSTree() {
			if stamp, err = m.Status(); err != nil {
				return err
			}
		}
		if *asJSON {
			return json.NewEncoder(os.Stdout).Encode(statusFacts{stamp, stack})
		}
		if stamp == nil {
			return printStack(openScreen(os.Stdout), stack)
		}
		shown, err := lookAround(ctx, m, stamp)
		if err != nil {
			return err
		}
		shown.stack = stack
		if stamp.Phase != "" {
			shown.doing = doing(ctx, m, stamp)
		}
		return shown.print(openScreen(os.Stdout), time.Now())
	}
}

// situation is what status shows.
type situation struct {
	stamp *state.Stamp
	next  ostree.Deployment // that the machine will boot
	last  *state.Entry      // of the history; nil if there is none
	about map[ostree.Checksum]about
	stack []machine.UsrLayer // of /usr
	doing string             // what the phase under way says of itself; empty if there is none, or it says nothing
	waits string             // why what is staged is not applied without a person
	slot  string             // of the fleet: who waits for one, or holds one
	// settled are the deployments that were made while /etc was not the administrator's own.
	settled []state.Settled
	// updateFailed tells that the last attempt to fetch an update has.
	updateFailed bool
}

// doing asks the unit of the phase under way what it does. Which unit that is, only root can know for sure.
func doing(ctx context.Context, m *machine.Machine, stamp *state.Stamp) string {
	request := stamp.Target.String()
	if t, err := m.State.Transaction(); err == nil && t != nil {
		request = t.Request
	} else if stamp.Target == stamp.Booted {
		request = state.ResetRequest
	}
	manager, err := systemd.ConnectToLook(ctx)
	if err != nil {
		return ""
	}
	defer manager.Close()
	text, err := manager.StatusText(ctx, systemd.PhaseUnit(request, stamp.Phase))
	if err != nil {
		return ""
	}
	return text
}

// about is what a commit says of itself.
type about struct {
	version string
	made    time.Time
}

func lookAround(ctx context.Context, m *machine.Machine, stamp *state.Stamp) (*situation, error) {
	s := &situation{stamp: stamp, about: map[ostree.Checksum]about{}, waits: whyNotAutomatic(ctx, m)}
	var err error
	if s.updateFailed, err = systemd.HasFailed(ctx, updateUnit); err != nil {
		return nil, err
	}
	if s.slot, err = systemd.FleetLockStatus(ctx); err != nil {
		return nil, err
	}
	if s.next, err = m.NextBoot(); err != nil {
		return nil, err
	}
	if s.last, err = m.State.LastEntry(); err != nil {
		return nil, err
	}
	if s.settled, err = settled(m); err != nil {
		return nil, err
	}
	repo, err := ostree.OpenRepo("/sysroot/ostree/repo")
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	shown := []ostree.Checksum{stamp.Booted, stamp.Live, s.next.Commit}
	if stamp.Partial != nil {
		shown = append(shown, stamp.Partial.Of)
	}
	for _, commit := range shown {
		if s.about[commit], err = aboutCommit(repo, commit); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// updateUnit fetches updates.
const updateUnit = "liveapply-update.service"

// whyNotAutomatic says why what is staged is not applied without a person, or was not yet; "" if it is, if nothing is staged, or if whoever asks may not know.
func whyNotAutomatic(ctx context.Context, m *machine.Machine) string {
	decision, err := auto.Decide(ctx, m, time.Now())
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return err.Error()
	}
	return cmp.Or(decision.Why, decision.Before)
}

// aboutCommit reads a commit, which may be gone from the repo, or be closed to the user who asks.
func aboutCommit(repo *ostree.Repo, checksum ostree.Checksum) (about, error) {
	commit, err := repo.Commit(checksum)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return about{}, nil
	}
	if err != nil {
		return about{}, err
	}
	known := about{made: commit.Timestamp}
	version, found, err := commit.Metadata.Lookup("version")
	if err == nil && found {
		known.version, err = version.Text()
	}
	return known, err
}

// lines names a commit, and what is known of it.
func (s *situation) lines(commit ostree.Checksum) []string {
	known := s.about[commit]
	if known.made.IsZero() {
		return []string{commit.String()}
	}
	made := "of " + known.made.Local().Format(time.DateTime)
	if known.version != "" {
		made = "version " + printable(known.version) + ", " + made
	}
	return []string{commit.String(), made}
}

// liveLines names the live commit; if it is partial, the one that it was made of, which people know.
func (s *situation) liveLines() []string {
	if part := s.stamp.Partial; part != nil {
		return append(partOf(s.stamp.Live, part), s.lines(part.Of)[1:]...)
	}
	return s.lines(s.stamp.Live)
}

func (s *situation) print(out screen, now time.Time) error {
	var text strings.Builder
	mark, heading := s.heading(out)
	fmt.Fprintf(&text, "%s %s\n", mark, out.style(bold, heading))
	out.printFields(&text, s.fields(now))
	_, err := fmt.Fprint(out, text.String())
	return err
}

func (s *situation) heading(out screen) (mark, heading string) {
	switch {
	case s.stamp.Phase != "":
		return out.style(yellow, out.marks.live), "A transaction is under way"
	case s.stamp.IsApplied():
		return out.style(green, out.marks.live), "A commit is live"
	}
	return out.marks.booted, "The booted tree is live"
}

func (s *situation) fields(now time.Time) []field {
	stamp := s.stamp
	fields := []field{{"Booted", plain, s.lines(stamp.Booted)}}
	if stamp.IsApplied() {
		fields = append(fields, field{"Live", green, s.liveLines()})
		if !stamp.Applied.IsZero() {
			applied := stamp.Applied.Local().Format(time.DateTime) + ", " + ago(now.Sub(stamp.Applied))
			fields = append(fields, field{"Applied", plain, []string{applied}})
		}
		if stamp.Previous != stamp.Booted && stamp.Previous != stamp.Live {
			fields = append(fields, field{"Previous", dim, []string{stamp.Previous.String()}})
		}
	}
	fields = append(fields, stackFields(s.stack)...)
	if stamp.Phase != "" {
		fields = append(fields, field{"Under way", yellow, s.underWay()})
	} else {
		fields = append(fields, field{"Next boot", plain, s.nextBoot()})
	}
	if s.waits != "" && stamp.Phase == "" {
		fields = append(fields, field{"Stays staged", yellow, []string{printable(s.waits)}})
	}
	for _, one := range s.settled {
		fields = append(fields, settledField(one))
	}
	if s.slot != "" {
		fields = append(fields, field{"Fleet", yellow, []string{printable(s.slot)}})
	}
	if s.updateFailed {
		fields = append(fields, field{"Updates", red, []string{"the last attempt failed, see systemctl status " + updateUnit}})
	}
	if len(stamp.RebootRequired) > 0 {
		fields = append(fields, field{"Reboot for", yellow, []string{strings.Join(stamp.RebootRequired, ", ")}})
	}
	if s.last != nil && s.last.Reason != "" && stamp.Phase == "" {
		failure := fmt.Sprintf("%s, of %s: %s", s.last.Result, s.last.Started.Local().Format(time.DateTime), printable(s.last.Reason))
		fields = append(fields, field{"Last failure", red, []string{failure}})
	}
	return fields
}

// stackFields tell of what /usr shows if there are overlays; without them, what is booted and live says it.
func stackFields(stack []machine.UsrLayer) []field {
	overlays := slices.DeleteFunc(slices.Clone(stack), func(l machine.UsrLayer) bool { return l.Name == "" })
	if len(overlays) == 0 {
		return nil
	}
	fields := []field{{"/usr", plain, stackLines(stack)}}
	for _, l := range overlays {
		if len(l.Stale) > 0 {
			fields = append(fields, field{"Stale", yellow, []string{printable(l.Name + ": " + strings.Join(l.Stale, ", "))}})
		}
	}
	return fields
}

// stackLines name the layers of /usr, the topmost first.
func stackLines(stack []machine.UsrLayer) []string {
	var lines []string
	for _, l := range stack {
		switch l.Kind {
		case "live":
			lines = append(lines, "the live commit")
		case "booted":
			lines = append(lines, "the booted commit")
		case "base":
			lines = append(lines, "what the system has")
		default:
			line := l.Kind + " " + l.Name
			if l.Writable {
				line += " (writable)"
			}
			lines = append(lines, line)
		}
	}
	return lines
}

// printStack is what there is to say where no commit can be applied.
func printStack(out screen, stack []machine.UsrLayer) error {
	var text strings.Builder
	fmt.Fprintf(&text, "%s %s\n", out.marks.booted, out.style(bold, "This system was not booted from OSTree"))
	fields := stackFields(stack)
	if fields == nil {
		fields = []field{{"/usr", plain, stackLines(stack)}}
	}
	out.printFields(&text, fields)
	_, err := fmt.Fprint(out, text.String())
	return err
}

func (s *situation) underWay() []string {
	stamp := s.stamp
	lines := []string{stamp.Phase + ", back to the booted tree"}
	if stamp.Target != stamp.Booted {
		lines[0] = fmt.Sprintf("%s (phase %d of %d), to %s", stamp.Phase, slices.Index(applyPhases, stamp.Phase)+1, len(applyPhases), stamp.Target)
	}
	if s.doing != "" {
		lines = append(lines, printable(s.doing))
	}
	return lines
}

func (s *situation) nextBoot() []string {
	switch next := s.next.Commit; {
	case s.next.Locked:
		return append(s.lines(next), "(once its finalization is unlocked, see ostree admin lock-finalization)")
	case next == s.stamp.Live && s.stamp.IsApplied():
		return []string{"into the live commit"}
	case s.stamp.Partial != nil && next == s.stamp.Partial.Of:
		return []string{"into the commit of which a part is live"}
	case s.stamp.Transient && next == s.stamp.Booted:
		return []string{"into the booted commit (the live one was applied as transient)"}
	case s.stamp.Transient:
		return append(s.lines(next), "(the live one was applied as transient)")
	case next == s.stamp.Booted:
		return []string{"into the booted commit"}
	}
	return append(s.lines(s.next.Commit), "(liveapplyctl apply makes it live now)")
}

// ago says how long something is past, roughly.
func ago(d time.Duration) string {
	switch {
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}

// settled lists those of the deployments that are there, and of the one that is booted, only what is wrong with it.
func settled(m *machine.Machine) ([]state.Settled, error) {
	all, err := m.State.Settled()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	deployments, err := m.Sysroot.Deployments()
	return slices.DeleteFunc(all, func(one state.Settled) bool {
		i := slices.IndexFunc(deployments, func(d ostree.Deployment) bool { return d.ID() == one.Deployment })
		return i < 0 || deployments[i].Booted && one.Failure == "" && len(one.Kept) == 0
	}), err
}

// settledField says what has become of the /etc of a deployment that was not staged.
func settledField(one state.Settled) field {
	id := printable(one.Deployment[:min(shortCommit, len(one.Deployment))])
	switch {
	case one.Failure != "":
		return field{"Deployment", red, []string{fmt.Sprintf("%s was made while /etc was not the administrator's own, and may have kept what was in it: %s", id, printable(one.Failure))}}
	case len(one.Kept) > 0:
		return field{"Deployment", yellow, []string{fmt.Sprintf("%s has the administrator's own /etc, but for what was changed in it since: %s", id, printable(strings.Join(one.Kept, ", ")))}}
	}
	return field{"Deployment", plain, []string{fmt.Sprintf("%s, which was made while a commit or overlays were live, has the administrator's own /etc", id)}}
}
