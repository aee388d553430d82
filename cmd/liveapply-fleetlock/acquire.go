package main

import (
	"context"
	"fmt"

	"github.com/liveapply/liveapply/internal/fleetlock"
)

// acquire takes a slot, and waits until there is one, for however long that may take.
func acquire(ctx context.Context) error {
	client, err := configured()
	if err != nil {
		return err
	}
	status("asking for %v", client)
	if err := fleetlock.Patient.Retry(ctx, client.Acquire, telling(fmt.Sprintf("waiting for %v", client))); err != nil {
		return fmt.Errorf("taking %v: %w", client, err)
	}
	status("holds %v", client)
	fmt.Printf("holds %v\n", client)
	return nil
}
