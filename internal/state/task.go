package state

import "time"

// Action is what is done to a unit because something that it uses has changed.
type Action string

// The actions.
const (
	Restart Action = "restart"
	Reload  Action = "reload"
	Start   Action = "start"  // it is new, and wanted by what is active
	Stop    Action = "stop"   // its unit file is gone
	Reexec  Action = "reexec" // systemd itself
	Leave   Action = "leave"  // it would need a restart, and is left alone
)

// Handling is what is to be done to services when a commit has become live.
type Handling struct {
	Restart       string        `json:"restart"` // RestartServices=
	StartNew      bool          `json:"start_new"`
	HealthTimeout time.Duration `json:"health_timeout"`
	Ignored       []string      `json:"ignored"` // patterns of units, as the next two
	Restarted     []string      `json:"restarted"`
	Reloaded      []string      `json:"reloaded"`
	Caller        string        `json:"caller"` // the unit that asked, which waits for the end
}

// Task is what is to be done to a unit, and why.
type Task struct {
	Unit   string `json:"unit"`
	Action Action `json:"action"`
	Why    string `json:"why"`
	// Idle is set for a socket for which nothing runs: to restart it interrupts nobody.
	Idle bool `json:"idle,omitempty"`
}
