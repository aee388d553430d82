package phase

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/own"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/underlay"
)

// lookForWayBack finds out what the target lacks to carry on, as far as its tree tells that.
func (p *preparation) lookForWayBack() error {
	has, err := p.storage.Lookup(p.plan.Live, own.HelperPath)
	if err != nil {
		return err
	}
	if has.Kind == ostree.KindNone {
		p.lacks = "has no liveapply (/" + own.HelperPath + ")"
		return nil
	}
	p.tryHelper = !p.isThisProgram(has)
	for _, path := range own.OtherPaths {
		if lacks, err := p.lacksFile(path); err != nil {
			return err
		} else if lacks {
			p.lacks = "lacks /" + path
			return nil
		}
	}
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

// lacksFile tells whether the target does not have a file that is booted.
func (p *preparation) lacksFile(path string) (bool, error) {
	wanted, err := p.storage.Lookup(p.plan.Booted, path)
	if err != nil || wanted.Kind == ostree.KindNone {
		return false, err
	}
	there, err := p.storage.Lookup(p.plan.Live, path)
	return there.Kind == ostree.KindNone, err
}

// isThisProgram tells whether a file of a commit is the program that runs: layers and deployments have hard links to the objects of the repo.
func (p *preparation) isThisProgram(entry ostree.Entry) bool {
	var program, object unix.Stat_t
	return unix.Stat("/proc/self/exe", &program) == nil && unix.Fstatat(p.storage.Repo.Fd(), p.storage.Repo.FilePath(entry.Checksum), &object, 0) == nil && program.Ino == object.Ino
}

// unitNames lists the units by which the helper is run, by those of a commit.
func (p *preparation) unitNames(commit ostree.Checksum) ([]string, error) {
	dir, err := p.storage.Lookup(commit, own.UnitDir)
	if err != nil || dir.Kind != ostree.KindDirectory {
		return nil, err
	}
	all, err := p.storage.Repo.Dirtree(dir.Checksum)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, file := range all.Files {
		if own.IsOurUnit(file.Name) {
			names = append(names, file.Name)
		}
	}
	return names, nil
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
		helper := underlay.Program{Name: "/" + own.HelperPath, Args: []string{"formats", strconv.Itoa(state.Formats)}}
		if err := p.tryPrograms(ctx, helper); err != nil {
			p.lacks = fmt.Sprintf("has a liveapply that cannot go on from this one (%v)", err)
		}
	}
	if err := p.refuseWithoutWayBack(); err != nil || p.lacks == "" {
		return err
	}
	report.Warn("the target %s: the machine keeps its own, %s", p.lacks, filepath.Join(own.Link(p.machine), "liveapplyctl"))
	return own.Keep(ctx, p.storage, p.plan.Live)
}
