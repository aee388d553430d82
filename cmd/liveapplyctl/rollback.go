package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/bus"
	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/phase"
	"github.com/liveapply/liveapply/internal/state"
)

const rollbackDetails = `It applies the commit that was live before the live one; if that is the booted commit, it is a reset. A second rollback goes forth again.`

func rollbackCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	starter := starterFlags(flags)
	return func(ctx context.Context, _ []string) error {
		if isUser() {
			return starter.ask(ctx, "Rollback", bus.Options(config.Request{}))
		}
		machine, err := phase.OpenAsRoot()
		if err != nil {
			return err
		}
		stamp, err := machine.Status()
		if err != nil {
			return err
		}
		return starter.rollback(ctx, machine, stamp)
	}
}

func (s *starter) rollback(ctx context.Context, machine *phase.Machine, stamp *state.Stamp) error {
	switch {
	case stamp.Phase != "":
		return fmt.Errorf("a transaction is under way (phase %s): wait for its end, or take all back with liveapplyctl reset", stamp.Phase)
	case !stamp.IsApplied():
		s.say("The booted tree is live: there is nothing to go back from.")
		return errNothing
	case stamp.Previous == stamp.Booted:
		return s.reset(ctx, machine)
	case stamp.Previous.IsZero() || stamp.Previous == stamp.Live:
		return errors.New("it is not known what was live before: apply a commit, or go back to the booted tree with liveapplyctl reset")
	}
	// Back is what an older commit or another release may be, and it was allowed before. Whether the next boot follows stays as it is.
	request := config.Request{Allow: config.Force, Transient: stamp.Transient, RequestedBy: requester() + ", rollback"}
	return s.apply(ctx, machine, stamp.Previous, request)
}
