package state

import "fmt"

// Formats is the version of all that one helper hands to another: transaction, plan, journal of /etc, manifest of a layer, stamp, history, requests. It grows
// when a helper of the version before could no longer go on with what this one writes. docs/state.md has the rule.
const Formats = 3

// CheckFormats tells whether this helper can go on with what one of a version hands over.
func CheckFormats(version int) error {
	if version < 1 || version > Formats {
		return fmt.Errorf("this liveapply knows the formats up to version %d, not version %d", Formats, version)
	}
	return nil
}
