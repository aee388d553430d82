package main

import (
	"cmp"
	"slices"
	"time"

	"github.com/liveapply/liveapply/internal/state"
)

// timeline is a transaction over time.
type timeline struct {
	entry  state.Entry
	length time.Duration // from the beginning to the end of the last phase
	spans  []span
}

// span is what one phase took.
type span struct {
	name, does string
	begin, end time.Duration // since the beginning of the transaction
	failed     bool
	steps      []span
}

// The phases in a few words. A reset does the opposite of what the same phase of an application does.
var (
	applyDoes = map[string]string{
		"prepare":  "builds the layer, and tries it",
		"mount":    "switches /usr",
		"etc":      "merges /etc",
		"tmpfiles": "makes users, completes /var and /run",
		"services": "reloads",
		"record":   "writes down what is live",
	}
	resetDoes = map[string]string{
		"etc":    "takes /etc back",
		"mount":  "switches /usr back",
		"record": "reloads, tidies up",
	}
)

// newTimeline takes the times out of the history. They are of the wall clock, which may have been set meanwhile: nothing ends before it
// begins, and nothing begins before the transaction.
func newTimeline(e state.Entry) timeline {
	t := timeline{entry: e}
	does := applyDoes
	if e.Result == state.Reset {
		does = resetDoes
	}
	for i, run := range e.Phases {
		begin, end := t.within(run.Started, run.Seconds)
		isFailure := e.Result == state.RolledBack || e.Result == state.Refused
		t.spans = append(t.spans, span{
			name: run.Name, does: cmp.Or(does[run.Name], run.Name), begin: begin, end: end,
			failed: isFailure && i == len(e.Phases)-1, steps: t.steps(run),
		})
	}
	return t
}

// steps are those of a phase.
func (t *timeline) steps(run state.PhaseRun) []span {
	var steps []span
	for _, step := range run.Steps {
		begin, end := t.within(step.Started, step.Seconds)
		steps = append(steps, span{name: step.Name, begin: begin, end: end})
	}
	return steps
}

// within places a time, and extends the line up to its end.
func (t *timeline) within(started time.Time, seconds float64) (begin, end time.Duration) {
	begin = max(0, started.Sub(t.entry.Started))
	end = begin + time.Duration(max(0, seconds)*float64(time.Second))
	t.length = max(t.length, end)
	return begin, end
}

func isSwitch(s span) bool { return s.name == state.SwitchStep }

// switched is when /usr has changed; false if it did not come to that.
func (t timeline) switched() (when time.Duration, ok bool) {
	for _, span := range t.spans {
		if i := slices.IndexFunc(span.steps, isSwitch); i >= 0 {
			return span.steps[i].end, true
		}
	}
	return 0, false
}

// ticks are round times from 0 to the end, at most eleven.
func (t timeline) ticks() []time.Duration {
	const most = 10
	step := time.Millisecond
	for i := 0; t.length/step > most; i++ {
		step = step * []time.Duration{2, 5, 10}[i%3] / []time.Duration{1, 2, 5}[i%3] // 1, 2, 5, 10, 20, …
	}
	var ticks []time.Duration
	for at := time.Duration(0); at <= t.length; at += step {
		ticks = append(ticks, at)
	}
	return ticks
}
