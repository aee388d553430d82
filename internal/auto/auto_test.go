package auto

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/partial"
	"github.com/liveapply/liveapply/internal/state"
)

func checksum(t *testing.T, digit string) ostree.Checksum {
	t.Helper()
	c, err := ostree.ParseChecksum(strings.Repeat(digit, 64))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestVerdictOfTheHistory(t *testing.T) {
	a, b, c := checksum(t, "a"), checksum(t, "b"), checksum(t, "c")
	entry := func(from, target ostree.Checksum, result state.Result) state.Entry {
		return state.Entry{From: from, Target: target, Result: result, Reason: "why"}
	}
	for name, test := range map[string]struct {
		entries []state.Entry
		want    string // about b
	}{
		"no history":                    {nil, ""},
		"others":                        {[]state.Entry{entry(a, c, state.Refused), entry(c, a, state.Reset)}, ""},
		"refused":                       {[]state.Entry{entry(a, b, state.Refused), entry(a, c, state.Applied)}, "it was refused before: why"},
		"rolled back":                   {[]state.Entry{entry(a, b, state.Applied), entry(a, b, state.RolledBack)}, "it was rolled back before: why"},
		"refused, and then by a person": {[]state.Entry{entry(a, b, state.Refused), entry(a, b, state.Applied)}, ""},
		"applied, and another was not":  {[]state.Entry{entry(a, b, state.Applied), entry(b, c, state.Refused), entry(b, c, state.RolledBack)}, ""},
		"reset":                         {[]state.Entry{entry(a, b, state.Applied), entry(b, a, state.Reset)}, "it was live before, and was left by a reset"},
		"left": {[]state.Entry{entry(a, b, state.Applied), entry(b, c, state.Applied)},
			"it was live before, and was left by an application of commit " + c.String()},
		"applied in part": {[]state.Entry{{From: a, Target: b, Result: state.Applied, Partial: &partial.About{Of: b, Without: []string{"nginx"}}}},
			"only a part of it was applied before: without nginx"},
		"left, and back again": {[]state.Entry{entry(b, c, state.Applied), entry(c, b, state.Applied)}, ""},
	} {
		if got, before := verdict(test.entries, b); got != test.want || before != "" {
			t.Errorf("%s: got %q, %q, want %q", name, got, before, test.want)
		}
	}
	passing := entry(a, b, state.Refused)
	passing.Passing = true
	against, before := verdict([]state.Entry{entry(a, b, state.Refused), passing}, b)
	if against != "" || before != "it was refused for a reason that may pass, and is tried again: why" {
		t.Errorf("refused for a reason that may pass: got %q, %q", against, before)
	}
	if against, before = verdict([]state.Entry{passing, entry(a, b, state.Refused)}, b); against != "it was refused before: why" || before != "" {
		t.Errorf("refused for a lasting reason since: got %q, %q", against, before)
	}
}

// systemd-analyze is what decides; this is about what is asked of it, and how its answer is read.
func TestWindows(t *testing.T) {
	weekend := []config.Window{{Calendar: "Sat..Sun 02:00 UTC", Length: "4h"}}
	// 02:30 does not exist there on 2026-03-29, and exists twice on 2026-10-25.
	night := []config.Window{{Calendar: "*-*-* 02:30 Europe/Berlin", Length: "1h30min"}}
	day := []config.Window{{Calendar: "*-*-* 00:00 UTC", Length: "1d"}}
	for _, test := range []struct {
		windows []config.Window
		now     string
		outside bool
	}{
		{nil, "2026-11-20 12:00:00", false},
		{weekend, "2026-11-20 02:00:00", true}, // a Friday
		{weekend, "2026-11-21 01:59:59", true},
		{weekend, "2026-11-21 02:00:00", false},
		{weekend, "2026-11-21 05:59:59", false},
		{weekend, "2026-11-21 06:00:00", true},
		{weekend, "2026-11-22 03:00:00", false},
		{append(night, weekend...), "2026-11-22 03:00:00", false},
		{day, "2026-11-22 00:00:00", false},
		{day, "2026-11-22 23:59:59", false},
		{night, "2026-03-28 01:29:59", true},
		{night, "2026-03-28 01:30:00", false},
		{night, "2026-07-01 00:30:00", false},
		{night, "2026-07-01 02:00:00", true},
		{[]config.Window{{Calendar: "2020-01-01", Length: "4h"}}, "2026-11-21 12:00:00", true},
	} {
		now, err := time.Parse(time.DateTime, test.now)
		if err != nil {
			t.Fatal(err)
		}
		for _, zone := range []string{"UTC", "Europe/Berlin", "America/New_York", "Africa/Abidjan"} {
			t.Setenv("TZ", zone)
			why, err := outside(t.Context(), test.windows, now)
			if err != nil || (why != "") != test.outside {
				t.Errorf("%v at %s, in %s: got %q, %v", test.windows, test.now, zone, why, err)
			}
		}
	}
}

func TestNextWindowIsTold(t *testing.T) {
	windows := []config.Window{{Calendar: "2020-01-01", Length: "4h"}, {Calendar: "Sun 02:00 UTC", Length: "4h"}, {Calendar: "Sat 02:00 UTC", Length: "4h"}}
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	want := "it waits for the window that begins at " + time.Date(2026, 11, 21, 2, 0, 0, 0, time.UTC).Local().Format(time.DateTime)
	if got, err := outside(t.Context(), windows, now); err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if got, err := outside(t.Context(), windows[:1], now); err != nil || !strings.HasPrefix(got, "no window begins any more") {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestBadWindowIsAnError(t *testing.T) {
	for _, window := range []config.Window{{Calendar: "sometimes", Length: "4h"}, {Calendar: "daily", Length: "long"}, {Calendar: "--help", Length: "4h"}} {
		_, err := outside(t.Context(), []config.Window{window}, time.Now())
		if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("the window %q: Failed to parse ", window)) {
			t.Errorf("%v: got %v", window, err)
		}
	}
}
