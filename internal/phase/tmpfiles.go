package phase

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/deployments"
	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/transaction"
)

// Tmpfiles makes the users, and completes what is beside /usr and /etc, as the target's changed fragments say.
func Tmpfiles(ctx context.Context, m *machine.Machine, request string) error {
	t, plan, err := transaction.Resume(ctx, m, "tmpfiles", request)
	if err != nil {
		return err
	}
	if fragments := plan.Impact.Sysusers; len(fragments) > 0 {
		if err := t.Step("systemd-sysusers", func() error { return makeUsers(ctx, m, fragments) }); err != nil {
			return err
		}
	}
	if fragments := plan.Impact.Tmpfiles; len(fragments) > 0 {
		if err := t.Step("systemd-tmpfiles", func() error { return createFiles(ctx, fragments) }); err != nil {
			return err
		}
	}
	return transaction.End(m, t)
}

// accountFiles are what systemd-sysusers(8) writes.
var accountFiles = []string{"passwd", "group", "shadow", "gshadow"}

// makeUsers runs systemd-sysusers on fragments.
func makeUsers(ctx context.Context, m *machine.Machine, fragments []string) error {
	storage, err := m.OpenStorage()
	if err != nil {
		return err
	}
	defer storage.Close()
	defer deployments.SettleAndHoldOff(ctx, storage)()
	report.Status("making users")
	return runIntoEtc(ctx, storage, append([]string{"systemd-sysusers"}, fragments...), accountFiles...)
}

// tmpfilesPartly are the exit statuses of systemd-tmpfiles(8) for lines that could not be parsed (DATAERR) or done (CANTCREAT); as in
// systemd-tmpfiles-setup.service they are no failure.
var tmpfilesPartly = []int{65, 73}

// createFiles runs systemd-tmpfiles on fragments, for what is outside /usr and /etc.
func createFiles(ctx context.Context, fragments []string) error {
	report.Status("completing what is beside /usr and /etc")
	args := []string{"--create"}
	for _, place := range impact.TmpfilesPlaces {
		args = append(args, "--prefix="+place)
	}
	args = append(args, fragments...)
	tmpfiles := exec.CommandContext(ctx, "systemd-tmpfiles", args...)
	tmpfiles.Stdout, tmpfiles.Stderr = os.Stdout, os.Stderr
	err := tmpfiles.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) && slices.Contains(tmpfilesPartly, exit.ExitCode()) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("completing what is beside /usr and /etc: systemd-tmpfiles: %w", err)
	}
	return nil
}

// fragmentLimit is far above what fragments of tmpfiles.d(5) hold, in bytes.
const fragmentLimit = 1 << 20

// lookAtTmpfiles finds out what systemd-tmpfiles would do to what is there, as the target's fragments say: one of the same name that the administrator has in
// /etc, and that takes its place, is not for everybody's eyes.
func (p *preparation) lookAtTmpfiles() error {
	for _, name := range p.plan.Impact.Tmpfiles {
		for _, dir := range []string{machine.EtcTree, machine.UsrTree + "/lib"} { // the first takes the place of the other
			entry, err := p.storage.Lookup(p.plan.Live, filepath.Join(dir, "tmpfiles.d", name))
			if err != nil {
				return err
			}
			if entry.Kind != ostree.KindFile {
				continue
			}
			file, err := p.storage.Repo.File(entry.Checksum)
			if err != nil {
				return err
			}
			if file.Mode&unix.S_IFMT == unix.S_IFREG { // a link masks it
				content, err := p.storage.Repo.ReadFile(entry.Checksum, fragmentLimit)
				if err != nil {
					return err
				}
				p.plan.TmpfilesChanges = append(p.plan.TmpfilesChanges, impact.TmpfilesChanges(string(content))...)
			}
			break
		}
	}
	return nil
}
