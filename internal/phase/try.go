package phase

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/underlay"
)

// executor is what systemd starts programs with, since version 254.
const executor = "/usr/lib/systemd/systemd-executor"

// try runs programs with the target's loader and libraries: one of the target; and, if libraries changed, what the running systemd starts programs
// with. If that does not run, no unit can be started any more, also none that would take the target back.
func (p *preparation) try(ctx context.Context) error {
	report.Status("trying to run a program of the target")
	programs := []underlay.Program{{Name: "/usr/bin/true"}}
	if p.plan.Impact.Libraries {
		executors, err := p.executors()
		if err != nil {
			return err
		}
		defer beneath.CloseAll(executors)
		for _, file := range executors {
			programs = append(programs, underlay.Program{Name: "what the running systemd starts programs with, " + executor, File: file, Args: []string{"--version"}})
		}
	}
	return p.tryPrograms(ctx, programs...)
}

// tryPrograms runs programs on what /usr is going to show.
func (p *preparation) tryPrograms(ctx context.Context, programs ...underlay.Program) error {
	overlays, err := p.machine.EnabledOverlays()
	if err != nil {
		return err
	}
	s, err := p.machine.Stack(p.plan.Live, p.plan.Layers, overlays)
	if err != nil {
		return err
	}
	return p.machine.Usr.Try(ctx, s.Stack, programs...)
}

// executors opens the one of the booted tree, which systemd keeps open from its start, and the one that is live, which it has taken if it was executed
// again since.
func (p *preparation) executors() ([]*os.File, error) {
	var files []*os.File
	for _, path := range []string{filepath.Join(machine.PhysicalRoot, p.machine.Booted.Path(), executor), executor} {
		file, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			beneath.CloseAll(files)
			return nil, fmt.Errorf("trying the target: %w", err)
		}
		if len(files) > 0 && sameFile(files[0], file) {
			file.Close()
			continue
		}
		files = append(files, file)
	}
	return files, nil
}

// sameFile goes by the inode: the device of what is below an overlay is another one through that.
func sameFile(a, b *os.File) bool {
	var first, second unix.Stat_t
	return unix.Fstat(int(a.Fd()), &first) == nil && unix.Fstat(int(b.Fd()), &second) == nil && first.Ino == second.Ino
}
