// Package services is what liveapply asks of the services that run: of systemd, to start and watch units and to reload, and of
// those that have read files which changed.
package services

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/unit"
	godbus "github.com/godbus/dbus/v5"

	"github.com/liveapply/liveapply/internal/state"
)

// Systemd is a connection to the system's manager.
type Systemd struct{ conn *dbus.Conn }

// ConnectToLook reaches systemd over the bus, where everybody may ask it.
func ConnectToLook(ctx context.Context) (*Systemd, error) {
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting to systemd: %w", err)
	}
	return &Systemd{conn}, nil
}

// Connect reaches systemd by its private socket: as root, and also while the bus is not there.
func Connect(ctx context.Context) (*Systemd, error) {
	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting to systemd: %w", err)
	}
	return &Systemd{conn}, nil
}

// With does something over a connection of Connect.
func With(ctx context.Context, do func(*Systemd) error) error {
	systemd, err := Connect(ctx)
	if err != nil {
		return err
	}
	defer systemd.Close()
	return do(systemd)
}

// Close ends the connection.
func (s *Systemd) Close() { s.conn.Close() }

// Version is the first number in the version of the systemd that runs.
func (s *Systemd) Version() (int, error) {
	text, err := s.conn.GetManagerProperty("Version") // "257.13-1~deb13u1", with the quotes
	if err != nil {
		return 0, fmt.Errorf("asking systemd for its version: %w", err)
	}
	var version int
	if _, err := fmt.Sscanf(strings.TrimLeft(text, `"v`), "%d", &version); err != nil {
		return 0, fmt.Errorf("systemd has the version %s, which is no number", text)
	}
	return version, nil
}

// ResetUnit goes back to the booted tree.
const ResetUnit = "liveapply-reset.service"

// OverlaysUnit makes the system what the stores of overlays say.
const OverlaysUnit = "liveapply-overlays.service"

// UpdatesUnit applies the updates images that the kernel command line names by URL, or those by path.
func UpdatesUnit(byURL bool) string {
	if byURL {
		return "liveapply-updates-url.service"
	}
	return "liveapply-updates.service"
}

// etcRevertUnit takes the changes of /etc back when it is stopped, at shutdown at the latest.
const etcRevertUnit = "liveapply-etc-revert.service"

// liveTarget is reached when a tree has been applied.
const liveTarget = "liveapply.target"

// recoverPath watches the stamp, between transactions.
const recoverPath = "liveapply-recover.path"

// liveUnits are active while a tree other than the booted one is live.
var liveUnits = []string{liveTarget, recoverPath, etcRevertUnit}

// StartEtcRevert makes sure that changes of /etc will be taken back at shutdown. No unit of a transaction requires it: it would be
// started for one that is refused, and stopping it after a rollback would stop a transaction that waits for its turn.
func StartEtcRevert(ctx context.Context) error {
	systemd, err := Connect(ctx)
	if err != nil {
		return err
	}
	defer systemd.Close()
	return systemd.Start(ctx, etcRevertUnit)
}

// StopWatch stops watching the stamp: a transaction, which changes it in every phase, begins.
func StopWatch(ctx context.Context) error {
	return With(ctx, func(systemd *Systemd) error { return systemd.Stop(ctx, recoverPath) })
}

// WatchStamp starts to watch the stamp, if something is live: a transaction has ended. It does not wait.
func WatchStamp(ctx context.Context) error {
	return With(ctx, func(systemd *Systemd) error { return systemd.Queue(ctx, recoverPath) })
}

// RestartLive tells those who wait for it that a tree has been applied: what liveapply.target wants is started, and what is also a part of it is
// restarted if it runs. It does not wait for that.
func RestartLive(ctx context.Context) error {
	return With(ctx, func(systemd *Systemd) error {
		if _, err := systemd.conn.RestartUnitContext(ctx, liveTarget, "replace", nil); err != nil {
			return fmt.Errorf("restarting %s: %w", liveTarget, err)
		}
		return nil
	})
}

// StopLive stops the units that are active while a tree other than the booted one is live. With keepEtc, /etc still has changes to be taken
// back at shutdown.
func StopLive(ctx context.Context, keepEtc bool) error {
	systemd, err := Connect(ctx)
	if err != nil {
		return err
	}
	defer systemd.Close()
	units := slices.Clone(liveUnits)
	if keepEtc {
		units = slices.DeleteFunc(units, func(unit string) bool { return unit == etcRevertUnit })
	}
	return systemd.Stop(ctx, units...)
}

// ApplyUnit is the unit that applies what request names.
func ApplyUnit(request string) string { return instance("liveapply@", request) }

// OverlayUnit is the unit that carries out a request to change overlays.
func OverlayUnit(id string) string { return instance("liveapply-overlay@", id) }

// MainUnit is the unit that others start, and wait for, to have request done.
func MainUnit(request string) string {
	if unit := onlyUnit(request); unit != "" {
		return unit
	}
	return ApplyUnit(request)
}

// UnitOf is the unit that a transaction belongs to.
func UnitOf(t *state.Transaction) string {
	if t.Unit == "" { // before units were noted
		return MainUnit(t.Request)
	}
	return t.Unit
}

// onlyUnit is the unit of a request that has only one; "" for the application of a commit.
func onlyUnit(request string) string {
	id, isOverlay := state.IsOverlayRequest(request)
	switch {
	case request == state.ResetRequest:
		return ResetUnit
	case isOverlay && id != "":
		return OverlayUnit(id)
	case isOverlay:
		return OverlaysUnit
	}
	return ""
}

// RollbackUnit is the unit that takes a transaction of request back that did not end. A reset goes on instead; of overlays, the stores say
// whether it came true.
func RollbackUnit(request string) string {
	if _, isOverlay := state.IsOverlayRequest(request); isOverlay {
		return OverlaysUnit
	}
	if request == state.ResetRequest {
		return ResetUnit
	}
	return instance("liveapply-rollback@", request)
}

func instance(prefix, request string) string {
	return prefix + unit.UnitNameEscape(request) + ".service"
}

// PhaseUnit is the unit that runs a phase of a request. Those of a reset are all run by one.
func PhaseUnit(request, phase string) string {
	if unit := onlyUnit(request); unit != "" {
		return unit
	}
	return instance("liveapply-"+phase+"@", request)
}

// Queue starts a unit and does not wait.
func (s *Systemd) Queue(ctx context.Context, name string) error {
	if _, err := s.conn.StartUnitContext(ctx, name, "replace", nil); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	return nil
}

// Begun is a unit that was started.
type Begun struct {
	Job     uint32 // its number, which systemd gives once in a boot
	systemd *Systemd
	name    string
	done    chan string
}

// Begin starts a unit.
func (s *Systemd) Begin(ctx context.Context, name string) (*Begun, error) {
	b := &Begun{systemd: s, name: name, done: make(chan string, 1)}
	job, err := s.conn.StartUnitContext(ctx, name, "replace", b.done)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	b.Job = uint32(job)
	return b, nil
}

// Job returns the number of the job that a unit has now; 0 if it has none.
func (s *Systemd) Job(ctx context.Context, name string) (uint32, error) {
	property, err := s.conn.GetUnitPropertyContext(ctx, name, "Job") // org.freedesktop.systemd1(5): number and path
	if err != nil {
		return 0, fmt.Errorf("asking systemd for the job of %s: %w", name, err)
	}
	job, _ := property.Value.Value().([]any)
	if len(job) == 0 {
		return 0, fmt.Errorf("systemd tells no job of %s", name)
	}
	number, _ := job[0].(uint32)
	return number, nil
}

// Jobs lists the numbers of all jobs.
func (s *Systemd) Jobs(ctx context.Context) ([]uint32, error) {
	jobs, err := s.conn.ListJobsContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking systemd for its jobs: %w", err)
	}
	var numbers []uint32
	for _, job := range jobs {
		numbers = append(numbers, job.Id)
	}
	return numbers, nil
}

// Wait returns when the job of the unit has ended. It fails unless the job has succeeded.
func (b *Begun) Wait(ctx context.Context) error {
	if err := await(ctx, b.done); err != nil {
		return fmt.Errorf("starting %s: %w: see systemctl status %s", b.name, err, b.name)
	}
	return nil
}

// Outcome is Wait for what applies a commit or goes back: if that fails, the error is the reason, which the unit has told.
func (b *Begun) Outcome(ctx context.Context) error {
	err := b.Wait(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if why, statusErr := b.systemd.StatusText(ctx, b.name); statusErr == nil && why != "" {
		return errors.New(why)
	}
	return err
}

// Start starts a unit and waits until its job has ended. It fails unless the job has succeeded.
func (s *Systemd) Start(ctx context.Context, name string) error {
	begun, err := s.Begin(ctx, name)
	if err != nil {
		return err
	}
	return begun.Wait(ctx)
}

// Run is Start for what applies a commit or goes back, see Outcome.
func (s *Systemd) Run(ctx context.Context, name string) error {
	begun, err := s.Begin(ctx, name)
	if err != nil {
		return err
	}
	return begun.Outcome(ctx)
}

// Restart restarts a unit, however often that was done before, and waits until it has.
func (s *Systemd) Restart(ctx context.Context, name string) error {
	// It also forgets how often it was started (StartLimitBurst= of systemd.unit(5)).
	if err := s.conn.ResetFailedUnitContext(ctx, name); err != nil && !isNoSuchUnit(err) {
		return fmt.Errorf("restarting %s: %w", name, err)
	}
	done := make(chan string, 1)
	if _, err := s.conn.RestartUnitContext(ctx, name, "replace", done); err != nil {
		return fmt.Errorf("restarting %s: %w", name, err)
	}
	if err := await(ctx, done); err != nil {
		return fmt.Errorf("restarting %s: %w: see systemctl status %s", name, err, name)
	}
	return nil
}

// IsActive tells whether a unit runs, or is about to.
func (s *Systemd) IsActive(ctx context.Context, name string) (bool, error) {
	now, err := s.activeState(ctx, name)
	return now == "active" || now == "reloading" || now == "activating", err
}

// WantAgain has a boot that is still under way look again for what it is to start: units may be wanted that were not there when it began.
func WantAgain(ctx context.Context) error {
	return With(ctx, func(systemd *Systemd) error {
		state, err := systemd.conn.SystemStateContext(ctx)
		if err != nil {
			return fmt.Errorf("asking systemd how far the boot has come: %w", err)
		}
		if state.Value.Value() != "initializing" {
			return nil
		}
		return systemd.Queue(ctx, "default.target")
	})
}

// Stop stops units that are no longer wanted, and waits for that.
func (s *Systemd) Stop(ctx context.Context, names ...string) error {
	for _, name := range names {
		done := make(chan string, 1)
		if _, err := s.conn.StopUnitContext(ctx, name, "replace", done); isNoSuchUnit(err) {
			continue
		} else if err != nil {
			return fmt.Errorf("stopping %s: %w", name, err)
		}
		if err := await(ctx, done); err != nil {
			return fmt.Errorf("stopping %s: %w", name, err)
		}
	}
	return nil
}

// await waits for the end of a job, which is an error unless the job has succeeded.
func await(ctx context.Context, done <-chan string) error {
	select {
	case result := <-done:
		switch result {
		case "done":
			return nil
		case "assert":
			return errors.New("it is switched off by liveapply=off on the kernel command line")
		}
		return fmt.Errorf("the job ended with %q", result)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isNoSuchUnit: systemd forgets units that are inactive, and then cannot stop them.
func isNoSuchUnit(err error) bool {
	var answer godbus.Error
	return errors.As(err, &answer) && answer.Name == "org.freedesktop.systemd1.NoSuchUnit"
}

// StatusText returns what a unit last said of itself (STATUS= of sd_notify(3)).
func (s *Systemd) StatusText(ctx context.Context, name string) (string, error) {
	property, err := s.conn.GetServicePropertyContext(ctx, name, "StatusText")
	if err != nil {
		return "", fmt.Errorf("asking %s for its status: %w", name, err)
	}
	text, _ := property.Value.Value().(string)
	return text, nil
}

// HasFailed tells whether a unit has failed when it ran last. Everybody may ask; without a bus, nobody is told.
func HasFailed(ctx context.Context, name string) (bool, error) {
	systemd, err := ConnectToLook(ctx)
	if err != nil {
		return false, nil
	}
	defer systemd.Close()
	now, err := systemd.activeState(ctx, name)
	return now == "failed", err
}

// activeState returns one of the words of systemctl is-active.
func (s *Systemd) activeState(ctx context.Context, name string) (string, error) {
	property, err := s.conn.GetUnitPropertyContext(ctx, name, "ActiveState")
	if err != nil {
		return "", fmt.Errorf("asking systemd for the state of %s: %w", name, err)
	}
	now, _ := property.Value.Value().(string)
	return now, nil
}

// ExecStart returns the program and the arguments of all commands that start a service.
func (s *Systemd) ExecStart(ctx context.Context, name string) ([]string, error) {
	property, err := s.conn.GetServicePropertyContext(ctx, name, "ExecStart")
	if err != nil {
		return nil, fmt.Errorf("asking %s for its command: %w", name, err)
	}
	var words []string
	commands, _ := property.Value.Value().([][]any) // org.freedesktop.systemd1(5): path, argv, and how it went
	for _, command := range commands {
		path, _ := command[0].(string)
		argv, _ := command[1].([]string)
		words = append(append(words, path), argv...)
	}
	return words, nil
}

// isOf tells whether a unit works for the one that a transaction belongs to: it is that one, a phase, or the way back.
func isOf(name, unit string) bool {
	_, instance, isInstance := strings.Cut(unit, "@")
	return name == unit || isInstance && strings.HasPrefix(name, "liveapply-") && strings.HasSuffix(name, "@"+instance)
}

// IsWorkingOn tells whether a unit, one of its phases or its way back runs or is about to.
func (s *Systemd) IsWorkingOn(ctx context.Context, unit string) (bool, error) {
	units, err := s.transactionUnits(ctx)
	return slices.ContainsFunc(units, func(u dbus.UnitStatus) bool { return isOf(u.Name, unit) && (u.JobId != 0 || isRunning(u)) }), err
}

// ResetFailed has a unit, its phases and its way back forget that they have failed.
func (s *Systemd) ResetFailed(ctx context.Context, unit string) error {
	units, err := s.transactionUnits(ctx)
	if err != nil {
		return err
	}
	for _, u := range units {
		if !isOf(u.Name, unit) || u.ActiveState != "failed" {
			continue
		}
		if err := s.conn.ResetFailedUnitContext(ctx, u.Name); err != nil && !isNoSuchUnit(err) {
			return fmt.Errorf("resetting the failure of %s: %w", u.Name, err)
		}
	}
	return nil
}

func isRunning(u dbus.UnitStatus) bool {
	return u.ActiveState == "activating" || u.ActiveState == "deactivating"
}

// transactionUnits lists the units of all transactions. (Patterns for the units of one request would have to be escaped once more: an instance can
// have backslashes.)
func (s *Systemd) transactionUnits(ctx context.Context) ([]dbus.UnitStatus, error) {
	units, err := s.conn.ListUnitsByPatternsContext(ctx, nil, []string{"liveapply@*.service", "liveapply-*@*.service", ResetUnit, OverlaysUnit, "liveapply-updates*.service"})
	if err != nil {
		return nil, fmt.Errorf("asking systemd for the units of transactions: %w", err)
	}
	return units, nil
}
