package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
	"github.com/liveapply/liveapply/internal/transaction"
)

// starter starts units, for the verbs that change the system.
type starter struct {
	quiet, noWait bool
}

// starterFlags declares the options that all of these verbs have.
func starterFlags(flags *pflag.FlagSet) *starter {
	s := &starter{}
	flags.BoolVar(&s.noWait, "no-wait", false, "start the unit, and do not wait for its end")
	flags.BoolVarP(&s.quiet, "quiet", "q", false, "say nothing but what goes wrong")
	return s
}

// say tells what was done.
func (s *starter) say(format string, args ...any) {
	if !s.quiet {
		fmt.Printf(format+"\n", args...)
	}
}

// named names a commit for people.
func named(commit ostree.Checksum) string {
	return openScreen(os.Stdout).short(commit.String(), shortCommit)
}

// job is a unit to start, and what to expect of it.
type job struct {
	unit   string
	phases []string        // in their order; none if it is no transaction
	target ostree.Checksum // of its transaction
	ask    *config.Request // for what reads the configuration; nil if nothing does
	done   string          // what to say then
	once   bool            // the unit is never started again
}

// request is what the unit works on.
func (j job) request() string {
	if j.unit == systemd.ResetUnit {
		return state.ResetRequest
	}
	return j.target.String()
}

// begin starts the unit of a job. One that applies a commit is not joined if it works for somebody else.
func (s *starter) begin(ctx context.Context, manager *systemd.Manager, m *machine.Machine, j job) (*systemd.Begun, error) {
	switch {
	case j.unit == systemd.ResetUnit:
		return transaction.AskReset(ctx, m, manager, *j.ask)
	case j.ask == nil:
		return manager.Begin(ctx, j.unit)
	}
	return transaction.Ask(ctx, m, manager, j.target, *j.ask, func() {
		s.say("Commit %s is being applied for somebody else: waiting for the end of that.", named(j.target))
	})
}

// start starts a unit, shows on a terminal how it goes, and returns when the unit has ended. If liveapplyctl is interrupted the unit goes on.
func (s *starter) start(ctx context.Context, m *machine.Machine, j job) error {
	manager, err := systemd.Connect(ctx)
	if err != nil {
		return err
	}
	defer manager.Close()
	begun, err := s.begin(ctx, manager, m, j)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("interrupted before %s was started", j.unit)
	}
	if err != nil {
		return err
	}
	if s.noWait {
		s.say("Started %s.\nSee liveapplyctl status.", j.unit)
		return nil
	}
	end := func(bool) {}
	if screen := openScreen(os.Stderr); screen.isTerminal() && !s.quiet && len(j.phases) > 0 {
		end = showProgress(ctx, m, j, screen)
	}
	err = begun.Outcome(ctx)
	end(err == nil)
	if err == nil {
		s.say("%s", j.done)
		return nil
	}
	if j.once && ctx.Err() == nil {
		_ = manager.ResetFailed(ctx, j.unit) // nobody else would
	}
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted, but %s goes on: see liveapplyctl status", j.unit)
	}
	return err
}
