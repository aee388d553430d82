package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/liveapply/liveapply/internal/config"
)

// automatic makes what [Auto] of liveapply.conf asks for.
func automatic(configuration config.Dirs, dir string) error {
	c, err := configuration.LoadAuto()
	if err != nil {
		return err
	}
	if _, ok := c.AutoAllow(); ok {
		if err := want(dir, "paths.target", filepath.Join(unitDir, "liveapply-staged.path")); err != nil {
			return err
		}
		if err := startWithWindows(dir, c.Auto.Windows); err != nil {
			return err
		}
	}
	if c.Auto.FleetLock != "" {
		// A slot may be held since before the boot, whatever is applied now.
		if err := want(dir, "multi-user.target", filepath.Join(unitDir, "liveapply-fleetlock-release.service")); err != nil {
			return err
		}
	}
	// Also for somebody who has enabled the timer by systemctl.
	if err := write(dir, "liveapply-update.timer.d/10-liveapply.conf", timerOptions(c.Auto)); err != nil {
		return err
	}
	if err := write(dir, "liveapply-update.service.d/10-liveapply.conf", commandOptions(c.Auto)); err != nil {
		return err
	}
	if !c.Auto.Update {
		return nil
	}
	return want(dir, "timers.target", filepath.Join(unitDir, "liveapply-update.timer"))
}

// windowTimer has what is staged looked at when a window begins.
const windowTimer = "liveapply-window.timer"

func startWithWindows(dir string, windows []config.Window) error {
	if len(windows) == 0 {
		return nil
	}
	options := []*unit.UnitOption{
		unit.NewUnitOption("Unit", "Description", "Apply what is staged when a window begins"),
		unit.NewUnitOption("Unit", "Documentation", "man:liveapply.conf(5)"),
		unit.NewUnitOption("Timer", "Unit", "liveapply-staged.service"),
		unit.NewUnitOption("Timer", "AccuracySec", "1s"),
	}
	for _, window := range windows {
		options = append(options, unit.NewUnitOption("Timer", "OnCalendar", window.Calendar))
	}
	if err := write(dir, windowTimer, options); err != nil {
		return err
	}
	return want(dir, "timers.target", "../"+windowTimer)
}

// timerOptions are what differs from the timer as it is installed.
func timerOptions(auto config.Auto) []*unit.UnitOption {
	var options []*unit.UnitOption
	add := func(name, value string) { options = append(options, unit.NewUnitOption("Timer", name, value)) }
	if len(auto.OnCalendar) > 0 {
		add("OnCalendar", "") // it would be a further time
	}
	for _, calendar := range auto.OnCalendar {
		add("OnCalendar", calendar)
	}
	if auto.RandomizedDelaySec != "" {
		add("RandomizedDelaySec", auto.RandomizedDelaySec)
	}
	if auto.Persistent != "" {
		add("Persistent", auto.Persistent)
	}
	return options
}

// commandOptions leave it to systemd to parse the command.
func commandOptions(auto config.Auto) []*unit.UnitOption {
	if auto.UpdateCommand == "" {
		return nil
	}
	return []*unit.UnitOption{
		unit.NewUnitOption("Service", "ExecStart", ""), // it would be a further command
		unit.NewUnitOption("Service", "ExecStart", auto.UpdateCommand),
	}
}

// write makes a unit, or a drop-in of one, unless there is nothing in it.
func write(dir, name string, options []*unit.UnitOption) error {
	if len(options) == 0 {
		return nil
	}
	path := filepath.Join(dir, name)
	content, err := io.ReadAll(unit.Serialize(options))
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, content, 0o644)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}
