package config

import (
	"errors"
	"fmt"
	"strings"
)

// AutoApply is what is applied without a person; the zero value is the default.
type AutoApply int

// The values of [Auto] Apply= and liveapply.auto=.
const (
	AutoAdditive AutoApply = iota // what Additive allows
	AutoReplace                   // what Replace allows
	AutoNo                        // nothing
)

// Auto is the section [Auto]: what happens without a person. Its calendar expressions, time spans and commands are systemd's, which checks
// them when it loads the units that liveapply-generator makes of them.
type Auto struct {
	Apply              AutoApply // Apply=
	Windows            []Window  // Window=: when; at any time if there is none
	FleetLock          string    // FleetLock=: where a slot is taken before something is applied, a URL; empty if nowhere
	FleetLockGroup     string    // FleetLockGroup=; empty for the default one
	Update             bool      // Update=: whether updates are fetched
	OnCalendar         []string  // OnCalendar=: when they are; empty leaves it to the unit, as with the three below
	RandomizedDelaySec string    // RandomizedDelaySec=
	Persistent         string    // Persistent=
	UpdateCommand      string    // UpdateCommand=: how they are, an ExecStart=
}

// Window is a time in which something may be applied.
type Window struct {
	Calendar string // when it begins: systemd.time(7), CALENDAR EVENTS
	Length   string // PARSING TIME SPANS, without spaces
}

func (w Window) String() string { return w.Calendar + " " + w.Length }

// set takes a key of the section. Those that are lists grow, and an empty value empties them.
func (a *Auto) set(key, value string) (err error) {
	switch key {
	case "Apply":
		a.Apply, err = parseAutoApply(value)
	case "Window":
		a.Windows, err = appendWindow(a.Windows, value)
	case "FleetLock":
		a.FleetLock, err = value, checkURL(value)
	case "FleetLockGroup":
		a.FleetLockGroup, err = value, checkGroup(value)
	case "Update":
		a.Update, err = parseBool(value)
	case "OnCalendar":
		if value == "" {
			a.OnCalendar = nil
			return nil
		}
		a.OnCalendar = append(a.OnCalendar, value)
	case "RandomizedDelaySec":
		a.RandomizedDelaySec = value
	case "Persistent":
		a.Persistent = value
		_, err = parseBool(value)
	case "UpdateCommand":
		a.UpdateCommand = value
	default:
		return errUnknown
	}
	return err
}

func parseAutoApply(s string) (AutoApply, error) {
	switch s {
	case "additive":
		return AutoAdditive, nil
	case "replace":
		return AutoReplace, nil
	case "no":
		return AutoNo, nil
	}
	return AutoNo, fmt.Errorf("%q is none of no, additive, replace", s)
}

// appendWindow parses "Sat..Sun 02:00 4h": the last word is the length.
func appendWindow(windows []Window, value string) ([]Window, error) {
	if value == "" {
		return nil, nil
	}
	i := strings.LastIndexAny(value, " \t")
	if i < 0 {
		return nil, errors.New("not a calendar expression and a length, as in Sat..Sun 02:00 4h")
	}
	return append(windows, Window{strings.TrimSpace(value[:i]), value[i+1:]}), nil
}

// checkURL looks at the beginning only: net/url would take the generator, which each boot waits for, a twentieth longer.
func checkURL(value string) error {
	if value == "" {
		return nil
	}
	for _, scheme := range []string{"http://", "https://"} {
		if host, found := strings.CutPrefix(value, scheme); found && host != "" {
			return nil
		}
	}
	return errors.New("not the URL of a server, as in http://fleet.example.com")
}

// checkGroup refuses what the FleetLock protocol does.
func checkGroup(value string) error {
	isOther := func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '.' || r == '-')
	}
	if strings.ContainsFunc(value, isOther) {
		return errors.New("a group is of letters, digits, dots and dashes")
	}
	return nil
}

// AutoAllow is the policy for what is applied without a person; not ok means that nothing is. What Allow= forbids to people stays forbidden.
func (c *Config) AutoAllow() (allow Allow, ok bool) {
	switch {
	case c.Auto.Apply == AutoNo:
		return "", false
	case c.Auto.Apply == AutoReplace && c.Allow != Additive:
		return Replace, true
	}
	return Additive, true
}

// LoadAuto reads the configuration for what happens without a person: liveapply.auto= on the kernel command line is before [Auto] Apply=.
func (d Dirs) LoadAuto() (*Config, error) {
	config, err := d.Load("")
	if err != nil {
		return nil, err
	}
	words, err := d.kernelCommandLine()
	if err != nil {
		return nil, err
	}
	for _, word := range words {
		value, found := strings.CutPrefix(word, "liveapply.auto=")
		if !found {
			continue
		}
		if config.Auto.Apply, err = parseAutoApply(value); err != nil {
			return nil, fmt.Errorf("kernel command line: liveapply.auto=: %w", err)
		}
	}
	return config, nil
}
