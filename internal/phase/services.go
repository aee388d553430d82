package phase

import (
	"context"

	"github.com/liveapply/liveapply/internal/services"
)

// Services makes those read their files again whose files changed.
func (m *Machine) Services(ctx context.Context, request string) error {
	t, plan, err := m.resume("services", request)
	if err != nil {
		return err
	}
	if !plan.IsNothing() {
		status("reloading")
		if err := services.Reload(ctx, plan.Impact.Reload, t.Step); err != nil {
			return err
		}
	}
	return m.end(t)
}
