// Package systemd speaks to systemd's manager: units, jobs, and what units tell. It knows the units of liveapply by name.
package systemd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Manager is a connection to it.
type Manager struct {
	Conn    *dbus.Conn
	signals *godbus.Conn    // by which its signals come
	lost    <-chan struct{} // closed when none comes any more
}

// ConnectToLook reaches systemd over the bus, where everybody may ask it.
func ConnectToLook(ctx context.Context) (*Manager, error) {
	return connect(func() (*godbus.Conn, error) { return godbus.ConnectSystemBus(godbus.WithContext(ctx)) })
}

// Connect reaches systemd by its private socket: as root, and also while the bus is not there.
func Connect(ctx context.Context) (*Manager, error) {
	return connect(func() (*godbus.Conn, error) {
		conn, err := godbus.Dial("unix:path=/run/systemd/private", godbus.WithContext(ctx))
		if err == nil {
			err = conn.Auth([]godbus.Auth{godbus.AuthExternal(strconv.Itoa(os.Getuid()))}) // there is no bus to say hello to
		}
		return conn, err
	})
}

func connect(dial func() (*godbus.Conn, error)) (*Manager, error) {
	var last *godbus.Conn
	conn, err := dbus.NewConnection(func() (conn *godbus.Conn, err error) {
		last, err = dial()
		return last, err
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to systemd: %w", err)
	}
	return &Manager{conn, last, last.Context().Done()}, nil
}

// With does something over a connection of Connect.
func With(ctx context.Context, do func(*Manager) error) error {
	manager, err := Connect(ctx)
	if err != nil {
		return err
	}
	defer manager.Close()
	return do(manager)
}

// Close ends the connection.
func (s *Manager) Close() { s.Conn.Close() }

// IsLost tells whether the connection was lost.
func (s *Manager) IsLost() bool {
	select {
	case <-s.lost:
		return true
	default:
		return false
	}
}

// Renew connects as Connect does if the connection was lost, as it is when systemd is executed again.
func (s *Manager) Renew(ctx context.Context) error {
	if !s.IsLost() {
		return nil
	}
	again, err := Connect(ctx)
	if err == nil {
		s.Close()
		*s = *again
	}
	return err
}

// Version is the first number in the version of the systemd that runs.
func (s *Manager) Version() (int, error) {
	text, err := s.Conn.GetManagerProperty("Version") // "257.13-1~deb13u1", with the quotes
	if err != nil {
		return 0, fmt.Errorf("asking systemd for its version: %w", err)
	}
	var version int
	if _, err := fmt.Sscanf(strings.TrimLeft(text, `"v`), "%d", &version); err != nil {
		return 0, fmt.Errorf("systemd has the version %s, which is no number", text)
	}
	return version, nil
}

// Queue starts a unit and does not wait.
func (s *Manager) Queue(ctx context.Context, name string) error {
	if _, err := s.Conn.StartUnitContext(ctx, name, "replace", nil); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	return nil
}

// Begun is a unit that was started.
type Begun struct {
	Job     uint32 // its number, which systemd gives once in a boot
	systemd *Manager
	name    string
	done    chan string
}

// Begin starts a unit.
func (s *Manager) Begin(ctx context.Context, name string) (*Begun, error) {
	return s.begin(ctx, name, "replace")
}

// begin is Begin with what becomes of other jobs of the unit (org.freedesktop.systemd1(5)).
func (s *Manager) begin(ctx context.Context, name, mode string) (*Begun, error) {
	b := &Begun{systemd: s, name: name, done: make(chan string, 1)}
	job, err := s.Conn.StartUnitContext(ctx, name, mode, b.done)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	b.Job = uint32(job)
	return b, nil
}

// Job returns the number of the job that a unit has now; 0 if it has none.
func (s *Manager) Job(ctx context.Context, name string) (uint32, error) {
	property, err := s.Conn.GetUnitPropertyContext(ctx, name, "Job") // org.freedesktop.systemd1(5): number and path
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
func (s *Manager) Jobs(ctx context.Context) ([]uint32, error) {
	jobs, err := s.Conn.ListJobsContext(ctx)
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
	err := b.systemd.Await(ctx, b.done)
	for errors.Is(err, errLost) {
		err = b.waitAnew(ctx)
	}
	if err != nil {
		return fmt.Errorf("starting %s: %w: see systemctl status %s", b.name, err, b.name)
	}
	return nil
}

// waitAnew is Wait for when the connection was lost. The job goes on, and keeps its number.
func (b *Begun) waitAnew(ctx context.Context) error {
	if err := b.systemd.Renew(ctx); err != nil {
		return err
	}
	signals := make(chan *godbus.Signal, 64)
	b.systemd.signals.Signal(signals)
	defer b.systemd.signals.RemoveSignal(signals)
	job, err := b.systemd.Job(ctx, b.name)
	if err != nil {
		return err
	}
	if job == b.Job {
		return b.systemd.Await(ctx, resultOf(ctx, signals, b.Job))
	}
	if now, err := b.systemd.ActiveState(ctx, b.name); err != nil || now != "failed" {
		return err
	}
	return errFailed
}

// resultOf gets the result of a job out of the signals of its end.
func resultOf(ctx context.Context, signals <-chan *godbus.Signal, job uint32) <-chan string {
	done := make(chan string, 1)
	go func() {
		for {
			select {
			case signal, ok := <-signals:
				if !ok {
					return
				}
				// org.freedesktop.systemd1(5): JobRemoved has its number, path, unit and result.
				if signal.Name == "org.freedesktop.systemd1.Manager.JobRemoved" && len(signal.Body) == 4 && signal.Body[0] == job {
					result, _ := signal.Body[3].(string)
					done <- result
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return done
}

// Failed is why a unit ended that applies a commit or goes back.
type Failed struct {
	Status int    // with which it ended, see state.Result.ExitStatus
	Why    string // as it has told
}

// Error tells why.
func (f *Failed) Error() string { return f.Why }

// Outcome is Wait for what applies a commit or goes back: if the unit has run, and failed, the error is Failed.
func (b *Begun) Outcome(ctx context.Context) error {
	err := b.Wait(ctx)
	if !errors.Is(err, errFailed) || ctx.Err() != nil {
		return err
	}
	why, textErr := b.systemd.StatusText(ctx, b.name)
	status, statusErr := b.systemd.Conn.GetServicePropertyContext(ctx, b.name, "ExecMainStatus")
	if textErr != nil || statusErr != nil || why == "" {
		return err
	}
	number, _ := status.Value.Value().(int32)
	return &Failed{int(number), why}
}

// Start starts a unit and waits until its job has ended. It fails unless the job has succeeded.
func (s *Manager) Start(ctx context.Context, name string) error {
	begun, err := s.Begin(ctx, name)
	if err != nil {
		return err
	}
	return begun.Wait(ctx)
}

// Run is Start for what applies a commit or goes back, see Outcome.
func (s *Manager) Run(ctx context.Context, name string) error {
	begun, err := s.Begin(ctx, name)
	if err != nil {
		return err
	}
	return begun.Outcome(ctx)
}

// Restart restarts a unit, however often that was done before, and waits until it has.
func (s *Manager) Restart(ctx context.Context, name string) error {
	// It also forgets how often it was started (StartLimitBurst= of systemd.unit(5)).
	if err := s.Conn.ResetFailedUnitContext(ctx, name); err != nil && !isNoSuchUnit(err) {
		return fmt.Errorf("restarting %s: %w", name, err)
	}
	done := make(chan string, 1)
	if _, err := s.Conn.RestartUnitContext(ctx, name, "replace", done); err != nil {
		return fmt.Errorf("restarting %s: %w", name, err)
	}
	if err := s.Await(ctx, done); err != nil {
		return fmt.Errorf("restarting %s: %w: see systemctl status %s", name, err, name)
	}
	return nil
}

// ReloadOrTryRestart has a unit read its files again if it runs, and waits until it has. There may be no such unit.
func (s *Manager) ReloadOrTryRestart(ctx context.Context, name string) error {
	return s.doIfThere(ctx, ctx, "reloading", name, s.Conn.ReloadOrTryRestartUnitContext)
}

// doIfThere has systemd make a job for a unit, unless there is no such unit, and waits for its end until another context is done.
func (s *Manager) doIfThere(ctx, waiting context.Context, doing, name string, makeJob func(context.Context, string, string, chan<- string) (int, error)) error {
	done := make(chan string, 1)
	_, err := makeJob(ctx, name, "replace", done)
	if isNoSuchUnit(err) {
		return nil
	}
	if err == nil {
		err = s.Await(waiting, done)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", doing, name, err)
	}
	return nil
}

// SignalMain sends a signal to the main processes of those units that run and that a pattern names.
func (s *Manager) SignalMain(ctx context.Context, pattern string, signal unix.Signal) error {
	units, err := s.Conn.ListUnitsByPatternsContext(ctx, []string{"active"}, []string{pattern})
	if err != nil {
		return fmt.Errorf("asking systemd for %s: %w", pattern, err)
	}
	var failed []error
	for _, u := range units {
		if err := s.Conn.KillUnitWithTarget(ctx, u.Name, dbus.Main, int32(signal)); err != nil && !isNoSuchUnit(err) {
			failed = append(failed, fmt.Errorf("sending %v to %s: %w", signal, u.Name, err))
		}
	}
	return errors.Join(failed...)
}

// Triggers lists the units that a socket, a path or a timer starts.
func (s *Manager) Triggers(ctx context.Context, name string) ([]string, error) {
	property, err := s.Conn.GetUnitPropertyContext(ctx, name, "Triggers")
	if err != nil {
		return nil, fmt.Errorf("asking systemd what %s starts: %w", name, err)
	}
	units, _ := property.Value.Value().([]string)
	return units, nil
}

// IsActive tells whether a unit runs, or is about to.
func (s *Manager) IsActive(ctx context.Context, name string) (bool, error) {
	now, err := s.ActiveState(ctx, name)
	return now == "active" || now == "reloading" || now == "activating", err
}

// Stop stops units that are no longer wanted, and waits for that.
func (s *Manager) Stop(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := s.stop(ctx, ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// stop stops a unit, and waits for that until another context is done.
func (s *Manager) stop(ctx, waiting context.Context, name string) error {
	return s.doIfThere(ctx, waiting, "stopping", name, s.Conn.StopUnitContext)
}

// errFailed is what a job ends with whose unit has run.
var errFailed = errors.New(`the job ended with "failed"`)

// errLost is what a wait ends with when systemd is executed again.
var errLost = errors.New("the connection to systemd was lost")

// Await waits for the end of a job, which is an error unless the job has succeeded.
func (s *Manager) Await(ctx context.Context, done <-chan string) error {
	select {
	case result := <-done:
		switch result {
		case "done":
			return nil
		case "assert":
			return errors.New("it is switched off by liveapply=off on the kernel command line")
		case "failed":
			return errFailed
		}
		return fmt.Errorf("the job ended with %q", result)
	case <-ctx.Done():
		return ctx.Err()
	case <-s.lost:
		return cmp.Or(ctx.Err(), errLost)
	}
}

// isNoSuchUnit: systemd forgets units that are inactive, and then cannot stop them.
func isNoSuchUnit(err error) bool {
	var answer godbus.Error
	return errors.As(err, &answer) && answer.Name == "org.freedesktop.systemd1.NoSuchUnit"
}

// StatusText returns what a unit last said of itself (STATUS= of sd_notify(3)).
func (s *Manager) StatusText(ctx context.Context, name string) (string, error) {
	property, err := s.Conn.GetServicePropertyContext(ctx, name, "StatusText")
	if err != nil {
		return "", fmt.Errorf("asking %s for its status: %w", name, err)
	}
	text, _ := property.Value.Value().(string)
	return text, nil
}

// HasFailed tells whether a unit has failed when it ran last. Everybody may ask; without a bus, nobody is told.
func HasFailed(ctx context.Context, name string) (bool, error) {
	manager, err := ConnectToLook(ctx)
	if err != nil {
		return false, nil
	}
	defer manager.Close()
	now, err := manager.ActiveState(ctx, name)
	return now == "failed", err
}

// ActiveState returns one of the words of systemctl is-active.
func (s *Manager) ActiveState(ctx context.Context, name string) (string, error) {
	property, err := s.Conn.GetUnitPropertyContext(ctx, name, "ActiveState")
	if err != nil {
		return "", fmt.Errorf("asking systemd for the state of %s: %w", name, err)
	}
	now, _ := property.Value.Value().(string)
	return now, nil
}

// ExecStart returns the program and the arguments of all commands that start a service.
func (s *Manager) ExecStart(ctx context.Context, name string) ([]string, error) {
	property, err := s.Conn.GetServicePropertyContext(ctx, name, "ExecStart")
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

// ResetFailed has a unit, its phases and its way back forget that they have failed.
func (s *Manager) ResetFailed(ctx context.Context, unit string) error {
	units, err := s.transactionUnits(ctx)
	if err != nil {
		return err
	}
	for _, u := range units {
		if !isOf(u.Name, unit) || u.ActiveState != "failed" {
			continue
		}
		if err := s.Conn.ResetFailedUnitContext(ctx, u.Name); err != nil && !isNoSuchUnit(err) {
			return fmt.Errorf("resetting the failure of %s: %w", u.Name, err)
		}
	}
	return nil
}

func isRunning(u dbus.UnitStatus) bool {
	return u.ActiveState == "activating" || u.ActiveState == "deactivating"
}
