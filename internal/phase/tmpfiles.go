package phase

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
)

// Tmpfiles makes the users, and completes /var and /run, as the target's changed fragments say.
func (m *Machine) Tmpfiles(ctx context.Context, request string) error {
	t, plan, err := m.resume(ctx, "tmpfiles", request)
	if err != nil {
		return err
	}
	if fragments := plan.Impact.Sysusers; len(fragments) > 0 {
		if err := t.Step("systemd-sysusers", func() error { return m.makeUsers(ctx, fragments) }); err != nil {
			return err
		}
	}
	if fragments := plan.Impact.Tmpfiles; len(fragments) > 0 {
		if err := t.Step("systemd-tmpfiles", func() error { return createFiles(ctx, fragments) }); err != nil {
			return err
		}
	}
	return m.end(t)
}

// accountFiles are what systemd-sysusers(8) writes.
var accountFiles = []string{"passwd", "group", "shadow", "gshadow"}

// makeUsers runs systemd-sysusers on fragments.
func (m *Machine) makeUsers(ctx context.Context, fragments []string) error {
	storage, err := m.openStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	status("making users")
	return storage.runIntoEtc(ctx, append([]string{"systemd-sysusers"}, fragments...), accountFiles...)
}

// tmpfilesPartly are the exit statuses of systemd-tmpfiles(8) for lines that could not be parsed (DATAERR) or done (CANTCREAT); as in
// systemd-tmpfiles-setup.service they are no failure.
var tmpfilesPartly = []int{65, 73}

// createFiles runs systemd-tmpfiles on fragments, for what is outside /usr and /etc.
func createFiles(ctx context.Context, fragments []string) error {
	status("completing /run and /var")
	args := append([]string{"--create", "--prefix=/run", "--prefix=/var"}, fragments...)
	tmpfiles := exec.CommandContext(ctx, "systemd-tmpfiles", args...)
	tmpfiles.Stdout, tmpfiles.Stderr = os.Stdout, os.Stderr
	err := tmpfiles.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) && slices.Contains(tmpfilesPartly, exit.ExitCode()) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("completing /run and /var: systemd-tmpfiles: %w", err)
	}
	return nil
}
