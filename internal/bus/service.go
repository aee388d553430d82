// Package bus is the D-Bus service org.liveapply1, as dbus/org.liveapply1.Manager.xml describes it. It shows what the stamp says, and changes
// the system by starting units.
package bus

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"
	"github.com/godbus/dbus/v5/prop"

	liveapplydbus "github.com/liveapply/liveapply/dbus"
	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/state"
)

// What the service is called on the bus.
const (
	Name      = "org.liveapply1"
	Path      = dbus.ObjectPath("/org/liveapply1")
	Interface = "org.liveapply1.Manager"
)

// System is what the service shows and changes: [Machine], but in tests.
type System interface {
	Status() (*state.Stamp, error)
	Transaction() (*state.Transaction, error)
	LastEntry() (*state.Entry, error)
	IsClean() (bool, error)
	Resolve(rev string) (ostree.Checksum, error)
	NextBoot() (ostree.Deployment, error)
	// Share returns how much of a phase under way has been done, 0 to 1; 0 if that is not known.
	Share(ctx context.Context, request, phase string) float64
	// Watch calls changed whenever the stamp or the share may have changed, until ctx is done.
	Watch(ctx context.Context, changed func()) error
	// DryRun makes the plan of an application, or says why it would be refused.
	DryRun(ctx context.Context, rev string, request config.Request) (*state.Plan, error)
	// Start starts a unit that goes to target, with a request for it: who asked, and what it is to do differently. It returns when that has ended; if it
	// failed, with the reason.
	Start(ctx context.Context, unit string, target ostree.Checksum, request config.Request) error
	// UnitOf returns the unit that a process belongs to.
	UnitOf(ctx context.Context, pid uint32) (string, error)
}

// Service is the service on one connection.
type Service struct {
	conn   *dbus.Conn
	system System
	work   *work
	ctx    context.Context // of the methods and jobs: done when the service ends

	mu    sync.Mutex
	facts facts // as announced
	jobs  uint64

	diffs     chan struct{} // holds one for each comparison that runs or waits
	comparing sync.Mutex    // held by the one that runs
}

// Run serves until nothing has been asked for and no job has run for as long as idle says, or until ctx is done. connect makes a
// connection to the bus: [dbus.ConnectSystemBus], but in tests.
func Run(ctx context.Context, connect func(...dbus.ConnOption) (*dbus.Conn, error), system System, idle time.Duration) error {
	work := newWork()
	conn, err := connect(work.options()...)
	if err != nil {
		return fmt.Errorf("connecting to the bus: %w", err)
	}
	defer conn.Close()
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	s := &Service{conn: conn, system: system, work: work, ctx: running, diffs: make(chan struct{}, maxDiffs)}
	if s.facts, err = s.look(); err != nil {
		return err
	}
	if err := s.export(); err != nil {
		return fmt.Errorf("exporting %s: %w", Path, err)
	}
	watched := make(chan error, 1)
	go func() {
		watched <- system.Watch(running, func() { _, _ = s.refresh() }) // who reads a property is told of the error
	}()
	return s.serve(ctx, stop, watched, idle)
}

// serve owns the name as long as there is something to do.
//
// No call is lost when the service ends, because it gives the name up before. The bus handles messages one after the other: what it has sent
// here before it released the name is in front of its answer to that, and is thus known to work when the answer is there. If that is
// nothing, the service can end. For what comes after, the bus has another one started; systemd does that when this one has ended.
func (s *Service) serve(ctx context.Context, stop func(), watched <-chan error, idle time.Duration) error {
	for first := true; ; first = false {
		owner, err := s.conn.RequestName(Name, dbus.NameFlagDoNotQueue)
		if err != nil {
			return fmt.Errorf("asking the bus for the name %s: %w", Name, err)
		}
		if owner != dbus.RequestNameReplyPrimaryOwner && first {
			return fmt.Errorf("another process has the name %s on the bus", Name)
		}
		if err := s.awaitIdle(ctx, watched, idle); err != nil {
			return err
		}
		stopped := ctx.Err() != nil
		if _, err := s.conn.ReleaseName(Name); err != nil {
			return fmt.Errorf("releasing the name %s: %w", Name, err)
		}
		if stopped {
			stop() // jobs are left to their units
			s.awaitAnswers()
			return nil
		}
		if s.work.isNone() {
			return nil
		}
		// There was a call after all, so that the name is needed again. If the bus has started another one meanwhile, that has it, and this one
		// ends its jobs without. From now on a signal to stop is not heeded: systemd sends one because the name was given up.
		ctx = context.WithoutCancel(ctx)
	}
}

// awaitIdle returns when there has been nothing to do for a while, or ctx is done.
func (s *Service) awaitIdle(ctx context.Context, watched <-chan error, idle time.Duration) error {
	quiet := time.NewTimer(idle)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.conn.Context().Done():
			return errors.New("the connection to the bus was lost")
		case err := <-watched:
			return err
		case <-s.work.changed:
			quiet.Reset(idle)
		case <-quiet.C:
			if s.work.isNone() {
				return nil
			}
			quiet.Reset(idle)
		}
	}
}

// awaitAnswers waits until each call has been answered.
func (s *Service) awaitAnswers() {
	for s.work.hasCalls() && s.conn.Connected() {
		select {
		case <-s.work.changed:
		case <-s.conn.Context().Done():
		}
	}
}

// export puts the object on the connection.
func (s *Service) export() error {
	var node introspect.Node
	if err := xml.Unmarshal(liveapplydbus.Manager, &node); err != nil {
		return err
	}
	node.Interfaces = append(node.Interfaces, prop.IntrospectData)
	for name, object := range map[string]any{
		Interface:                             manager{s},
		"org.freedesktop.DBus.Properties":     properties{s},
		"org.freedesktop.DBus.Introspectable": introspect.NewIntrospectable(&node),
	} {
		if err := s.conn.Export(object, Path, name); err != nil {
			return err
		}
	}
	return nil
}
