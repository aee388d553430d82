package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/phase"
	"github.com/liveapply/liveapply/internal/services"
)

func applyCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	transient := flags.Bool("transient", false, "do not stage a deployment: the next boot leads where it would have led before")
	allow := flags.String("allow", "", "what kind of change may be applied: additive, replace, force (default from liveapply.conf)")
	return func(ctx context.Context, args []string) error {
		request := config.Request{Transient: *transient, RequestedBy: requester()}
		if *allow != "" {
			var err error
			if request.Allow, err = config.ParseAllow(*allow); err != nil {
				return usageError{fmt.Errorf("--allow: %w", err)}
			}
		}
		machine, err := phase.OpenAsRoot()
		if err != nil {
			return err
		}
		return apply(ctx, machine, args, request)
	}
}

func apply(ctx context.Context, machine *phase.Machine, args []string, request config.Request) error {
	target, err := chooseTarget(machine, args)
	if err != nil {
		return err
	}
	live, err := machine.Live()
	if err != nil {
		return err
	}
	if live == target {
		fmt.Printf("Commit %s is live already.\n", target)
		return errNothing
	}
	if err := config.WriteRequest(machine.State.RequestPath(target), request); err != nil {
		return err
	}
	if err := startAndShow(ctx, machine, services.ApplyUnit(target.String())); err != nil {
		return err
	}
	fmt.Printf("Commit %s is live.\n", target)
	return nil
}

// chooseTarget resolves the argument; without one it is what the next boot leads to.
func chooseTarget(machine *phase.Machine, args []string) (ostree.Checksum, error) {
	if len(args) == 1 {
		return machine.Resolve(args[0])
	}
	next, err := machine.NextBoot()
	if err != nil {
		return ostree.Checksum{}, err
	}
	if next.Booted {
		fmt.Println("No deployment is staged or pending.")
		return ostree.Checksum{}, errNothing
	}
	return next.Commit, nil
}

// requester says who asks, for the history.
func requester() string {
	if user := os.Getenv("SUDO_USER"); user != "" {
		return fmt.Sprintf("liveapplyctl, %s by sudo", user)
	}
	return fmt.Sprintf("liveapplyctl, uid %d", os.Getuid())
}
