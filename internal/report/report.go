// Package report tells people and other programs what happens: by the status of the unit, in the journal, and on standard error.
package report

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/coreos/go-systemd/v22/journal"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/partial"
	"github.com/liveapply/liveapply/internal/state"
)

// The messages that other programs look for have an id each; catalog/liveapply.catalog explains them to people.
const (
	MessageSwitched = "66cd3a53091949d391e90504eaee4abb"
	MessageApplied  = "f9f026a0e8ca4158b2a0c15cd0d50672"
	MessageFailed   = "29780ceba76945ba8def4d2d136f7774"
	MessageReset    = "27cf0e21e2074f73a9a2dee7fce80e79"
	MessageLeft     = "07995ddea8aa4bcdbf9bb71b75e63b95"
	MessageKept     = "0ac42de1540f49d7b07bbc41134d306f"
	MessageSettled  = "e0b7c1f2a94d4c1c8d36f0a1be52c7d8"
	MessageOverlay  = "5b1f3c0d8a7e4f1e9d2c6a4b7e90c1d3"
)

// priorities of the messages that are more than a notice.
var priorities = map[string]journal.Priority{
	MessageFailed: journal.PriErr,
	MessageKept:   journal.PriWarning,
}

// Announce writes a message about a transaction to the journal; without a journal, to standard error.
func Announce(t *state.Transaction, id, message string, fields map[string]string) {
	all := map[string]string{
		"MESSAGE_ID":            id,
		"LIVEAPPLY_TRANSACTION": t.ID,
		"LIVEAPPLY_FROM":        t.From.String(),
		"LIVEAPPLY_TARGET":      t.Target.String(),
	}
	for field, value := range map[string]string{"LIVEAPPLY_REQUESTED_BY": t.RequestedBy, "LIVEAPPLY_ALLOW": t.Allow} {
		if value != "" {
			all[field] = value
		}
	}
	maps.Copy(all, fields)
	priority, special := priorities[id]
	if !special {
		priority = journal.PriNotice
	}
	if err := journal.Send(message, priority, all); err != nil {
		fmt.Fprintln(os.Stderr, message)
	}
}

// Named names a target, and which part of it is meant.
func Named(target ostree.Checksum, part *partial.About) string {
	if part == nil {
		return target.String()
	}
	return fmt.Sprintf("%s (partial: %s)", part.Of, part)
}

// Status says what the unit is doing, for `systemctl status` and for liveapplyctl.
func Status(format string, args ...any) {
	// Not under systemd there is nobody to tell.
	_, _ = daemon.SdNotify(false, "STATUS="+OneLine(fmt.Sprintf(format, args...)))
}

// extendBy is how much time to work a unit has when it has waited: as TimeoutStartSec= of those that wait. Where a unit has less, waiting does not use that up.
const extendBy = 15 * time.Minute

// Waiting has the time that is waited not count as time to work (EXTEND_TIMEOUT_USEC= of sd_notify(3)), until the function that it returns is called.
func Waiting() (end func()) {
	extend := func() {
		_, _ = daemon.SdNotify(false, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extendBy.Microseconds()))
	}
	extend()
	stop := make(chan struct{})
	go func() {
		ticker := time.NewTicker(extendEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				extend()
			case <-stop:
				return
			}
		}
	}()
	return func() { close(stop) }
}

// extendEvery is less than any time limit of a unit that waits.
const extendEvery = 20 * time.Second

// OneLine is for sd_notify(3) and standard error (sd-daemon(3)): what comes behind the end of a line is another message.
func OneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }

// countEvery is how often a status that counts is written again.
const countEvery = 200 * time.Millisecond

// Counting says now and then how many of all there are have been done, until the function that it returns is called.
func Counting(what string, all int, done func() int64) (end func()) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(countEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				Status("%s", Counted(what, done(), all))
			case <-stop:
				return
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped // so that no count comes after what is said next
	}
}

// Warn writes a line to standard error with the priority of sd-daemon(3).
func Warn(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "<%d>%s\n", journal.PriWarning, fmt.Sprintf(format, args...))
}

// TellFailure has the unit's status say why it failed, for whoever has started it.
func TellFailure(reason error) { Status("%v", reason) }

// Abbreviated names the first few of many.
func Abbreviated(names []string) string {
	const shown = 5
	if len(names) <= shown {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s, and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}

// Kept says what a directory, which is /etc unless overlays put files into another one, keeps although the target, or the way back, has something else.
func Kept(t *state.Transaction, dir string, paths []string) {
	for _, path := range paths {
		path = filepath.Join(dir, path)
		Announce(t, MessageKept, path+" has been changed locally, and stays as it is", map[string]string{"LIVEAPPLY_PATH": path})
	}
}
