package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
)

// The phases, in the order in which the units run them.
var (
	applyPhases = []string{"prepare", "mount", "etc", "tmpfiles", "services", "record"}
	resetPhases = []string{"etc", "mount", "record"}
)

// refresh is how often the status of the unit under way is asked for.
const refresh = 100 * time.Millisecond

// showProgress shows the phases of a job until the function that it returns is called with whether all went well.
func showProgress(ctx context.Context, m *machine.Machine, j job, screen screen) (end func(ok bool)) {
	p := &progress{screen: screen, phases: j.phases, now: time.Now}
	ctx, cancel := context.WithCancel(ctx)
	stamps := make(chan state.Stamp)
	go func() {
		defer close(stamps)
		// That the stamp cannot be watched is no reason to fail: the unit does its work all the same.
		_ = m.State.WatchStamp(ctx, m.Booted, func(stamp *state.Stamp) {
			select {
			case stamps <- *stamp:
			case <-ctx.Done():
			}
		})
	}()
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		// A connection of its own, which it renews beside whoever waits for the job. Without one, there are no statuses.
		manager, err := systemd.Connect(ctx)
		if err == nil {
			defer manager.Close()
		}
		p.follow(stamps, j.target, func(phase string) string {
			if err != nil || manager.Renew(ctx) != nil {
				return ""
			}
			text, err := manager.StatusText(ctx, systemd.PhaseUnit(j.request(), phase))
			if err != nil {
				return ""
			}
			return text
		})
	}()
	return func(ok bool) {
		cancel()
		<-shown
		p.end(ok)
	}
}

// progress is the phases below each other on a terminal. The last line, of the one under way, is written again as it comes along.
type progress struct {
	screen screen
	phases []string
	now    func() time.Time

	begun int       // how many phases have begun
	since time.Time // when the last of these did; zero if that was not seen
	line  string    // as it is on the terminal; empty if there is none
}

// follow shows what comes, until there is no more. statusOf asks the unit of a phase for its status.
func (p *progress) follow(stamps <-chan state.Stamp, target ostree.Checksum, statusOf func(phase string) string) {
	ticker := time.NewTicker(refresh)
	defer ticker.Stop()
	for {
		select {
		case stamp, ok := <-stamps:
			if !ok {
				return
			}
			p.see(stamp, target)
		case <-ticker.C:
			if p.begun > 0 {
				p.say(statusOf(p.phases[p.begun-1]))
			}
		}
	}
}

// see takes from the stamp which phase is under way.
func (p *progress) see(stamp state.Stamp, target ostree.Checksum) {
	switch {
	case stamp.Phase == "":
	case stamp.Target == target:
		p.enter(stamp.Phase)
	case p.begun == 0:
		p.draw("waiting for the transaction of another commit to end")
	}
}

// enter begins a phase; those before it are done.
func (p *progress) enter(phase string) {
	i := slices.Index(p.phases, phase)
	for p.begun <= i {
		p.finish(p.screen.style(green, p.screen.marks.done))
		p.begun++
		p.since = time.Time{}
		p.say("")
	}
	if i >= 0 && p.begun == i+1 && p.since.IsZero() {
		p.since = p.now()
	}
}

// say shows what the phase under way does.
func (p *progress) say(status string) {
	p.draw(fmt.Sprintf("  %-9s %s", p.phases[p.begun-1], p.withBar(printable(status))))
}

// barWidth is the length of a bar, in columns.
const barWidth = 24

// withBar puts a bar in front of a status that counts.
func (p *progress) withBar(status string) string {
	share, counted := report.Share(status)
	if !counted {
		return status
	}
	full := int(share * barWidth)
	return strings.Repeat(p.screen.marks.bar, full) + strings.Repeat(p.screen.marks.space, barWidth-full) + " " + status
}

// draw writes the line under way, or writes it again. A terminal that cannot do that gets only the name of each phase.
func (p *progress) draw(line string) {
	line = p.screen.cut(line, p.screen.width-1)
	switch {
	case line == p.line:
		return
	case p.screen.redraws:
		fmt.Fprintf(p.screen, "\r\x1b[K%s", line)
	case p.line == "":
		fmt.Fprintln(p.screen, strings.TrimRight(line, " "))
	}
	p.line = line
}

// finish leaves the line under way, with a mark and how long the phase took.
func (p *progress) finish(mark string) {
	switch {
	case p.line == "":
	case p.begun == 0 && p.screen.redraws:
		fmt.Fprint(p.screen, "\r\x1b[K") // it said what it waits for
	case p.screen.redraws:
		line := fmt.Sprintf("%-9s %s", p.phases[p.begun-1], p.took())
		fmt.Fprintf(p.screen, "\r\x1b[K%s %s\n", mark, strings.TrimRight(line, " "))
	}
	p.line = ""
}

// took says how long the phase under way took. One that came and went between two looks has no time.
func (p *progress) took() string {
	if p.since.IsZero() {
		return ""
	}
	return p.screen.style(dim, seconds(p.now().Sub(p.since)))
}

// end finishes the last phase.
func (p *progress) end(ok bool) {
	if ok && p.begun > 0 {
		p.enter(p.phases[len(p.phases)-1])
		p.finish(p.screen.style(green, p.screen.marks.done))
		return
	}
	p.finish(p.screen.style(red, p.screen.marks.failed))
}

// seconds says how long something took.
func seconds(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
}
