package auto

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/systemd"
)

// outside says what is waited for if a time is in none of the windows; "" if it is in one, or there is none.
func outside(ctx context.Context, windows []config.Window, now time.Time) (string, error) {
	if len(windows) == 0 {
		return "", nil
	}
	var next time.Time
	for _, window := range windows {
		length, err := systemd.TimeSpan(ctx, window.Length)
		if err != nil {
			return "", fmt.Errorf("the window %q: %w", window, err)
		}
		// It is open if it began within its length before now. systemd knows of summer time what there is to know.
		begin, err := nextElapse(ctx, window.Calendar, now.Add(-length))
		if err == nil && begin.After(now) {
			begin, err = nextElapse(ctx, window.Calendar, now)
		}
		if err != nil {
			return "", fmt.Errorf("the window %q: %w", window, err)
		}
		if !begin.IsZero() && !begin.After(now) {
			return "", nil
		}
		if next.IsZero() || !begin.IsZero() && begin.Before(next) {
			next = begin
		}
	}
	if next.IsZero() {
		return "no window begins any more (Window= in liveapply.conf)", nil
	}
	return "it waits for the window that begins at " + next.Local().Format(time.DateTime), nil
}

// nextElapse returns when a calendar expression elapses first after a time; the zero time if never.
func nextElapse(ctx context.Context, calendar string, after time.Time) (time.Time, error) {
	output, err := systemd.Analyze(ctx, "calendar", fmt.Sprintf("--base-time=@%d", after.Unix()), "--", calendar)
	if err != nil {
		return time.Time{}, err
	}
	var elapse string
	for line := range strings.Lines(output) {
		// The second one is there where local time is not UTC.
		if key, value, _ := strings.Cut(strings.TrimSpace(line), ": "); key == "Next elapse" || key == "(in UTC)" {
			elapse = value
		}
	}
	if elapse == "never" {
		return time.Time{}, nil
	}
	if fields := strings.Fields(elapse); len(fields) == 4 { // the last is the time zone
		return time.Parse(time.DateTime, fields[1]+" "+fields[2])
	}
	return time.Time{}, fmt.Errorf("systemd-analyze calendar does not tell when %q elapses: %s", calendar, output)
}
