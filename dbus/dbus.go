// Package dbus has what is installed for the bus, for the programs that need to know it.
package dbus

import _ "embed"

// Manager describes the interface org.liveapply1.Manager, in the introspection format of D-Bus.
//
//go:embed org.liveapply1.Manager.xml
var Manager []byte
