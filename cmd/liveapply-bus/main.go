// Command liveapply-bus is the D-Bus service org.liveapply1, see dbus/README.md. The bus has it started when somebody asks, and it ends when nobody
// has asked for a while.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/bus"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/report"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	idle := pflag.Duration("idle", 30*time.Second, "how long to stay when there is nothing to do")
	pflag.Parse()
	if err := run(ctx, *idle); err != nil {
		// systemd reads the priority off the line (sd-daemon(3)); 3 is an error.
		fmt.Fprintf(os.Stderr, "<3>%s\n", report.OneLine(err.Error()))
		os.Exit(1)
	}
}

func run(ctx context.Context, idle time.Duration) error {
	m, err := machine.OpenAsRoot()
	if err != nil {
		return err
	}
	return bus.Run(ctx, dbus.ConnectSystemBus, bus.Machine{Machine: m}, idle)
}
