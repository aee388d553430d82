package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/state"
)

const historyDetails = `The oldest is first. On a terminal, checksums are abbreviated, and why a transaction failed is below it; in a pipe each is one line, in full.`

func historyCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	asJSON := flags.Bool("json", false, "print the transactions as a JSON array")
	lines := flags.IntP("lines", "n", 0, "show only the last `N`")
	return func(context.Context, []string) error {
		if flags.Changed("lines") && *lines < 1 {
			return usageError{errors.New("history: --lines has to be 1 or more")}
		}
		entries, err := state.System.Entries()
		if err != nil {
			return err
		}
		if *lines > 0 && *lines < len(entries) {
			entries = entries[len(entries)-*lines:]
		}
		if *asJSON {
			return json.NewEncoder(os.Stdout).Encode(entries)
		}
		return printHistory(openScreen(os.Stdout), entries, bootedCommit())
	}
}

// printHistory shows what a terminal has room for, and all in a pipe.
func printHistory(out screen, entries []state.Entry, booted ostree.Checksum) error {
	var text strings.Builder
	switch {
	case len(entries) == 0:
		fmt.Fprintln(&text, "There was no transaction yet.")
	case out.isTerminal():
		shortHistory(out, entries, booted).print(out, &text)
	default:
		fullHistory(entries, booted).print(out, &text)
	}
	_, err := fmt.Fprint(out, text.String())
	return err
}

// How many digits tell transactions and commits apart, for people.
const (
	shortTransaction = 8
	shortCommit      = 12
)

func shortHistory(out screen, entries []state.Entry, booted ostree.Checksum) table {
	t := table{columns: []column{{"STARTED", false}, {"TRANSACTION", false}, {"COMMIT", false}, {"RESULT", false}, {"TOOK", true}, {"REQUESTED BY", false}}}
	mark := lastApplied(entries, booted)
	for i, e := range entries {
		t.rows = append(t.rows, row{
			cells: []cell{
				{e.Started.Local().Format(time.DateTime), plain}, {out.short(e.Transaction, shortTransaction), dim},
				{out.short(checksumText(e.Target), shortCommit), plain}, {resultText(e, i == mark), resultStyle(e.Result)}, {took(e), plain},
				{printable(e.RequestedBy), dim},
			},
			note: noteOf(e),
		})
	}
	return t
}

func fullHistory(entries []state.Entry, booted ostree.Checksum) table {
	t := table{columns: []column{{"STARTED", false}, {"TRANSACTION", false}, {"FROM", false}, {"COMMIT", false}, {"RESULT", false}, {"TOOK", true},
		{"REQUESTED BY", false}, {"ALLOW", false}, {"REASON", false}}}
	mark := lastApplied(entries, booted)
	for i, e := range entries {
		t.rows = append(t.rows, row{cells: []cell{
			{e.Started.Local().Format(time.DateTime), plain}, {e.Transaction, plain}, {checksumText(e.From), plain}, {checksumText(e.Target), plain},
			{resultText(e, i == mark), plain}, {took(e), plain}, {orDash(printable(e.RequestedBy)), plain},
			{orDash(printable(e.Allow)), plain}, {orDash(noteOf(e).text), plain},
		}})
	}
	return t
}

// bootedCommit is what the machine runs from; zero if that is not known.
func bootedCommit() ostree.Checksum {
	m, err := machine.Open()
	if err != nil {
		return ostree.Checksum{}
	}
	return m.Booted.Commit
}

// lastApplied finds the transaction that made a commit live last; -1 if none has.
func lastApplied(entries []state.Entry, commit ostree.Checksum) int {
	for i, e := range slices.Backward(entries) {
		if e.Result == state.Applied && e.Target == commit && e.Partial == nil {
			return i
		}
	}
	return -1
}

// resultText is how a transaction ended, and whether the machine has booted into what it made live.
func resultText(e state.Entry, booted bool) string {
	if booted {
		return string(e.Result) + ", booted"
	}
	return string(e.Result)
}

// checksumText is a checksum; a transaction that failed early does not know all of them.
func checksumText(c ostree.Checksum) string {
	if c.IsZero() {
		return "-"
	}
	return c.String()
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func resultStyle(result state.Result) string {
	switch result {
	case state.Applied:
		return green
	case state.RolledBack, state.Refused, state.NotFinalized:
		return red
	}
	return yellow
}

// took says how long the phases of a transaction took. One that was killed has left no time.
func took(e state.Entry) string {
	if len(e.Phases) == 0 {
		return "-"
	}
	return seconds(newTimeline(e).length)
}

// noteOf says why a transaction failed, or what it left of its target.
func noteOf(e state.Entry) cell {
	if e.Reason == "" && e.Partial != nil {
		return cell{printable("partial: " + e.Partial.String()), dim}
	}
	return cell{printable(e.Reason), red}
}
