package main

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/bus"
	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/systemd"
)

const resetDetails = `/usr is the booted tree again, what the applications have changed in /etc is taken back, and a deployment that they have staged is dropped.`

func resetCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	starter := starterFlags(flags)
	return func(ctx context.Context, _ []string) error {
		if isUser() {
			return starter.ask(ctx, "Reset", bus.Options(config.Request{}))
		}
		m, err := machine.OpenAsRoot()
		if err != nil {
			return err
		}
		clean, err := m.IsClean()
		if err != nil {
			return err
		}
		if clean {
			starter.say("The booted tree is live.")
			return errNothing
		}
		return starter.reset(ctx, m)
	}
}

func (s *starter) reset(ctx context.Context, m *machine.Machine) error {
	return s.start(ctx, m, job{
		unit:   systemd.ResetUnit,
		phases: resetPhases,
		target: m.Booted.Commit,
		ask:    &config.Request{RequestedBy: requester(), RequestedFrom: ownUnit(ctx)},
		done:   fmt.Sprintf("The booted tree is live again (commit %s).", named(m.Booted.Commit)),
	})
}
