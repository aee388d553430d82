package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/bus"
	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/systemd"
)

const applyDetails = `COMMIT is a checksum, the beginning of one, or a ref. Without it, the commit of the staged or pending deployment is applied.`

// applyOptions are what the administrator wants differently this time.
type applyOptions struct {
	*starter
	allow            string
	force, transient bool
	packages, except []string
	restartServices  string
	dryRun, asJSON   bool
}

func declareApply(flags *pflag.FlagSet) *applyOptions {
	o := &applyOptions{}
	flags.StringVar(&o.allow, "allow", "", "what `KIND` of change may be applied: additive, replace, force (default from liveapply.conf)")
	flags.BoolVar(&o.force, "force", false, "the same as --allow=force: also another release, or an older commit")
	flags.BoolVar(&o.transient, "transient", false, "do not stage a deployment: the next boot leads where it would have led before")
	flags.StringVar(&o.restartServices, "restart-services", "", "`HOW` services that run on replaced files are restarted: none, changed, rolling")
	flags.StringSliceVar(&o.packages, "packages", nil, "apply only these `PACKAGES`, and what they need; the rest stays as booted")
	flags.StringSliceVar(&o.except, "except", nil, "apply all but these `PACKAGES`, which stay as booted")
	flags.BoolVar(&o.dryRun, "dry-run", false, "change nothing, and show what would be done, or why it would be refused")
	flags.BoolVar(&o.asJSON, "json", false, "with --dry-run, print the summary of the plan as JSON")
	o.starter = starterFlags(flags)
	return o
}

func applyCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	o := declareApply(flags)
	return func(ctx context.Context, args []string) error {
		request, err := o.request()
		if err != nil {
			return usageError{fmt.Errorf("apply: %w", err)}
		}
		request.Revision = revision(args)
		if o.asJSON && !o.dryRun {
			return usageError{errors.New("apply: --json goes with --dry-run")}
		}
		if isUser() && !o.dryRun {
			return o.ask(ctx, "Apply", request.Revision, bus.Options(request))
		}
		open := machine.OpenAsRoot
		if o.dryRun {
			open = machine.Open
		}
		m, err := open()
		if err != nil {
			return err
		}
		if o.dryRun {
			return dryRun(ctx, m, args, request, o.asJSON)
		}
		target, err := chooseTarget(m, args)
		if errors.Is(err, errNoTarget) {
			o.say("No deployment is staged or pending.")
			return errNothing
		}
		if err != nil {
			return err
		}
		return o.starter.apply(ctx, m, target, request)
	}
}

// request puts the options into words for prepare.
func (o *applyOptions) request() (config.Request, error) {
	request := config.Request{Transient: o.transient, Packages: o.packages, Exclude: o.except, RequestedBy: requester()}
	var err error
	if o.restartServices != "" {
		if request.RestartServices, err = config.ParseRestartServices(o.restartServices); err != nil {
			return request, fmt.Errorf("--restart-services: %w", err)
		}
	}
	if err := config.CheckNames(o.packages); err != nil {
		return request, fmt.Errorf("--packages: %w", err)
	}
	if err := config.CheckNames(o.except); err != nil {
		return request, fmt.Errorf("--except: %w", err)
	}
	switch {
	case len(o.packages) > 0 && len(o.except) > 0:
		return request, errors.New("--packages and --except: give one of the two")
	case o.force && o.allow != "" && o.allow != string(config.Force):
		return request, errors.New("--force is --allow=force: give one of the two")
	case o.force:
		request.Allow = config.Force
	case o.allow != "":
		if request.Allow, err = config.ParseAllow(o.allow); err != nil {
			err = fmt.Errorf("--allow: %w", err)
		}
	}
	return request, err
}

// revision is what the arguments ask for, "" if they leave it to the machine.
func revision(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// errNoTarget tells that there is nothing that the next boot would bring.
var errNoTarget = errors.New("no deployment is staged or pending")

// chooseTarget resolves the argument; without one it is what the next boot leads to.
func chooseTarget(m *machine.Machine, args []string) (ostree.Checksum, error) {
	if len(args) == 1 {
		return m.Resolve(args[0])
	}
	next, err := m.NextBoot()
	if err != nil {
		return ostree.Checksum{}, err
	}
	if next.Booted {
		return ostree.Checksum{}, errNoTarget
	}
	return next.Commit, nil
}

// apply applies a commit unless it is live.
func (s *starter) apply(ctx context.Context, m *machine.Machine, target ostree.Checksum, request config.Request) error {
	live, err := m.Live()
	if err != nil {
		return err
	}
	underWay, err := m.UnderWay()
	if live == target && underWay == nil && err == nil && !request.IsPartial() { // what is under way may yet be taken back
		s.say("Commit %s is live already.", named(target))
		return errNothing
	}
	request.RequestedFrom = ownUnit(ctx)
	done := fmt.Sprintf("Commit %s is live.", named(target))
	if request.IsPartial() {
		done = fmt.Sprintf("Commit %s is live in part; liveapplyctl status names it.", named(target))
	}
	return s.start(ctx, m, job{
		unit:   systemd.ApplyUnit(target.String()),
		phases: applyPhases,
		target: target,
		done:   done,
		ask:    &request,
	})
}

// ownUnit is the unit that waits for the end, and must not be restarted before; "" if that is not known.
func ownUnit(ctx context.Context) string {
	manager, err := systemd.Connect(ctx)
	if err != nil {
		return ""
	}
	defer manager.Close()
	unit, err := manager.UnitOf(ctx, uint32(os.Getpid()))
	if err != nil {
		return ""
	}
	return unit
}

// requester says who asks, for the history.
func requester() string {
	if user := os.Getenv("SUDO_USER"); user != "" {
		return fmt.Sprintf("liveapplyctl, %s by sudo", user)
	}
	return fmt.Sprintf("liveapplyctl, uid %d", os.Getuid())
}
