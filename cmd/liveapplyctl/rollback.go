package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/bus"
	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/state"
)

const rollbackDetails = `It applies the commit that was live before the live one; if that is the booted commit, it is a reset. A second rollback goes forth again.`

func rollbackCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	starter := starterFlags(flags)
	return func(ctx context.Context, _ []string) error {
		if isUser() {
			return starter.ask(ctx, "Rollback", bus.Options(config.Request{}))
		}
		m, err := machine.OpenAsRoot()
		if err != nil {
			return err
		}
		stamp, err := m.Status()
		if err != nil {
			return err
		}
		return starter.rollback(ctx, m, stamp)
	}
}

func (s *starter) rollback(ctx context.Context, m *machine.Machine, stamp *state.Stamp) error {
	switch {
	case stamp.Phase != "":
		return fmt.Errorf("a transaction is under way (phase %s): wait for its end, or take all back with liveapplyctl reset", stamp.Phase)
	case !stamp.IsApplied():
		s.say("The booted tree is live: there is nothing to go back from.")
		return errNothing
	case stamp.Previous == stamp.Booted:
		return s.reset(ctx, m)
	case stamp.Previous.IsZero() || stamp.Previous == stamp.Live:
		return errors.New("it is not known what was live before: apply a commit, or go back to the booted tree with liveapplyctl reset")
	}
	// Back is what an older commit or another release may be, and it was allowed before. Whether the next boot follows stays as it is.
	request := config.Request{Allow: config.Force, Transient: stamp.Transient, RequestedBy: requester() + ", rollback"}
	return s.apply(ctx, m, stamp.Previous, request)
}
