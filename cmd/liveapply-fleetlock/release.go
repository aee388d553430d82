package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/liveapply/liveapply/internal/fleetlock"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
)

// release gives the slot back when no transaction is under way and the machine is healthy, and tries until the server has taken it.
func release(ctx context.Context) error {
	client, err := configured()
	if errors.Is(err, errNoServer) {
		return nil // nobody knows any more who would have to be told
	}
	if err != nil {
		return err
	}
	status("giving back %v", client)
	attempt := func(ctx context.Context) error {
		if err := mayRelease(ctx); err != nil {
			return fleetlock.Wait(err)
		}
		// One that has been sent is answered: the slot may be taken again right after this has ended, and what arrives late would give it back.
		return client.Release(context.WithoutCancel(ctx))
	}
	err = fleetlock.Patient.Retry(ctx, attempt, telling(fmt.Sprintf("keeping %v", client)))
	switch {
	case err == nil:
		fmt.Printf("gave back %v\n", client)
		return nil
	case ctx.Err() != nil: // the slot is taken once more, or the machine goes down
		return nil
	}
	return fmt.Errorf("giving back %v: %w", client, err)
}

// mayRelease waits for the end of a transaction, and says why the slot is to be kept all the same.
func mayRelease(ctx context.Context) error {
	if err := state.System.AwaitEnd(ctx); err != nil {
		return err
	}
	manager, err := systemd.Connect(ctx)
	if err != nil {
		return err
	}
	defer manager.Close()
	// A transaction that has not begun yet has a unit that is about to run.
	if working, err := manager.IsWorking(ctx); err != nil {
		return err
	} else if working {
		return errors.New("a transaction is about to begin, or to end")
	}
	failed, err := manager.FailedSince(ctx, systemd.FleetLockUnit)
	if err == nil && len(failed) > 0 {
		err = fmt.Errorf("since it was taken, units have failed: %s", strings.Join(failed, " "))
	}
	return err
}
