package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/partial"
	"github.com/liveapply/liveapply/internal/phase"
	"github.com/liveapply/liveapply/internal/pkgdb"
	"github.com/liveapply/liveapply/internal/state"
)

const diffDetails = `COMMIT is a checksum, the beginning of one, or a ref. Without it, it is the commit of the staged or pending deployment. It is compared with what is
live; nothing is changed. What happens in /etc is only shown to root.`

func diffCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	asJSON := flags.Bool("json", false, "print the summary of the plan as JSON")
	return func(ctx context.Context, args []string) error {
		m, err := machine.Open()
		if err != nil {
			return err
		}
		// Also what no policy would allow can be looked at.
		return dryRun(ctx, m, args, config.Request{Allow: config.Force, Revision: revision(args)}, *asJSON)
	}
}

// dryRun shows what an application would do, or says why it would be refused.
func dryRun(ctx context.Context, m *machine.Machine, args []string, request config.Request, asJSON bool) error {
	target, err := chooseTarget(m, args)
	if errors.Is(err, errNoTarget) {
		fmt.Fprintln(os.Stderr, "No deployment is staged or pending.")
		return errNothing
	}
	if err != nil {
		return err
	}
	plan, err := phase.DryRun(ctx, m, target.String(), request)
	if errors.Is(err, fs.ErrPermission) && isUser() {
		return fmt.Errorf("%w: ask as root, who may read all of a commit", err)
	}
	if err != nil {
		return err
	}
	summary := plan.Summary()
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(summary)
	}
	out := openScreen(os.Stdout)
	var text strings.Builder
	out.printFields(&text, planned(out, summary))
	_, err = fmt.Fprint(out, text.String())
	return err
}

// planned are the facts of a plan for people.
func planned(out screen, s state.Summary) []field {
	fields := []field{
		{"From", plain, []string{s.From.String()}},
		{"To", bold, partOf(s.Target, s.Partial)},
		{"Change", plain, []string{kindOf(s.Impact)}},
	}
	add := func(label, style string, values []string) {
		if len(values) > 0 {
			fields = append(fields, field{label, style, values})
		}
	}
	add("Added", green, packagesOf(s.Impact.Packages.Added))
	add("Removed", red, packagesOf(s.Impact.Packages.Removed))
	add("Upgraded", plain, changesOf(s.Impact.Packages.Upgraded))
	add("Downgraded", yellow, changesOf(s.Impact.Packages.Downgraded))
	add("New units", plain, joined(s.Impact.Units.Added))
	add("Changed units", plain, joined(s.Impact.Units.Changed))
	add("Removed units", plain, joined(s.Impact.Units.Removed))
	add("/etc", plain, etcOf(s.Etc))
	add("Stays in /etc", yellow, localOf(s.EtcLocal))
	add("By tmpfiles.d", yellow, printableLines(s.TmpfilesChanges))
	add("Reboot for", yellow, joined(s.Impact.RebootRequired))
	return fields
}

// partOf names a commit, or the part of a target that it was made of.
func partOf(commit ostree.Checksum, part *partial.About) []string {
	if part == nil {
		return []string{commit.String()}
	}
	return []string{part.Of.String(), printable("(partial: " + part.String() + ")")}
}

func kindOf(i impact.Impact) string {
	switch i.Kind {
	case impact.None:
		return "nothing in /usr"
	case impact.Additive:
		return fmt.Sprintf("additive, %d files are added (%s)", i.Files.Added, size(i.Files.Bytes))
	}
	return fmt.Sprintf("replacing, %d files are added, %d changed (%s), %d removed", i.Files.Added, i.Files.Changed, size(i.Files.Bytes), i.Files.Removed)
}

// size is a number of bytes for people.
func size(bytes int64) string {
	value, unit := float64(bytes), "B"
	for _, larger := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < 1000 {
			break
		}
		value, unit = value/1024, larger
	}
	if unit == "B" || value >= 100 {
		return fmt.Sprintf("%.0f %s", value, unit)
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}

func joined(names []string) []string {
	if len(names) == 0 {
		return nil
	}
	return []string{printable(strings.Join(names, ", "))}
}

func packagesOf(packages []pkgdb.Package) []string {
	var lines []string
	for _, p := range packages {
		lines = append(lines, printable(p.Name+" "+p.Version))
	}
	return lines
}

func changesOf(changes []pkgdb.Change) []string {
	var lines []string
	for _, c := range changes {
		lines = append(lines, printable(fmt.Sprintf("%s %s to %s", c.Old.Name, c.Old.Version, c.New.Version)))
	}
	return lines
}

func printableLines(texts []string) []string {
	var lines []string
	for _, text := range texts {
		lines = append(lines, printable(text))
	}
	return lines
}

func etcOf(changes []state.EtcChange) []string {
	var lines []string
	for _, c := range changes {
		lines = append(lines, printable(c.Kind+" /etc/"+c.Path))
	}
	return lines
}

func localOf(paths []etcmerge.Local) []string {
	var lines []string
	for _, l := range paths {
		lines = append(lines, printable("/etc/"+l.Path+" ("+string(l.Kind)+")"))
	}
	return lines
}
