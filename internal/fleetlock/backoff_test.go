package fleetlock

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestDelaysGrowUpToTheMost(t *testing.T) {
	b := Backoff{First: time.Second, Most: time.Minute}
	for n, about := range map[int]time.Duration{0: 1, 1: 2, 2: 4, 5: 32, 6: 60, 7: 60, 100_000_000: 60} {
		about *= time.Second
		different := map[time.Duration]bool{}
		for range 50 {
			delay := b.delay(n)
			if delay < about/2 || delay > about {
				t.Errorf("after %d attempts it waits %v, want from %v to %v", n, delay, about/2, about)
			}
			different[delay] = true
		}
		if len(different) < 10 {
			t.Errorf("after %d attempts there are but %d delays", n, len(different))
		}
	}
}

func TestRetryEndsWithWhatIsNoWait(t *testing.T) {
	fatal := errors.New("fatal")
	for _, last := range []error{nil, fatal, &Refusal{Status: 400}} {
		attempts, told := 0, 0
		err := Backoff{time.Microsecond, time.Millisecond}.Retry(t.Context(), func(context.Context) error {
			if attempts++; attempts < 4 {
				return fmt.Errorf("attempt %d: %w", attempts, ErrWait)
			}
			return last
		}, func(why error) {
			if told++; why.Error() != fmt.Sprintf("attempt %d: not now", told) {
				t.Errorf("it waits because of %v", why)
			}
		})
		if err != last || attempts != 4 || told != 3 {
			t.Errorf("got %v after %d attempts and %d waits, want %v after 4 and 3", err, attempts, told, last)
		}
	}
}

func TestRetryIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	err := Backoff{time.Hour, time.Hour}.Retry(ctx, func(context.Context) error { return ErrWait }, func(error) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
