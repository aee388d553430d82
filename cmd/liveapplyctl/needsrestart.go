package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/stale"
	"github.com/liveapply/liveapply/internal/state"
)

const needsRestartDetails = `What runs on files of /usr that have been replaced or removed since it was started: units of the system and of users, and sessions. Containers
are left alone. Only root may look at all processes; others see their own. Exit status 77 means that nothing needs a restart.`

func needsRestartCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	asJSON := flags.Bool("json", false, "print what was found as JSON")
	return func(ctx context.Context, _ []string) error {
		found, err := services.FindOutdated(ctx, stale.System{Proc: "/proc", Usr: "/usr", Trees: stale.Trees(state.System.Trees())})
		if err != nil {
			return err
		}
		if !found.Complete {
			fmt.Fprintln(os.Stderr, "Not all processes may be looked at by this user: there may be others.")
		}
		if *asJSON {
			err = json.NewEncoder(os.Stdout).Encode(found)
		} else {
			err = printOutdated(openScreen(os.Stdout), found.Owners)
		}
		if err == nil && len(found.Owners) == 0 {
			return errNothing
		}
		return err
	}
}

func printOutdated(out screen, owners []services.Outdated) error {
	var text strings.Builder
	if len(owners) == 0 {
		fmt.Fprintln(&text, "Nothing runs on old files.")
	} else {
		t := table{columns: []column{{"UNIT", false}, {"PROCESSES", true}, {"WHY", false}}}
		for _, o := range owners {
			t.rows = append(t.rows, row{cells: []cell{
				{printable(ownerName(o.Owner)), plain}, {strconv.Itoa(len(o.Processes)), plain}, {printable(out.why(o.Processes)), dim},
			}})
		}
		t.print(out, &text)
	}
	_, err := fmt.Fprint(out, text.String())
	return err
}

func ownerName(o services.Owner) string {
	switch {
	case o.Unit == "":
		return "(no unit)"
	case o.User != nil:
		return fmt.Sprintf("%s (user %d)", o.Unit, *o.User)
	}
	return o.Unit
}

// why names the files that processes should no longer use: on a terminal the first one, and how many there are; in a pipe all of them.
func (s screen) why(processes []stale.Process) string {
	var files []string
	for _, process := range processes {
		for _, file := range process.Files {
			files = append(files, file.Path)
		}
	}
	slices.Sort(files)
	files = slices.Compact(files)
	switch {
	case !s.isTerminal():
		return strings.Join(files, ", ")
	case len(files) > 1:
		return fmt.Sprintf("%s, and %d more", path.Base(files[0]), len(files)-1)
	}
	return path.Base(files[0])
}
