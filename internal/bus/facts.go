package bus

import (
	"reflect"
	"slices"

	"github.com/godbus/dbus/v5"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/state"
)

// facts is what the properties say; the field names are theirs.
type facts struct {
	Booted, Live, Target, Phase string
	Progress                    float64
	RebootRequired              []string
}

// The phases of an application and those of a reset, in their order.
var (
	applying  = []string{"prepare", "mount", "etc", "tmpfiles", "services", "record"}
	resetting = []string{"etc", "mount", "record"}
)

// factsOf puts the stamp, the transaction under way, nil if there is none, and what has been done of its phase into the words of the interface.
func factsOf(stamp *state.Stamp, t *state.Transaction, share float64) facts {
	order := applying
	if t != nil && t.Request == state.ResetRequest {
		order = resetting
	}
	return facts{
		Booted: stamp.Booted.String(), Live: stamp.Live.String(), Target: nameOf(stamp.Target), Phase: stamp.Phase,
		Progress: progress(order, stamp.Phase, share), RebootRequired: append([]string{}, stamp.RebootRequired...),
	}
}

func nameOf(commit ostree.Checksum) string {
	if commit.IsZero() {
		return ""
	}
	return commit.String()
}

// progress is the share of the phases that have ended, from 0 to 1, with the share of the one under way that is done. It is 1 if no transaction
// is under way.
func progress(order []string, phase string, share float64) float64 {
	if phase == "" {
		return 1
	}
	return (float64(max(0, slices.Index(order, phase))) + share) / float64(len(order))
}

// after returns the facts with a progress that does not go back within a phase: prepare counts twice, and then does what cannot be counted.
func (f facts) after(before facts) facts {
	if f.Phase == before.Phase && f.Target == before.Target {
		f.Progress = max(f.Progress, before.Progress)
	}
	return f
}

// properties returns the values by name.
func (f facts) properties() map[string]dbus.Variant {
	values := map[string]dbus.Variant{}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[facts]()) {
		values[field.Name] = dbus.MakeVariant(reflect.ValueOf(f).FieldByIndex(field.Index).Interface())
	}
	return values
}

// changedSince returns the properties that are not as they were.
func (f facts) changedSince(before facts) map[string]dbus.Variant {
	values, old := f.properties(), before.properties()
	for name, value := range values {
		if reflect.DeepEqual(value, old[name]) {
			delete(values, name)
		}
	}
	return values
}
