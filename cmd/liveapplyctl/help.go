package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

func helpCommand(*pflag.FlagSet) func(context.Context, []string) error {
	return func(_ context.Context, args []string) error {
		if len(args) == 0 {
			return printHelp(openScreen(os.Stdout))
		}
		v, err := findVerb(verbs(), args[0])
		for _, name := range args[1:] {
			if err == nil {
				v, err = findVerb(v.verbs, v.name+" "+name)
			}
		}
		if err != nil {
			return err
		}
		return v.printHelp(openScreen(os.Stdout))
	}
}

// printHelp shows what there is.
func printHelp(out screen) error {
	global, _, _ := globalFlags()
	var text strings.Builder
	fmt.Fprintf(&text, "%s liveapplyctl [OPTION...] [VERB ...]\n\nBring an OSTree commit into the running system, without a reboot.\n\n%s\n",
		out.style(bold, "Usage:"), out.style(bold, "Verbs:"))
	listVerbs(&text, "", verbs())
	fmt.Fprintf(&text, "\n%s\n%s\nWithout a verb it is status. %s\n", out.style(bold, "Options:"), out.usages(global), exitStatusText)
	_, err := fmt.Fprint(out, text.String())
	return err
}

// listVerbs names verbs, below each other, without what the names of all of them begin with.
func listVerbs(w io.Writer, begin string, verbs []verb) {
	for _, v := range verbs {
		fmt.Fprintf(w, "  %-20s %s\n", strings.TrimPrefix(v.name, begin)+" "+v.args, v.summary)
	}
}

// exitStatusText says in the help what the man page has in a table.
const exitStatusText = "Exit status: 0 done, 1 failed, 2 wrong\nusage, 77 nothing to do, 80 refused, 81 rolled back. See liveapplyctl(1)."

// printHelp shows the usage of one verb.
func (v verb) printHelp(out screen) error {
	flags, _, _ := v.flags()
	usage := strings.TrimSpace("liveapplyctl " + v.name + " [OPTION...] " + v.args)
	text := fmt.Sprintf("%s %s\n\n%s.\n", out.style(bold, "Usage:"), usage, v.summary)
	if v.details != "" {
		text += "\n" + strings.Join(out.forHelp().wrap(v.details, 0), "\n") + "\n"
	}
	if len(v.verbs) > 0 {
		var list strings.Builder
		listVerbs(&list, v.name+" ", v.verbs)
		text += fmt.Sprintf("\n%s\n%s", out.style(bold, "Verbs:"), list.String())
	}
	_, err := fmt.Fprintf(out, "%s\n%s\n%s", text, out.style(bold, "Options:"), out.usages(flags))
	return err
}

// forHelp is a screen as wide as a text for people is, also in a pipe.
func (s screen) forHelp() screen {
	if !s.isTerminal() || s.width > defaultWidth {
		s.width = defaultWidth
	}
	return s
}

// usages describes options, one below the other.
func (s screen) usages(flags *pflag.FlagSet) string {
	return flags.FlagUsagesWrapped(s.forHelp().width)
}
