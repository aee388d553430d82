package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/state"
)

const plotDetails = `TRANSACTION is what history shows, or the beginning of it; without it, the last one is drawn. For example: liveapplyctl plot > plot.svg`

func plotCommand(*pflag.FlagSet) func(context.Context, []string) error {
	return func(_ context.Context, args []string) error {
		entries, err := state.System.Entries()
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			fmt.Fprintln(os.Stderr, "There was no transaction yet.")
			return errNothing
		}
		entry := entries[len(entries)-1]
		if len(args) == 1 {
			if entry, err = findEntry(entries, args[0]); err != nil {
				return err
			}
		}
		_, err = os.Stdout.Write(newTimeline(entry).svg())
		return err
	}
}

// findEntry returns the transaction whose name begins so.
func findEntry(entries []state.Entry, prefix string) (found state.Entry, err error) {
	for _, entry := range entries {
		switch {
		case !strings.HasPrefix(entry.Transaction, prefix):
		case found.Transaction != "" && found.Transaction != entry.Transaction:
			return found, fmt.Errorf("%q is the beginning of more than one transaction, such as %s and %s: give more digits",
				prefix, found.Transaction, entry.Transaction)
		default:
			found = entry
		}
	}
	if found.Transaction == "" {
		return found, fmt.Errorf("there is no transaction %q: see liveapplyctl history", prefix)
	}
	return found, nil
}
