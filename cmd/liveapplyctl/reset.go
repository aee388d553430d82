package main

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/phase"
	"github.com/liveapply/liveapply/internal/services"
)

func resetCommand(*pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, _ []string) error {
		machine, err := phase.OpenAsRoot()
		if err != nil {
			return err
		}
		clean, err := machine.IsClean()
		if err != nil {
			return err
		}
		if clean {
			fmt.Println("The booted tree is live.")
			return errNothing
		}
		if err := startAndShow(ctx, machine, services.ResetUnit); err != nil {
			return err
		}
		fmt.Printf("The booted tree is live again (commit %s).\n", machine.Booted.Commit)
		return nil
	}
}
