// Package phase holds the phases of a transaction, and their ways back. Each file reads like the paragraph on its phase in
// docs/phases.md; what the steps consist of is in the packages below.
//
// A phase is a process of its own, started by its unit. It takes over from the phase before through the files of package
// state, and can be run again after it was killed at any instruction.
package phase

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/layer"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/pkgdb"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
	"github.com/liveapply/liveapply/internal/transaction"
	"github.com/liveapply/liveapply/internal/treediff"
)

// Prepare finds out whether a commit can be applied and makes all that the later phases need: the layer, and the plan.
// What it refuses has changed nothing.
func Prepare(ctx context.Context, m *machine.Machine, request string) error {
	unit := systemd.ApplyUnit(request)
	t, err := transaction.Claim(ctx, m, unit, request)
	if err != nil {
		return err
	}
	// How an earlier transaction of the same request ended, which nobody asked for: its unit was stopped.
	if _, err := m.State.TakeOutcome(request); err != nil {
		return err
	}
	storage, err := m.OpenStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	if err := prepare(ctx, storage, t); err != nil {
		if ctx.Err() != nil {
			err = ErrStopped
		}
		// Nothing has been switched: there is nothing to take back that this process cannot.
		return errors.Join(err, rolledBack(lasting(ctx), storage, t, refusal(err)))
	}
	return nil
}

// ErrStopped is why a phase ends that was stopped, whatever that has kept it from.
var ErrStopped = errors.New("it was stopped before its end")

// refusal is how a request ends that prepare refuses.
func refusal(why error) state.Outcome {
	return state.Outcome{Result: state.Refused, Reason: why.Error(), Phase: "prepare", Passing: isPassing(why)}
}

func prepare(ctx context.Context, s *machine.Storage, t *state.Transaction) error {
	m := s.Machine
	if err := s.OpenRepo(); err != nil {
		return err
	}
	p := &preparation{machine: m, storage: s, transaction: t}
	defer func() { p.pruning.Close() }()
	if err := p.identify(ctx); err != nil {
		return err
	}
	if err := transaction.Begin(m, t, "prepare"); err != nil {
		return err
	}
	if err := p.apply(ctx); err != nil {
		return err
	}
	// Last, because it is the one step that others see before the switch.
	if err := p.ensureNextBoot(ctx); err != nil {
		return err
	}
	if err := m.State.WritePlan(&p.plan); err != nil {
		return err
	}
	if err := transaction.End(m, t); err != nil {
		return err
	}
	return ctx.Err() // stopped: the phases that come next will not run
}

// preparation is what prepare finds out and makes.
type preparation struct {
	machine     *machine.Machine
	storage     *machine.Storage
	transaction *state.Transaction
	rev         string // what was asked for
	config      *config.Config
	plan        state.Plan
	changes     []treediff.Change // of /usr, booted to target: what the layer has
	fromLive    []treediff.Change // of /usr, live to target, if booted is not live
	databases   []string          // directories below /usr with databases of packages
	layerReload impact.Reload     // when the layer comes, or goes
	layerUnits  []string          // whose files differ then
	lacks       string            // what keeps the target from going on with the application, or from taking it back; "" if nothing does
	tryHelper   bool              // the helper of the target is another one
	pruning     *os.File          // holds pruning off until it is closed
	onlyLooks   bool              // nothing is going to be applied; whoever asks may not be root
}

// identify fills in what the transaction is about: from where to where, for whom, under which rules.
func (p *preparation) identify(ctx context.Context) error {
	t := p.transaction
	var err error
	if p.config, err = transaction.TakeRequest(ctx, p.machine, systemd.UnitOf(t)); err != nil {
		return err
	}
	t.RequestedBy, t.Allow = p.config.RequestedBy, string(p.config.Allow)
	err = p.resolve(t.Request)
	t.From, t.Target = p.plan.From, p.plan.Target // also of what is refused, if it is known
	if err != nil {
		return err
	}
	for _, warning := range p.config.Warnings {
		report.Warn("%s", warning)
	}
	p.plan.Transaction, p.plan.Transient = t.ID, p.config.Transient
	return nil
}

// planServices takes from the configuration what is to be done to services.
func (p *preparation) planServices(ctx context.Context) (err error) {
	p.plan.Services = handling(p.config)
	if !acts(p.plan.Services) {
		return nil
	}
	if p.plan.Services.HealthTimeout, err = systemd.TimeSpan(ctx, p.config.HealthTimeout); err != nil {
		return fmt.Errorf("HealthTimeout=%s in liveapply.conf: %w", p.config.HealthTimeout, err)
	}
	return nil
}

// handling is what the configuration says about services.
func handling(c *config.Config) state.Handling {
	return state.Handling{
		Restart: string(c.RestartServices), StartNew: c.StartNewServices,
		Ignored: c.IgnoreUnits, Restarted: c.RestartUnits, Reloaded: c.ReloadUnits, Caller: c.RequestedFrom,
	}
}

// resolve finds out from where to where it goes, and whether it could go anywhere.
func (p *preparation) resolve(rev string) error {
	live, err := p.machine.Live()
	if err != nil {
		return err
	}
	target, err := p.storage.Repo.Resolve(rev)
	if err != nil {
		return err
	}
	p.rev = rev
	p.plan.Booted, p.plan.From, p.plan.Target = p.machine.Booted.Commit, live, target
	if err := p.refuseUnlocked(); err != nil {
		return err
	}
	return p.refuseOtherEtc()
}

// apply prepares the change of /usr and /etc to the target.
func (p *preparation) apply(ctx context.Context) error {
	step := p.transaction.Step
	if err := step("compare the trees", func() error { return p.decide(ctx) }); err != nil {
		return err
	}
	p.transaction.Live, p.transaction.Partial = p.plan.Live, p.plan.Partial
	if p.plan.IsNothing() {
		return nil
	}
	var err error
	if p.pruning, err = p.keepTarget(ctx); err != nil {
		return err
	}
	if p.config.VerifyContent {
		if err := step("verify the files", func() error { return p.verify(ctx) }); err != nil {
			return err
		}
	}
	if err := step("build the layer", func() error { return p.build(ctx) }); err != nil {
		return err
	}
	if err := step("try the target", func() error { return p.try(ctx) }); err != nil {
		return err
	}
	return p.keepWayBack(ctx)
}

// decide makes the plan, or refuses. It only reads.
func (p *preparation) decide(ctx context.Context) error {
	if p.plan.From == p.plan.Target && p.wanted().IsWhole() {
		p.plan.Live, p.plan.Layers = p.plan.Target, p.machine.LayersOf(p.plan.Target)
		p.plan.Etc = &etcmerge.Plan{}
		p.plan.Impact = impact.Of(nil, p.plan.Etc, pkgdb.Diff(&pkgdb.Database{}, &pkgdb.Database{}))
		return nil
	}
	if err := p.refuseTarget(); err != nil {
		return err
	}
	if err := p.refuseUnsigned(ctx, p.plan.Target, p.rev); err != nil {
		return err
	}
	if err := p.takePart(); err != nil || p.plan.IsNothing() {
		return err
	}
	report.Status("comparing the trees")
	if err := p.compare(ctx); err != nil {
		return err
	}
	p.plan.Layers = p.machine.LayersOf(p.plan.Live)
	if err := p.planServices(ctx); err != nil {
		return err
	}
	if err := p.refuseByPolicy(); err != nil {
		return err
	}
	if err := p.refuseWhiteouts(); err != nil {
		return err
	}
	if err := p.refuseLostMounts(); err != nil {
		return err
	}
	if err := p.refuseUnmergeable(); err != nil {
		return err
	}
	if err := p.lookForWayBack(); err != nil {
		return err
	}
	if err := p.refuseWithoutWayBack(); err != nil {
		return err
	}
	return p.refuseTooLittleSpace()
}

// compare diffs the trees, for /usr from booted, because that is what the layer is put on; for /etc from live, because its
// defaults are what /etc descends from now.
func (p *preparation) compare(ctx context.Context) error {
	booted, err := p.storage.Tree(p.plan.Booted, machine.UsrTree)
	if err != nil {
		return err
	}
	target, err := p.storage.Tree(p.plan.Live, machine.UsrTree)
	if err != nil {
		return err
	}
	all, err := treediff.Diff(ctx, p.storage.Repo, booted, target)
	if err != nil {
		return err
	}
	if p.changes, err = keepRunningKernel(all); err != nil {
		return err
	}
	if len(p.changes) == 0 {
		// The commits differ elsewhere. The layer of the target is then the root of /usr alone.
		p.changes = []treediff.Change{{Old: booted.Entry(), New: target.Entry()}}
	}
	err = planEtc(ctx, p.storage, &p.plan)
	if p.onlyLooks && errors.Is(err, fs.ErrPermission) {
		p.plan.Etc, err = nil, nil // part of /etc is for root
	}
	if err != nil {
		return err
	}
	if err := p.weigh(ctx, target); err != nil {
		return err
	}
	// Since the boot: what an earlier application brought is not there yet, either. Also what does not become live: the running kernel's modules.
	beside, err := p.staysAsBooted(all)
	p.plan.Impact.RebootRequired = append(impact.RebootFor(all), beside...)
	return err
}

// weigh says what the change means: for what is live, and, for the layer, for what was booted.
func (p *preparation) weigh(ctx context.Context, target ostree.Tree) error {
	packages, err := p.comparePackages()
	if err != nil {
		return err
	}
	p.plan.Impact = impact.Of(p.changes, p.plan.Etc, packages)
	p.layerReload, p.layerUnits = p.plan.Impact.Reload, p.plan.Impact.Units.All()
	if p.plan.From == p.plan.Booted {
		p.plan.Impact.Files.Bytes, err = p.bytesOf(p.changes)
		return err
	}
	live, err := p.storage.Tree(p.plan.From, machine.UsrTree)
	if err != nil {
		return err
	}
	if p.fromLive, err = treediff.Diff(ctx, p.storage.Repo, live, target); err != nil {
		return err
	}
	// /usr shows the running kernel's modules of the booted tree all the time.
	p.fromLive = slices.DeleteFunc(p.fromLive, func(change treediff.Change) bool { return isOfRunningKernel(change.Path) })
	p.plan.Impact = impact.Of(p.fromLive, p.plan.Etc, packages)
	p.layerReload = p.layerReload.Union(p.plan.Impact.Reload)
	p.plan.Impact.Files.Bytes, err = p.bytesOf(p.fromLive)
	return err
}

// bytesOf is how much content comes with changes.
func (p *preparation) bytesOf(changes []treediff.Change) (bytes int64, err error) {
	for _, change := range changes {
		if change.New.Kind != ostree.KindFile {
			continue
		}
		size, err := p.storage.Repo.Size(change.New.Checksum)
		if err != nil {
			return 0, fmt.Errorf("/usr/%s: %w", change.Path, err)
		}
		bytes += size
	}
	return bytes, nil
}

// comparePackages compares the packages of the live commit and the target. A database that cannot be read is only in the way where the
// policy asks for it.
func (p *preparation) comparePackages() (pkgdb.Difference, error) {
	live, err := p.storage.Repo.Commit(p.plan.From)
	if err != nil {
		return pkgdb.Difference{}, err
	}
	target, err := p.storage.Repo.Commit(p.plan.Live)
	if err != nil {
		return pkgdb.Difference{}, err
	}
	old, new, err := pkgdb.ReadBoth(p.storage.Repo, live, target, p.config.PackageDatabase)
	if err == nil {
		for _, db := range []*pkgdb.Database{old, new} {
			if dir, ok := strings.CutPrefix(db.Directory(), machine.UsrTree+"/"); ok {
				p.databases = append(p.databases, dir)
			}
		}
		return pkgdb.Diff(old, new), nil
	}
	if p.config.Allow == config.Additive {
		return pkgdb.Difference{}, err
	}
	report.Warn("%v; going by files alone", err)
	return pkgdb.Diff(&pkgdb.Database{}, &pkgdb.Database{}), nil
}

// keepRunningKernel takes the modules of the running kernel out of the diff: it may need one at any time.
func keepRunningKernel(changes []treediff.Change) ([]treediff.Change, error) {
	return layer.Keep(changes, runningModules())
}

// isOfRunningKernel tells whether a path of /usr is of that.
func isOfRunningKernel(path string) bool {
	return path == runningModules() || strings.HasPrefix(path, runningModules()+"/")
}

// runningModules is the directory in /usr with the modules of the running kernel.
var runningModules = sync.OnceValue(func() string {
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		panic(err) // uname(2) fails for a bad address alone
	}
	return "lib/modules/" + unix.ByteSliceToString(uname.Release[:])
})

// verify reads every file that is going to be linked.
func (p *preparation) verify(ctx context.Context) error {
	report.Status("verifying the content of the changed files")
	var looked atomic.Int64
	defer report.Counting("verifying the content of the changed files", len(p.changes), looked.Load)()
	workers, ctx := errgroup.WithContext(ctx)
	workers.SetLimit(verifyWorkers)
	for _, change := range p.changes {
		if change.New.Kind != ostree.KindFile || ctx.Err() != nil {
			looked.Add(1)
			continue
		}
		workers.Go(func() error {
			defer looked.Add(1)
			if err := p.storage.Repo.VerifyFile(change.New.Checksum); err != nil {
				return fmt.Errorf("/usr/%s of the target: %w", change.Path, err)
			}
			return nil
		})
	}
	return workers.Wait()
}

// verifyWorkers read in parallel; storage rarely gains from more.
const verifyWorkers = 4

// build makes the layer.
func (p *preparation) build(ctx context.Context) error {
	report.Status("building the layer: %d changes", len(p.changes))
	if err := p.remember(); err != nil {
		return err
	}
	return p.storage.BuildLayer(&p.plan, p.layerReload, p.layerUnits, func(tree string) error {
		var progress layer.Progress
		defer report.Counting("building the layer", len(p.changes), progress.Made)()
		_, err := layer.Build(ctx, p.storage.Repo, p.changes, tree, &progress)
		return err
	})
}

// remember notes what the trees have, for those who want to know what processes run on.
func (p *preparation) remember() error {
	if p.plan.From == p.plan.Booted {
		if err := p.machine.Trees.Describe(p.plan.Booted, nil); err != nil {
			return err
		}
		if err := p.machine.Trees.Shows(p.machine.Usr.Path, p.plan.Booted); err != nil {
			return err
		}
	}
	return p.machine.Trees.Describe(p.plan.Live, p.changes)
}
