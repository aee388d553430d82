// Command liveapplyctl shows what is live on this machine, and changes it by starting the units of liveapply.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// version is set by the build.
var version = "unknown"

// The exit statuses, beside 0 for what was done.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitNothing = 77 // as rpm-ostree's --unchanged-exit-77
)

// errNothing is returned by a verb that found nothing to do, and has said so.
var errNothing = errors.New("nothing to do")

// usageError is a mistake on the command line.
type usageError struct{ error }

// verb is a command of liveapplyctl.
type verb struct {
	name    string
	args    string // for the usage line
	summary string
	maxArgs int
	// command declares its options and returns what to do with them and the arguments.
	command func(*pflag.FlagSet) func(ctx context.Context, args []string) error
}

var verbs = []verb{
	{"status", "", "Show what is booted, what is live, and what is under way", 0, statusCommand},
	{"apply", "[COMMIT]", "Apply a commit; without one, that of the staged or pending deployment", 1, applyCommand},
	{"reset", "", "Go back to the booted tree", 0, resetCommand},
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
	return exitFailed
}

func run(ctx context.Context, args []string) error {
	global := pflag.NewFlagSet("liveapplyctl", pflag.ContinueOnError)
	global.SetInterspersed(false)
	global.Usage = func() {}
	help := global.BoolP("help", "h", false, "show this help")
	showVersion := global.Bool("version", false, "show the version")
	if err := global.Parse(args); err != nil {
		return usageError{err}
	}
	rest := global.Args()
	switch {
	case *showVersion:
		fmt.Println("liveapplyctl", version)
		return nil
	case *help, len(rest) == 1 && rest[0] == "help":
		printHelp(os.Stdout, global)
		return nil
	case len(rest) == 0:
		rest = []string{"status"}
	case rest[0] == "help":
		rest = []string{rest[1], "--help"}
	}
	for _, v := range verbs {
		if v.name == rest[0] {
			return v.run(ctx, rest[1:])
		}
	}
	return usageError{fmt.Errorf("unknown verb %q", rest[0])}
}

func (v verb) run(ctx context.Context, args []string) error {
	flags := pflag.NewFlagSet(v.name, pflag.ContinueOnError)
	flags.Usage = func() {}
	command := v.command(flags)
	help := flags.BoolP("help", "h", false, "show this help")
	if err := flags.Parse(args); err != nil {
		return usageError{fmt.Errorf("%s: %w", v.name, err)}
	}
	if *help {
		fmt.Printf("Usage: liveapplyctl %s [OPTION...] %s\n%s.\n\nOptions:\n%s", v.name, v.args, v.summary, flags.FlagUsages())
		return nil
	}
	if flags.NArg() > v.maxArgs {
		return usageError{fmt.Errorf("%s: too many arguments: %q", v.name, flags.Args())}
	}
	return command(ctx, flags.Args())
}

func printHelp(w io.Writer, global *pflag.FlagSet) {
	fmt.Fprint(w, "Usage: liveapplyctl [OPTION...] [VERB ...]\nBring an OSTree commit into the running system, without a reboot.\n\nVerbs:\n")
	for _, v := range verbs {
		fmt.Fprintf(w, "  %-18s %s\n", v.name+" "+v.args, v.summary)
	}
	fmt.Fprintf(w, "  %-18s %s\n\nOptions:\n%s", "help [VERB]", "Show this help, or that of a verb", global.FlagUsages())
	fmt.Fprint(w, "\nExit status: 0 done, 1 failed (and rolled back), 2 wrong usage, 77 nothing to do.\n")
}
