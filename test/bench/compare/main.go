// Command compare measures this project beside the libostree way and the floor, in turn and several times, and prints a table with
// the limits that are stated for it. It is started by test/bench/run, which builds the programs that it compares and puts
// them beside it. Its exit status is 1 if a limit is broken.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/test/nspawn"
)

// parts are what can be measured, in this order.
var parts = []string{"usr", "lookup", "trees", "machine", "generator"}

// How often each thing is measured, after one round that is not counted.
const (
	usualRounds = 7
	quickRounds = 3
)

func main() {
	options, err := parse(os.Args[1:])
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(2)
	}
	var table table
	finished := runSession(func(s *session) { measure(s, options, &table) })
	fmt.Print(table.String()) // as far as it is
	if !finished {
		os.Exit(1)
	}
	if broken := table.broken(); broken > 0 {
		fmt.Fprintf(os.Stderr, "compare: limits that do not hold: %d\n", broken)
		os.Exit(1)
	}
}

type options struct {
	rounds int
	only   []string
}

func parse(args []string) (options, error) {
	var o options
	flags := pflag.NewFlagSet("test/bench/run", pflag.ContinueOnError)
	quick := flags.Bool("quick", false, fmt.Sprintf("%d rounds", quickRounds))
	flags.IntVar(&o.rounds, "rounds", usualRounds, "how often each thing is measured")
	flags.StringSliceVar(&o.only, "only", parts, "parts to measure: /usr, paths through layers, reading two trees, the whole inside a machine, the generator there")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if *quick && !flags.Changed("rounds") {
		o.rounds = quickRounds
	}
	if o.rounds < 1 || flags.NArg() > 0 {
		return o, fmt.Errorf("usage:\n%s", flags.FlagUsages())
	}
	for _, part := range o.only {
		if !slices.Contains(parts, part) {
			return o, fmt.Errorf("there is no part %q: it is one of %s", part, strings.Join(parts, ", "))
		}
	}
	return o, nil
}

// measure fills the table.
func measure(s *session, o options, t *table) {
	lab, err := nspawn.Open()
	s.check(err)
	s.Cleanup(func() { s.check(lab.Close()) })
	b := newBench(s, lab, o.rounds)
	for _, part := range o.only {
		t.add(b.part(part))
	}
}

func (b *bench) part(name string) section {
	switch name {
	case "usr":
		return b.usr(append(b.debian().updates(), b.generated().update()))
	case "lookup":
		return b.lookup()
	case "trees":
		return b.trees(b.generated())
	case "generator":
		return b.generator(b.debian())
	default:
		return b.inside(b.debian())
	}
}

// bench is what all measurements share.
type bench struct {
	*session
	lab    *nspawn.Lab
	rounds int
	bin    string // where the programs are that are compared
	cache  string // generated commits, kept for the next run
	work   string // beside cache; removed at the end
	made   debian // once it is
}

// defaultCache and the environment variable are those of test/nspawn, whose lock covers what is in the directory.
const defaultCache = "/var/cache/liveapply-test"

func newBench(s *session, lab *nspawn.Lab, rounds int) *bench {
	s.Helper()
	dir := os.Getenv("LIVEAPPLY_TEST_CACHE")
	if dir == "" {
		dir = defaultCache
	}
	self, err := os.Executable()
	s.check(err)
	b := &bench{
		session: s, lab: lab, rounds: rounds, bin: filepath.Dir(self),
		cache: filepath.Join(dir, "bench"), work: filepath.Join(dir, "bench-work"),
	}
	s.check(os.RemoveAll(b.work)) // of a run that was killed
	s.Cleanup(func() { s.check(os.RemoveAll(b.work)) })
	s.check(os.MkdirAll(b.cache, 0o755))
	s.check(os.MkdirAll(b.work, 0o755))
	return b
}

// inTurn calls each of the functions once for warming up, and then once in every round, starting with another one each time.
func (b *bench) inTurn(functions []func(counted bool)) {
	for round := range b.rounds + 1 {
		for i := range functions {
			functions[(i+round)%len(functions)](round > 0)
		}
	}
}
