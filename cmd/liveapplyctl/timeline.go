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
		begin := max(0, run.Started.Sub(e.Started))
		length := time.Duration(max(0, run.Seconds) * float64(time.Second))
		isFailure := e.Result == state.RolledBack || e.Result == state.Refused
		t.spans = append(t.spans, span{
			name: run.Name, does: cmp.Or(does[run.Name], run.Name), begin: begin, end: begin + length,
			failed: isFailure && i == len(e.Phases)-1,
		})
		t.length = max(t.length, begin+length)
	}
	return t
}

// switched is when /usr has changed; false if it did not come to that.
func (t timeline) switched() (when time.Duration, ok bool) {
	i := slices.IndexFunc(t.spans, func(s span) bool { return s.name == "mount" && s.end > s.begin })
	if i < 0 {
		return 0, false
	}
	return t.spans[i].end, true
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
