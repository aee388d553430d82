// Command liveapplyctl shows what is live on this machine, and changes it by starting the units of liveapply.
package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
)

// version is set by the build.
var version = "unknown"

// The exit statuses, beside 0 for what was done.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitNothing = 77 // as rpm-ostree's --unchanged-exit-77
)

// How the application of a commit ended, as its unit does.
var exitRefused, exitRolledBack = state.Refused.ExitStatus(), state.RolledBack.ExitStatus()

// errNothing is returned by a verb that found nothing to do, and has said so.
var errNothing = errors.New("nothing to do")

// usageError is a mistake on the command line.
type usageError struct{ error }

// verb is a command of liveapplyctl.
type verb struct {
	name    string
	args    string // for the usage line, which also says how many there may be
	summary string
	details string // for the verb's own help
	// command declares its options and returns what to do with them and the arguments.
	command func(*pflag.FlagSet) func(ctx context.Context, args []string) error
	// verbs are those that a verb has of its own; their names begin with its name.
	verbs []verb
}

// verbs are in the order of the help. It is a function because help, one of them, lists them.
func verbs() []verb {
	return []verb{
		{"status", "", "Show what is booted, what is live, and what is under way", statusDetails, statusCommand, nil},
		{"diff", "[COMMIT]", "Show what applying a commit would mean", diffDetails, diffCommand, nil},
		{"apply", "[COMMIT]", "Apply a commit to the running system", applyDetails, applyCommand, nil},
		{"rollback", "", "Go back to what was live before the last application", rollbackDetails, rollbackCommand, nil},
		{"reset", "", "Go back to the booted tree", resetDetails, resetCommand, nil},
		{"needs-restart", "", "Show what runs on files that are no longer there", needsRestartDetails, needsRestartCommand, nil},
		{"overlay", "[VERB...]", "Keep files of your own on top of the live tree", overlayDetails, overlayCommand, overlayVerbs()},
		{"history", "", "Show the transactions of the past", historyDetails, historyCommand, nil},
		{"plot", "[TRANSACTION]", "Draw the time line of a transaction as SVG", plotDetails, plotCommand, nil},
		{"help", "[VERB...]", "Show this help, or that of a verb", "", helpCommand, nil},
	}
}

func findVerb(all []verb, name string) (verb, error) {
	if i := slices.IndexFunc(all, func(v verb) bool { return v.name == name }); i >= 0 {
		return all[i], nil
	}
	return verb{}, usageError{fmt.Errorf("unknown verb %q", name)}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	os.Exit(exitStatus(run(ctx, os.Args[1:])))
}

func exitStatus(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errNothing):
		return exitNothing
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "liveapplyctl: %v\nSee liveapplyctl --help.\n", err)
		return exitUsage
	}
	fmt.Fprintf(os.Stderr, "liveapplyctl: %v\n", err)
	var failed *systemd.Failed
	if errors.As(err, &failed) && (failed.Status == exitRefused || failed.Status == exitRolledBack) {
		return failed.Status
	}
	return exitFailed
}

// globalFlags are the options in front of the verb.
func globalFlags() (flags *pflag.FlagSet, help, showVersion *bool) {
	flags = pflag.NewFlagSet("liveapplyctl", pflag.ContinueOnError)
	flags.SetInterspersed(false)
	flags.Usage = func() {}
	return flags, flags.BoolP("help", "h", false, "show this help"), flags.Bool("version", false, "show the version")
}

func run(ctx context.Context, args []string) error {
	global, help, showVersion := globalFlags()
	if err := global.Parse(args); err != nil {
		return usageError{err}
	}
	rest := global.Args()
	switch {
	case *showVersion:
		fmt.Println("liveapplyctl", version)
		return nil
	case *help:
		return printHelp(openScreen(os.Stdout))
	case len(rest) == 0:
		rest = []string{"status"}
	}
	v, err := findVerb(verbs(), rest[0])
	if err != nil {
		return err
	}
	return v.run(ctx, rest[1:])
}

// flags declares the options of a verb.
func (v verb) flags() (flags *pflag.FlagSet, help *bool, command func(context.Context, []string) error) {
	flags = pflag.NewFlagSet(v.name, pflag.ContinueOnError)
	flags.Usage = func() {}
	flags.SortFlags = false
	command = v.command(flags)
	return flags, flags.BoolP("help", "h", false, "show this help"), command
}

func (v verb) run(ctx context.Context, args []string) error {
	flags, help, command := v.flags()
	if err := flags.Parse(args); err != nil {
		return usageError{fmt.Errorf("%s: %w", v.name, err)}
	}
	if *help {
		return v.printHelp(openScreen(os.Stdout))
	}
	switch least, most := v.arity(); {
	case flags.NArg() < least:
		return usageError{fmt.Errorf("%s: there is something missing: %s", v.name, v.args)}
	case flags.NArg() > most:
		return usageError{fmt.Errorf("%s: too many arguments: %q", v.name, flags.Args())}
	}
	return command(ctx, flags.Args())
}

// arity is how many arguments a verb takes: its usage line has what may be left out in brackets, and dots behind what there can be many of.
func (v verb) arity() (least, most int) {
	for _, arg := range strings.Fields(v.args) {
		if !strings.HasPrefix(arg, "[") {
			least++
		}
		most++
	}
	if strings.Contains(v.args, "...") {
		most = math.MaxInt
	}
	return least, most
}
