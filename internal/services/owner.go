package services

import (
	"path"
	"strconv"
	"strings"
)

// OwnerKind is what has started a process.
type OwnerKind string

// The kinds.
const (
	SystemUnit OwnerKind = "system"  // a unit of the system's manager
	UserUnit   OwnerKind = "user"    // a unit of a user's manager
	Session    OwnerKind = "session" // a login
	NoUnit     OwnerKind = "none"    // nothing that systemd knows
)

// Owner is what has to be restarted, or logged out of, for a process to start again.
type Owner struct {
	Kind OwnerKind `json:"kind"`
	Unit string    `json:"unit"`           // session-3.scope of a session; empty if there is none
	User *uint32   `json:"user,omitempty"` // of a user's unit, or a session
}

// OwnerOf tells the owner of a process by its cgroup, whose path systemd makes of slices, the unit, and what the unit has below (systemd's
// docs/CGROUP_DELEGATION.md). A user's units are below that of the user's manager.
func OwnerOf(cgroup string) Owner {
	unit, user, below := firstUnit(cgroup)
	switch {
	case unit == "":
		return Owner{Kind: NoUnit}
	case user != nil && strings.HasPrefix(unit, "session-"):
		return Owner{Session, unit, user}
	case user != nil && strings.HasPrefix(unit, "user@"):
		if inner, _, _ := firstUnit(below); inner != "" && inner != "init.scope" {
			return Owner{UserUnit, inner, user}
		}
	}
	return Owner{Kind: SystemUnit, Unit: unit}
}

// firstUnit returns the outermost unit that is no slice, the user in whose slice it is, and what is below it.
func firstUnit(cgroup string) (unit string, user *uint32, below string) {
	rest := strings.Trim(cgroup, "/")
	for rest != "" {
		name, deeper, _ := strings.Cut(rest, "/")
		name = strings.TrimPrefix(name, "_") // systemd's escape of a name that a controller has
		if path.Ext(name) != ".slice" {
			if path.Ext(name) == "" {
				return "", nil, ""
			}
			return name, user, deeper
		}
		if uid, ok := strings.CutPrefix(strings.TrimSuffix(name, ".slice"), "user-"); ok {
			if number, err := strconv.ParseUint(uid, 10, 32); err == nil {
				id := uint32(number)
				user = &id
			}
		}
		rest = deeper
	}
	return "", nil, ""
}

// isContainer tells whether a cgroup is below the slice in which systemd-machined and container managers put theirs.
func isContainer(cgroup string) bool { return strings.HasPrefix(cgroup, "/machine.slice/") }
