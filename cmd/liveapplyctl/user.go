package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/godbus/dbus/v5"

	"github.com/liveapply/liveapply/internal/bus"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
)

// isUser tells whether it is somebody else than root who asks, for whom the D-Bus service starts the units, if polkit lets them.
func isUser() bool { return os.Geteuid() != 0 }

// allowInteraction lets polkit ask for a password; godbus takes that flag off a call's own.
func allowInteraction(message *dbus.Message) {
	if message.Type == dbus.TypeMethodCall {
		message.Flags |= dbus.FlagAllowInteractiveAuthorization
	}
}

// ask has the D-Bus service do what a method of it does, and returns when that has ended.
func (s *starter) ask(ctx context.Context, method string, args ...any) error {
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx), dbus.WithOutgoingInterceptor(allowInteraction))
	if err != nil {
		return fmt.Errorf("only root can change the running system without the bus, by which others ask for it: %w", err)
	}
	defer conn.Close()
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	if err := conn.AddMatchSignalContext(ctx, dbus.WithMatchSender(bus.Name), dbus.WithMatchInterface(bus.Interface), dbus.WithMatchMember("Finished")); err != nil {
		return fmt.Errorf("asking %s: %w", bus.Name, err)
	}
	var job dbus.ObjectPath
	call := conn.Object(bus.Name, bus.Path).CallWithContext(ctx, bus.Interface+"."+method, 0, args...)
	switch err := call.Store(&job); {
	case bus.IsNothingToDo(err):
		s.say("%v", err)
		return errNothing
	case err != nil:
		return err
	case s.noWait:
		s.say("Started.\nSee liveapplyctl status.")
		return nil
	}
	return s.awaitFinished(ctx, signals, job)
}

// awaitFinished waits for the end of a job.
func (s *starter) awaitFinished(ctx context.Context, signals <-chan *dbus.Signal, job dbus.ObjectPath) error {
	for {
		select {
		case <-ctx.Done():
			return errors.New("interrupted, but it goes on: see liveapplyctl status")
		case signal, ok := <-signals:
			if !ok {
				return errors.New("the connection to the bus was lost, but it goes on: see liveapplyctl status")
			}
			var ended dbus.ObjectPath
			var result, message string
			if err := dbus.Store(signal.Body, &ended, &result, &message); err != nil || ended != job {
				continue
			}
			if result := state.Result(result); result != state.Applied && result != state.Reset {
				return &systemd.Failed{Status: result.ExitStatus(), Why: message}
			}
			s.say("%s", message)
			return nil
		}
	}
}
