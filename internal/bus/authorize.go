package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/godbus/dbus/v5"
)

// The actions of polkit, see org.liveapply1.policy.
const (
	actionApply    = "org.liveapply1.apply"
	actionReset    = "org.liveapply1.reset"
	actionRollback = "org.liveapply1.rollback"
)

// caller is who called a method, as the bus says.
type caller struct {
	name        string // unique, on the bus
	uid         uint32
	pid         uint32 // 0 if the bus does not tell
	interactive bool   // may be asked for a password
}

func (s *Service) callerOf(ctx context.Context, message *dbus.Message) (caller, *dbus.Error) {
	c := caller{name: callOf(message).sender, interactive: message.Flags&dbus.FlagAllowInteractiveAuthorization != 0}
	var credentials map[string]dbus.Variant
	err := s.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetConnectionCredentials", 0, c.name).Store(&credentials)
	if err != nil {
		return c, errorf(errAccessDenied, "the bus does not know who asks: %v", err)
	}
	uid, known := credentials["UnixUserID"].Value().(uint32)
	if !known {
		return c, errorf(errAccessDenied, "the bus does not know who asks")
	}
	c.uid = uid
	c.pid, _ = credentials["ProcessID"].Value().(uint32)
	return c, nil
}

// describe says who asks, for the history, and from which unit.
func (s *Service) describe(ctx context.Context, c caller) (who, unit string) {
	who = fmt.Sprintf("D-Bus, uid %d", c.uid)
	if c.pid == 0 {
		return who, ""
	}
	// A unit cannot choose its name, as a process can. That the history is readable does not depend on it.
	if unit, err := s.system.UnitOf(ctx, c.pid); err == nil && unit != "" {
		return who + " (" + unit + ")", unit
	}
	return who, ""
}

// authorize refuses a caller who may not do what action names. Root may do all, also while there is no polkit. details are for the rules of
// polkit.
func (s *Service) authorize(ctx context.Context, c caller, action string, details map[string]string) *dbus.Error {
	if c.uid == 0 {
		return nil
	}
	const allowInteraction = 1 // of CheckAuthorization's flags
	var flags uint32
	if c.interactive {
		flags = allowInteraction
	}
	subject := struct {
		Kind    string
		Details map[string]dbus.Variant
	}{"system-bus-name", map[string]dbus.Variant{"name": dbus.MakeVariant(c.name)}}
	var result struct {
		IsAuthorized, IsChallenge bool
		Details                   map[string]string
	}
	err := s.conn.Object("org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority").CallWithContext(ctx,
		"org.freedesktop.PolicyKit1.Authority.CheckAuthorization", 0, subject, action, details, flags, "").Store(&result)
	switch {
	case isNamed(err, errServiceUnknown, errNameHasNoOwner):
		return errorf(errAccessDenied, "only root may do this on a machine without polkit: ask as root, for example with sudo")
	case err != nil:
		return errorf(errAccessDenied, "polkit did not answer whether this is allowed: %v", err)
	case result.IsAuthorized:
		return nil
	case result.IsChallenge && !c.interactive:
		return errorf(errInteractive, "%s needs a password: ask with interactive authorization allowed (busctl --allow-interactive-authorization=yes), "+
			"ask as root, or allow it with a rule of polkit", action)
	}
	return errorf(errAccessDenied, "polkit does not allow %s: ask as root, or allow it with a rule of polkit", action)
}

// isNamed tells whether an error is an answer with one of these names.
func isNamed(err error, names ...string) bool {
	var answer dbus.Error
	return errors.As(err, &answer) && slices.Contains(names, answer.Name)
}
