package phase

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/state"
)

// Etc brings /etc to the target's defaults.
func (m *Machine) Etc(ctx context.Context, request string) error {
	t, plan, err := m.resume(ctx, "etc", request)
	if err != nil {
		return err
	}
	if plan.IsNothing() {
		return m.end(t)
	}
	storage, err := m.openStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	if err := storage.openRepo(); err != nil {
		return err
	}
	if err := storage.withoutOverlays(ctx, func(aside bool) error { return storage.mergeEtc(ctx, t, plan, aside) }); err != nil {
		return err
	}
	return m.end(t)
}

// mergeEtc merges, and compiles what has to fit. If files of overlays have gone aside, the plan did not know what is beneath them: it is made again.
func (s *storage) mergeEtc(ctx context.Context, t *state.Transaction, plan *state.Plan, aside bool) error {
	if aside {
		if err := s.planEtc(ctx, plan); err != nil {
			return err
		}
	}
	status("merging %d changes into /etc", len(plan.Etc.Changes))
	if err := t.Step("merge", func() error {
		result, err := s.changeEtc(ctx, plan.Etc)
		if err == nil {
			logKept(t, "/etc", result.Kept)
		}
		return err
	}); err != nil {
		return err
	}
	return s.rebuildDatabases(ctx, t, plan)
}

// planEtc plans the way from the live commit's defaults to the target's.
func (s *storage) planEtc(ctx context.Context, plan *state.Plan) error {
	from, err := s.tree(plan.From, etcTree)
	if err != nil {
		return err
	}
	to, err := s.tree(plan.Live, etcTree)
	if err != nil {
		return err
	}
	plan.Etc, err = etcmerge.MakePlan(ctx, s.Repo, from, to, s.etcDirs())
	return err
}

// changeEtc carries a plan out, under what takes it back at shutdown.
func (s *storage) changeEtc(ctx context.Context, plan *etcmerge.Plan) (*etcmerge.Result, error) {
	if len(plan.Changes) > 0 {
		if err := s.machine.keepEtcFromStaged(ctx); err != nil {
			return nil, err
		}
	}
	var made atomic.Int64
	defer counting("merging changes into /etc", len(plan.Changes), made.Load)()
	return etcmerge.Apply(ctx, s.Repo, plan, s.etcDirs(), &made)
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
func (s *storage) rebuildDatabases(ctx context.Context, t *state.Transaction, plan *state.Plan) error {
	for _, d := range databases {
		fromTarget := slices.ContainsFunc(plan.Etc.Changes, func(c etcmerge.Change) bool { return c.Path == d.path })
		_, err := os.Lstat(filepath.Join(s.etcDirs().Etc, d.path))
		if !d.stale(plan) || fromTarget || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		status("running %s", d.tool[0])
		if err := t.Step(d.tool[0], func() error { return s.runIntoEtc(ctx, d.tool, d.path) }); err != nil {
			return err
		}
	}
	return nil
}

// logKept says what a directory, which is /etc unless overlays put files into another one, keeps although the target, or the way back, has something else.
func logKept(t *state.Transaction, dir string, paths []string) {
	for _, path := range paths {
		path = filepath.Join(dir, path)
		announce(t, messageKept, path+" has been changed locally, and stays as it is", map[string]string{"LIVEAPPLY_PATH": path})
	}
}
