package bus

import (
	"fmt"

	"github.com/godbus/dbus/v5"
)

// The names of errors. Those of liveapply are explained in org.liveapply1.Manager.xml.
const (
	errNoSuchCommit  = "org.liveapply1.Error.NoSuchCommit"
	errNothingToDo   = "org.liveapply1.Error.NothingToDo"
	errInvalidOption = "org.liveapply1.Error.InvalidOption"
	errUnderWay      = "org.liveapply1.Error.TransactionUnderWay"

	errFailed           = "org.freedesktop.DBus.Error.Failed"
	errAccessDenied     = "org.freedesktop.DBus.Error.AccessDenied"
	errInteractive      = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
	errServiceUnknown   = "org.freedesktop.DBus.Error.ServiceUnknown"
	errNameHasNoOwner   = "org.freedesktop.DBus.Error.NameHasNoOwner"
	errUnknownInterface = "org.freedesktop.DBus.Error.UnknownInterface"
	errUnknownProperty  = "org.freedesktop.DBus.Error.UnknownProperty"
	errReadOnly         = "org.freedesktop.DBus.Error.PropertyReadOnly"
	errLimitsExceeded   = "org.freedesktop.DBus.Error.LimitsExceeded"
)

func errorf(name, format string, args ...any) *dbus.Error {
	return dbus.NewError(name, []any{fmt.Sprintf(format, args...)})
}

// IsNothingToDo tells whether a method has answered that there is nothing to do.
func IsNothingToDo(err error) bool { return isNamed(err, errNothingToDo) }

// failed is an error that has no name of its own.
func failed(err error) *dbus.Error { return errorf(errFailed, "%v", err) }
