package main

import (
	"context"
	"fmt"
	"os"

	"github.com/liveapply/liveapply/internal/phase"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
)

// startAndShow starts a unit, names the phases as they come, and returns when the unit has ended. If liveapplyctl is interrupted
// the unit goes on.
func startAndShow(ctx context.Context, machine *phase.Machine, unit string) error {
	systemd, err := services.Connect(ctx)
	if err != nil {
		return err
	}
	defer systemd.Close()

	watching, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		showPhases(watching, machine)
	}()
	err = systemd.Start(ctx, unit)
	stop()
	<-watched
	if err == nil {
		return nil
	}
	if why, statusErr := systemd.StatusText(ctx, unit); statusErr == nil && why != "" {
		return fmt.Errorf("%s", why)
	}
	return err
}

// showPhases prints the name of each phase when it begins.
func showPhases(ctx context.Context, machine *phase.Machine) {
	shown := ""
	// That the stamp cannot be watched is no reason to fail: the unit does its work all the same.
	_ = machine.State.WatchStamp(ctx, machine.Booted, func(stamp *state.Stamp) {
		if stamp.Phase != "" && stamp.Phase != shown {
			shown = stamp.Phase
			fmt.Fprintf(os.Stderr, "%s …\n", shown)
		}
	})
}
