package phase

import (
	"context"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/state"
)

// DryRun makes the plan that an application of a commit would carry out, or says why it would be refused. It changes nothing, takes
// part in no transaction, and does not wait for one. For those who may not read all of /etc, the plan has no Etc.
func DryRun(ctx context.Context, m *machine.Machine, rev string, request config.Request) (*state.Plan, error) {
	storage, err := m.ViewStorage()
	if err != nil {
		return nil, err
	}
	defer storage.Close()
	if err := storage.OpenRepo(); err != nil {
		return nil, err
	}
	p := &preparation{machine: m, storage: storage, onlyLooks: true}
	if err := p.resolve(rev); err != nil {
		return nil, err
	}
	if p.config, err = p.machine.Config.LoadWith(request); err != nil {
		return nil, err
	}
	p.plan.Transient = p.config.Transient
	if err := p.decide(ctx); err != nil {
		return &p.plan, err
	}
	return &p.plan, p.lookAtTmpfiles()
}
