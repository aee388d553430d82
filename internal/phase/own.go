package phase

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/underlay"
)

// From the switch on, the helper, the units and liveapplyctl are those of the target. So prepare finds out whether the target can carry on: it has the same
// units, and a helper that knows what this one hands over. If not, the commit is refused; with Allow=force, the machine keeps its own: programs beside the
// layers, since /run may forbid to execute any, and units in /run, which come before those in /usr.

// Where the programs and the units of liveapply are in a tree, and where a link leads to the machine's own.
const (
	helperPath = "usr/libexec/liveapply/liveapply-helper"
	ctlPath    = "usr/bin/liveapplyctl"
	unitDir    = "usr/lib/systemd/system"
	ownUnitDir = "/run/systemd/system"
	// finalizeDropIn is in both directories of units.
	finalizeDropIn = "ostree-finalize-staged.service.d/50-liveapply.conf"
)

// lookForWayBack finds out what the target lacks to carry on, as far as its tree tells that.
func (p *preparation) lookForWayBack() error {
	has, err := p.lookup(p.plan.Live, helperPath)
	if err != nil {
		return err
	}
	if has.Kind == ostree.KindNone {
		p.lacks = "has no liveapply (/" + helperPath + ")"
		return nil
	}
	p.tryHelper = !p.isThisProgram(has)
	wanted, err := p.unitNames(p.plan.Booted)
	if err != nil {
		return err
	}
	there, err := p.unitNames(p.plan.Live)
	if err != nil {
		return err
	}
	for _, name := range wanted {
		if !slices.Contains(there, name) {
			p.lacks = "lacks the unit " + name
		}
	}
	return nil
}

// isThisProgram tells whether a file of a commit is the program that runs: layers and deployments have hard links to the objects of the repo.
func (p *preparation) isThisProgram(entry ostree.Entry) bool {
	var program, object unix.Stat_t
	return unix.Stat("/proc/self/exe", &program) == nil && unix.Fstatat(p.Repo.Fd(), p.Repo.FilePath(entry.Checksum), &object, 0) == nil && program.Ino == object.Ino
}

// unitNames lists the units by which the helper is run, by those of a commit.
func (p *preparation) unitNames(commit ostree.Checksum) ([]string, error) {
	dir, err := p.lookup(commit, unitDir)
	if err != nil || dir.Kind != ostree.KindDirectory {
		return nil, err
	}
	all, err := p.Repo.Dirtree(dir.Checksum)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, file := range all.Files {
		if isOurUnit(file.Name) {
			names = append(names, file.Name)
		}
	}
	return names, nil
}

// isOurUnit tells whether a unit is of what applies and takes back: all but what other programs of liveapply are for, and timers.
func isOurUnit(name string) bool {
	kept := []string{".service", ".path", ".target"}
	return strings.HasPrefix(name, "liveapply") && slices.Contains(kept, filepath.Ext(name)) &&
		!strings.HasPrefix(name, "liveapply-bus") && !strings.HasPrefix(name, "liveapply-fleetlock") && !strings.HasPrefix(name, "liveapply-update")
}

// refuseWithoutWayBack refuses what cannot carry on, unless it is forced.
func (p *preparation) refuseWithoutWayBack() error {
	if p.lacks == "" || p.config.Allow == config.Force {
		return nil
	}
	return fmt.Errorf("the target %s, so it could neither go on with the application nor take it back: use --force, with which this machine keeps its own liveapply until then, or reboot into it", p.lacks)
}

// keepWayBack finds out what else the target lacks, by starting its helper, and has the machine keep its own if it is forced.
func (p *preparation) keepWayBack(ctx context.Context) error {
	if p.tryHelper && p.lacks == "" {
		helper := underlay.Program{Name: "/" + helperPath, Args: []string{"formats", strconv.Itoa(state.Formats)}}
		if err := p.tryPrograms(ctx, helper); err != nil {
			p.lacks = fmt.Sprintf("has a liveapply that cannot go on from this one (%v)", err)
		}
	}
	if err := p.refuseWithoutWayBack(); err != nil || p.lacks == "" {
		return err
	}
	warn("the target %s: the machine keeps its own, %s", p.lacks, filepath.Join(p.ownLink(), "liveapplyctl"))
	return p.storage.keepOwn(ctx, p.plan.Live)
}

// ownName is the directory of the machine's own programs, and the link to it in /run/liveapply. needName is the file in it with the commits that need it.
const (
	ownName  = "own"
	needName = "commits"
)

func (m *Machine) ownLink() string { return filepath.Join(m.State.Run, ownName) }

func (s *storage) ownDir() string { return filepath.Join(s.dir, ownName) }

// keepOwn has what runs now be there when a commit is live. It is written down for which commit before.
func (s *storage) keepOwn(ctx context.Context, commit ostree.Checksum) error {
	link := s.machine.ownLink()
	target := filepath.Join(s.machine.physicalRoot(), s.machine.Booted.BackingPath(), "liveapply", ownName)
	err := os.MkdirAll(s.ownDir(), 0o755)
	if err == nil {
		err = s.noteNeed(commit)
	}
	if err == nil {
		err = s.copyOwnPrograms()
	}
	if err == nil {
		_ = os.Remove(link)
		err = os.Symlink(target, link)
	}
	if err == nil {
		err = writeOwnUnits(link)
	}
	if err != nil {
		return fmt.Errorf("keeping this machine's own liveapply: %w", err)
	}
	return reloadUnits(ctx)
}

// noteNeed adds a commit to those that need the machine's own.
func (s *storage) noteNeed(commit ostree.Checksum) error {
	path := filepath.Join(s.ownDir(), needName)
	noted, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return renameio.WriteFile(path, append(noted, commit.String()+"\n"...), 0o644, renameio.WithTempDir(s.ownDir()))
}

// copyOwnPrograms copies what runs now, unless that is the machine's own already.
func (s *storage) copyOwnPrograms() error {
	for _, path := range []string{helperPath, ctlPath} {
		to := filepath.Join(s.ownDir(), filepath.Base(path))
		program, err := os.ReadFile(filepath.Join("/", path))
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Lstat(to); err == nil {
				continue // a commit is live that lacks it
			}
		}
		if err == nil {
			err = renameio.WriteFile(to, program, 0o755, renameio.WithTempDir(s.ownDir())) // what is there may run
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ownMark begins the units that are written here.
const ownMark = "# Written by liveapply: the commit that is live has no unit that could go on.\n"

// writeOwnUnits writes the units that are in /usr now, with the programs of a directory.
func writeOwnUnits(programs string) error {
	units, err := os.ReadDir(filepath.Join("/", unitDir))
	if err != nil {
		return err
	}
	names := []string{finalizeDropIn}
	for _, unit := range units {
		if isOurUnit(unit.Name()) {
			names = append(names, unit.Name())
		}
	}
	replaced := strings.NewReplacer("/"+helperPath, filepath.Join(programs, filepath.Base(helperPath)), "/"+ctlPath, filepath.Join(programs, filepath.Base(ctlPath)))
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join("/", unitDir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		path := filepath.Join(ownUnitDir, name)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(path), 0o755)
		}
		if err == nil {
			err = os.WriteFile(path, []byte(ownMark+replaced.Replace(string(content))), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dropOwn removes what keepOwn has made, if what is live can do without. systemd knows no unit of it any more when the programs go.
func (s *storage) dropOwn(ctx context.Context, live ostree.Checksum) error {
	needed, err := os.ReadFile(filepath.Join(s.ownDir(), needName))
	if errors.Is(err, fs.ErrNotExist) || err == nil && slices.Contains(strings.Fields(string(needed)), live.String()) {
		return nil
	}
	if err == nil {
		err = removeOwnUnits()
	}
	if err == nil {
		err = reloadUnits(ctx)
	}
	if err == nil {
		err = errors.Join(beneath.Remove(s.ownDir()), os.RemoveAll(s.machine.ownLink()))
	}
	if err != nil {
		return fmt.Errorf("dropping this machine's own liveapply, which what is live has: %w", err)
	}
	return nil
}

func removeOwnUnits() error {
	paths, err := filepath.Glob(filepath.Join(ownUnitDir, "liveapply*"))
	if err != nil {
		return err
	}
	for _, path := range append(paths, filepath.Join(ownUnitDir, finalizeDropIn)) {
		content, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(content), ownMark) {
			continue // somebody else's, such as a directory of drop-ins
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Dir(filepath.Join(ownUnitDir, finalizeDropIn))); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

func reloadUnits(ctx context.Context) error {
	return services.Reload(ctx, impact.Reload{Units: true}, func(_ string, do func() error) error { return do() })
}
