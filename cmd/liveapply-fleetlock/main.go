// Command liveapply-fleetlock takes a slot of the fleet's lock, or gives it back. It is started by its units; no phase has an HTTP client
// in it, and what talks to a network is not root.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/fleetlock"
)

var verbs = map[string]func(context.Context) error{
	"acquire": acquire,
	"release": release,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if len(os.Args) != 2 || verbs[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: liveapply-fleetlock acquire|release\nstarted by liveapply-fleetlock.service and liveapply-fleetlock-release.service")
		os.Exit(2)
	}
	if err := verbs[os.Args[1]](ctx); err != nil {
		status("%v", err)
		// systemd reads the priority off the line (sd-daemon(3)).
		fmt.Fprintf(os.Stderr, "<%d>%v\n", journal.PriErr, err)
		os.Exit(1)
	}
}

var errNoServer = errors.New("liveapply.conf has no [Auto] FleetLock=: there is no server to ask for a slot")

// configured is the client that liveapply.conf describes.
func configured() (*fleetlock.Client, error) {
	c, err := config.System.Load("")
	if err != nil {
		return nil, err
	}
	if c.Auto.FleetLock == "" {
		return nil, errNoServer
	}
	server, err := fleetlock.ParseURL(c.Auto.FleetLock)
	if err != nil {
		return nil, fmt.Errorf("[Auto] FleetLock=%s in liveapply.conf: %w", c.Auto.FleetLock, err)
	}
	id, err := fleetlock.MachineID("/etc/machine-id")
	if err != nil {
		return nil, err
	}
	group := cmp.Or(c.Auto.FleetLockGroup, "default")
	return &fleetlock.Client{URL: server, Group: group, ID: id, HTTP: fleetlock.NewHTTP()}, nil
}

// status says what the unit is doing, for systemctl status and liveapplyctl status.
func status(format string, args ...any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " ") // a second line would be another message
	// Not under systemd there is nobody to tell.
	_, _ = daemon.SdNotify(false, "STATUS="+text)
}

// telling returns a function that tells why something is waited for: in the status, and in the journal when that is new.
func telling(what string) func(why error) {
	var told string
	return func(why error) {
		now := fmt.Sprintf("%s: %v", what, why)
		status("%s", now)
		if now != told {
			fmt.Println(now)
		}
		told = now
	}
}
