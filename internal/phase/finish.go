package phase

import (
	"context"
	"errors"
	"fmt"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
	"github.com/liveapply/liveapply/internal/transaction"
)

// Ended is how an application ended that was not applied.
type Ended struct{ state.Outcome }

// Error tells why.
func (e *Ended) Error() string { return fmt.Sprintf("%s: %s", e.Result, e.Reason) }

// Finish is what liveapply@.service itself runs, when the phases have ended or, after a failure, the rollback has: it tells
// whoever started the unit how it went.
func Finish(ctx context.Context, m *machine.Machine, request string) error {
	if m.State.HasRequests() {
		// That of this start, if prepare was killed before it took it. Whoever asked then is told below.
		_, _ = transaction.TakeRequest(ctx, m, systemd.ApplyUnit(request))
	}
	outcome, err := m.State.TakeOutcome(request)
	if err != nil {
		return err
	}
	if outcome == nil {
		return errors.New("the phases did not run to their end; see systemctl status 'liveapply-*'")
	}
	if outcome.Reason != "" {
		report.Status("%s", outcome.Reason)
		return &Ended{*outcome}
	}
	if err := systemd.StopPhases(ctx, request); err != nil {
		report.Warn("%v", err)
	}
	stamp, err := m.Stamp()
	if err != nil {
		return err
	}
	report.Status("commit %s is live", stamp.Live)
	return nil
}
