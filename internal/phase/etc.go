package phase

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/liveapply/liveapply/internal/deployments"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/overlay/follow"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/transaction"
)

// Etc brings /etc to the target's defaults.
func Etc(ctx context.Context, m *machine.Machine, request string) error {
	t, plan, err := transaction.Resume(ctx, m, "etc", request)
	if err != nil {
		return err
	}
	if plan.IsNothing() {
		return transaction.End(m, t)
	}
	storage, err := m.OpenStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	if err := storage.OpenRepo(); err != nil {
		return err
	}
	if err := follow.WithoutOverlays(ctx, storage, func(aside bool) error { return mergeEtc(ctx, storage, t, plan, aside) }); err != nil {
		return err
	}
	return transaction.End(m, t)
}

// mergeEtc merges, and compiles what has to fit. If files of overlays have gone aside, the plan did not know what is beneath them: it is made again.
func mergeEtc(ctx context.Context, s *machine.Storage, t *state.Transaction, plan *state.Plan, aside bool) error {
	if aside {
		if err := planEtc(ctx, s, plan); err != nil {
			return err
		}
	}
	report.Status("merging %d changes into /etc", len(plan.Etc.Changes))
	if err := t.Step("merge", func() error {
		result, err := changeEtc(ctx, s, plan.Etc)
		if err == nil {
			report.Kept(t, "/etc", result.Kept)
		}
		return err
	}); err != nil {
		return err
	}
	return rebuildDatabases(ctx, s, t, plan)
}

// planEtc plans the way from the live commit's defaults to the target's.
func planEtc(ctx context.Context, s *machine.Storage, plan *state.Plan) error {
	from, err := s.Tree(plan.From, machine.EtcTree)
	if err != nil {
		return err
	}
	to, err := s.Tree(plan.Live, machine.EtcTree)
	if err != nil {
		return err
	}
	plan.Etc, err = etcmerge.MakePlan(ctx, s.Repo, from, to, s.EtcDirs())
	return err
}

// changeEtc carries a plan out, under what takes it back at shutdown.
func changeEtc(ctx context.Context, s *machine.Storage, plan *etcmerge.Plan) (*etcmerge.Result, error) {
	if len(plan.Changes) > 0 {
		if err := deployments.KeepEtcFromStaged(ctx, s.Machine); err != nil {
			return nil, err
		}
	}
	var made atomic.Int64
	defer report.Counting("merging changes into /etc", len(plan.Changes), made.Load)()
	return etcmerge.Apply(ctx, s.Repo, plan, s.EtcDirs(), &made)
}

// database is a file that a tool compiles into /etc. Usually it comes with the commit; one that was compiled on this
// machine has to be compiled again when its sources change.
type database struct {
	path  string // below /etc
	tool  []string
	stale func(*state.Plan) bool
}

var databases = []database{
	{"ld.so.cache", []string{"ldconfig", "-X"}, func(p *state.Plan) bool { return p.Impact.Libraries }},
	{"udev/hwdb.bin", []string{"systemd-hwdb", "update"}, func(p *state.Plan) bool { return p.Impact.Hwdb }},
}

// rebuildDatabases compiles those again that are stale and did not come with the target.
func rebuildDatabases(ctx context.Context, s *machine.Storage, t *state.Transaction, plan *state.Plan) error {
	for _, d := range databases {
		fromTarget := slices.ContainsFunc(plan.Etc.Changes, func(c etcmerge.Change) bool { return c.Path == d.path })
		_, err := os.Lstat(filepath.Join(s.EtcDirs().Etc, d.path))
		if !d.stale(plan) || fromTarget || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		report.Status("running %s", d.tool[0])
		if err := t.Step(d.tool[0], func() error { return runIntoEtc(ctx, s, d.tool, d.path) }); err != nil {
			return err
		}
	}
	return nil
}
