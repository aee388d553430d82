package state

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/partial"
)

// Plan is what prepare has decided and the later phases do. It is /run/liveapply/plan.json, 0600.
type Plan struct {
	Transaction string          `json:"transaction"`
	Booted      ostree.Checksum `json:"booted"`
	From        ostree.Checksum `json:"from"` // live before
	Target      ostree.Checksum `json:"target"`
	Live        ostree.Checksum `json:"live"`              // live then: Target, or a commit made of a part of it
	Partial     *partial.About  `json:"partial,omitempty"` // what Live is, if it is no whole target
	Layers      []string        `json:"layers"`            // of Live, top first, without the booted tree
	Transient   bool            `json:"transient"`
	Impact      impact.Impact   `json:"impact"`
	Etc         *etcmerge.Plan  `json:"etc"`
	Services    Handling        `json:"services"`
	// TmpfilesChanges is only for those who look: the lines of changed fragments of tmpfiles.d that change or remove what is there.
	TmpfilesChanges []string `json:"tmpfiles_changes,omitempty"`
}

// check refuses what no WritePlan has written.
func (p *Plan) check() error {
	if p.Transaction == "" || p.Target.IsZero() || p.Live.IsZero() || p.Live != p.From && p.Etc == nil {
		return errors.New("it is no whole plan")
	}
	return nil
}

// IsNothing tells whether there is nothing to apply: it is live already.
func (p *Plan) IsNothing() bool { return p.From == p.Live }

// NextBoot is the commit that the next boot shall lead to.
func (p *Plan) NextBoot() ostree.Checksum {
	if p.Partial != nil {
		return p.Partial.Of
	}
	return p.Target
}

// Plan reads the plan of a transaction. Without one prepare has not come to its end, which is an error: a phase that
// needs a plan must not run before it.
func (d Dirs) Plan(t *Transaction) (*Plan, error) {
	plan := &Plan{}
	found, err := readJSON(d.planPath(), plan)
	if err != nil {
		return nil, err
	}
	if !found || plan.Transaction != t.ID {
		return nil, fmt.Errorf("transaction %s has no plan: start liveapply@%s.service, which runs prepare first", t.ID, t.Request)
	}
	return plan, nil
}

// WritePlan hands the plan to the later phases.
func (d Dirs) WritePlan(plan *Plan) error { return writeJSON(d.planPath(), 0o600, plan) }

// RemovePlan removes the plan: it has been carried out or given up.
func (d Dirs) RemovePlan() error { return remove(d.planPath()) }

func (d Dirs) planPath() string { return filepath.Join(d.Run, "plan.json") }
