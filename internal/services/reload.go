package services

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/systemd"
)

// Reload makes those read their files again whose files changed. It tries all of them, and tells which failed. Each is done inside step.
func Reload(ctx context.Context, what impact.Reload, step func(name string, do func() error) error) error {
	var failed []error
	if what.Catalog {
		failed = append(failed, step("reload the journal's catalog", func() error { return run(ctx, "journalctl", "--update-catalog") }))
	}
	if what.DBus {
		failed = append(failed, step("reload the bus", func() error { return reloadBus(ctx) }))
	}
	if what.Udev {
		failed = append(failed, step("reload udev", func() error { return reloadUdev(ctx) }))
	}
	if what.Units {
		// Not over a connection of our own: as root, that is a private one, on which systemd announces every unit that it has read
		// again, and is busy with that for as long as a fifth of the reload.
		failed = append(failed, step("reload systemd", func() error { return run(ctx, "systemctl", "daemon-reload") }))
	}
	if what.Polkit {
		failed = append(failed, step("reload polkit", func() error { return reloadPolkit(ctx) }))
	}
	if what.Users {
		failed = append(failed, step("reload the managers of users", func() error { return reloadUsers(ctx) }))
	}
	return errors.Join(failed...)
}

// reloadPolkit has polkit read its actions and rules again, which waits for changes in the directories that it knows: those of the tree before. Versions that cannot
// reload are restarted; they keep nothing.
func reloadPolkit(ctx context.Context) error {
	return systemd.With(ctx, func(manager *systemd.Manager) error { return manager.ReloadOrTryRestart(ctx, "polkit.service") })
}

// reloadUsers has the managers of users that run read their units again, as systemd(1) says of SIGHUP. It does not wait for them: what a user runs is no reason to fail.
func reloadUsers(ctx context.Context) error {
	return systemd.With(ctx, func(manager *systemd.Manager) error { return manager.SignalMain(ctx, "user@*.service", unix.SIGHUP) })
}

// reloadBus has the bus read its policy and activation files again (D-Bus specification, org.freedesktop.DBus.ReloadConfig). A
// machine without a bus has nothing to reload.
func reloadBus(ctx context.Context) error {
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return nil
	}
	defer bus.Close()
	if err := bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.ReloadConfig", 0).Err; err != nil {
		return fmt.Errorf("reloading the bus: %w", err)
	}
	return nil
}

// reloadUdev does nothing where no udev runs, as in a container.
func reloadUdev(ctx context.Context) error {
	if _, err := os.Stat("/run/udev/control"); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return run(ctx, "udevadm", "control", "--reload")
}

func run(ctx context.Context, name string, args ...string) error {
	output, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
