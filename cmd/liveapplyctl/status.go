package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/phase"
	"github.com/liveapply/liveapply/internal/state"
)

func statusCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	asJSON := flags.Bool("json", false, "print the stamp, see docs/architecture.md")
	return func(context.Context, []string) error {
		machine, err := phase.Open()
		if err != nil {
			return err
		}
		stamp, err := machine.Status()
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(os.Stdout).Encode(stamp)
		}
		last, err := machine.State.LastEntry()
		if err != nil {
			return err
		}
		return printStatus(os.Stdout, stamp, last)
	}
}

// printStatus shows a stamp, and the last transaction if that failed.
func printStatus(w io.Writer, stamp *state.Stamp, last *state.Entry) error {
	table := tabwriter.NewWriter(w, 0, 8, 1, ' ', 0)
	fmt.Fprintf(table, "Booted:\t%s\n", stamp.Booted)
	if stamp.IsApplied() {
		fmt.Fprintf(table, "Live:\t%s\n", stamp.Live)
		fmt.Fprintf(table, "Applied:\t%s\n", stamp.Applied.Local().Format(time.DateTime))
		fmt.Fprintf(table, "Next boot:\t%s\n", nextBoot(stamp))
	} else {
		fmt.Fprintf(table, "Live:\tthe booted tree\n")
	}
	if len(stamp.RebootRequired) > 0 {
		fmt.Fprintf(table, "Reboot for:\t%s\n", strings.Join(stamp.RebootRequired, ", "))
	}
	if stamp.Phase != "" {
		fmt.Fprintf(table, "Under way:\t%s, to %s\n", stamp.Phase, stamp.Target)
	}
	if last != nil && last.Reason != "" && stamp.Phase == "" {
		fmt.Fprintf(table, "Last failure:\t%s, of %s: %s\n", last.Result, last.Started.Local().Format(time.DateTime), last.Reason)
	}
	return table.Flush()
}

func nextBoot(stamp *state.Stamp) string {
	if stamp.Transient {
		return "not into the live commit (applied as transient)"
	}
	return "into the live commit"
}
