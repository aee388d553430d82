// Command liveapply-helper carries out one phase of a transaction. It is started by the units of the same names, which
// give it the order, the sandbox and the time it may take; it is not for people, who use liveapplyctl or systemctl.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/auto"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/overlay/follow"
	"github.com/liveapply/liveapply/internal/phase"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
)

// verb is a command. Those that work on a request take it as their argument: what the unit's instance names.
type verb struct {
	name    string
	request bool
	run     func(ctx context.Context, m *machine.Machine, request string) error
}

// overlayVerbs are the verbs that work on any system, also on one that was not booted from OSTree.
var overlayVerbs = []string{"overlay", "overlays", "updates"}

var verbs = []verb{
	{"prepare", true, phase.Prepare},
	{"mount", true, phase.Mount},
	{"etc", true, phase.Etc},
	{"tmpfiles", true, phase.Tmpfiles},
	{"services", true, phase.Services},
	{"record", true, phase.Record},
	{"finish", true, phase.Finish},
	{"rollback", true, phase.Rollback},
	{"reset", false, phase.Reset},
	{"etc-revert", false, phase.EtcRevert},
	{"overlay", true, follow.Change},
	{"updates", true, follow.Updates},
	{"overlays", false, follow.Stores},
	{"deployments", false, phase.Deployments},
	{"finalized", false, phase.Finalized},
	{"recover", false, phase.Recover},
	{"staged", false, func(ctx context.Context, m *machine.Machine, _ string) error { return auto.Run(ctx, m) }},
}

// before is what units of an earlier version call, which systemd may still have in memory when the helper is this one: where there were three steps, the
// first does all, and the others nothing.
var before = map[string]string{
	"rollback-etc": "rollback", "rollback-mount": "", "rollback-record": "",
	"reset-etc": "reset", "reset-mount": "", "reset-record": "",
}

func main() {
	// A unit that is stopped gets SIGTERM; the phase then ends with an error, so that its OnFailure= takes it back.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	args := os.Args[1:]
	if len(args) > 0 {
		if name, old := before[args[0]]; old && name == "" {
			return
		} else if old {
			args[0] = name
		}
	}
	if len(args) == 2 && args[0] == "formats" {
		checkFormats(args[1])
		return
	}
	v, request, err := parse(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if err := run(ctx, v, request); err != nil {
		// systemd reads the priority off the line (sd-daemon(3)); 3 is an error.
		fmt.Fprintf(os.Stderr, "<3>%s: %s\n", v.name, report.OneLine(err.Error()))
		var ended *phase.Ended
		if errors.As(err, &ended) {
			os.Exit(ended.Result.ExitStatus())
		}
		os.Exit(1)
	}
}

// checkFormats says whether this helper can go on with what one of a version hands over. It is run by that one, on the tree that this one is in.
func checkFormats(text string) {
	version, err := strconv.Atoi(text)
	if err == nil {
		err = state.CheckFormats(version)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func parse(args []string) (verb, string, error) {
	var names []string
	for _, v := range verbs {
		names = append(names, v.name)
		if len(args) == 0 || args[0] != v.name {
			continue
		}
		if v.request && len(args) == 2 {
			return v, args[1], nil
		}
		if !v.request && len(args) == 1 {
			return v, "", nil
		}
	}
	return verb{}, "", fmt.Errorf("usage: liveapply-helper VERB [REQUEST]\nstarted by the units of liveapply; VERB is one of %s", strings.Join(names, ", "))
}

func run(ctx context.Context, v verb, request string) error {
	onOverlays := slices.Contains(overlayVerbs, v.name)
	open := machine.OpenAsRoot
	if onOverlays {
		open = machine.OpenForUpdates // which is the running system, but for an initrd
	}
	m, err := open()
	if err != nil {
		return err
	}
	isPhase := v.request && !onOverlays && v.name != "finish" && v.name != "rollback"
	err = v.run(ctx, m, request)
	if ctx.Err() != nil && isPhase && (err != nil || v.name != "record") {
		// Even if all was done: the phases that come next will not run, so this one has to be taken back.
		err = phase.ErrStopped
	}
	if err != nil && (onOverlays || !v.request) { // of a commit's application, liveapply@.service tells
		report.TellFailure(err)
	}
	if err == nil || !isPhase {
		return err
	}
	return errors.Join(err, phase.Fail(m, request, v.name, err))
}
