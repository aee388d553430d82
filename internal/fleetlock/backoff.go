package fleetlock

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Backoff is how long to wait between two attempts: at first for about First, then for twice as long each time, up to Most. How long
// exactly is left to chance, so that machines that began at the same time, as after a power cut, do not go on together.
type Backoff struct{ First, Most time.Duration }

// Patient is the way of a machine that may have to wait for days: a slot that is given back is taken within a minute, and a
// thousand machines that wait are some twenty requests a second.
var Patient = Backoff{First: time.Second, Most: time.Minute}

// Retry makes attempts until one succeeds, or fails with an error that is no [ErrWait], or ctx is done. Before it waits, it tells why.
func (b Backoff) Retry(ctx context.Context, attempt func(context.Context) error, waiting func(why error)) error {
	for n := 0; ; n++ {
		err := attempt(ctx)
		if !errors.Is(err, ErrWait) || ctx.Err() != nil {
			return err
		}
		waiting(err)
		select {
		case <-time.After(b.delay(n)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// delay is how long to wait after n attempts.
func (b Backoff) delay(n int) time.Duration {
	delay := b.First
	for ; n > 0 && delay < b.Most; n-- {
		delay *= 2
	}
	delay = min(delay, b.Most)
	return delay/2 + rand.N(delay/2+1)
}
