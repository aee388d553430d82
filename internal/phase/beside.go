package phase

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/treediff"
)

// notBrought are directories at the top of a commit that no deployment shows: the content of /var is the machine's, and the others are mounted over.
var notBrought = []string{"dev", "proc", "run", "sys", "sysroot", "tmp", "var"}

// staysAsBooted names what differs at the top of the commits beside /usr, and mounts below /usr, such as state overlays, that hide what has changed beneath them:
// both only a reboot brings.
func (p *preparation) staysAsBooted(changes []treediff.Change) (paths []string, err error) {
	booted, err := p.topOf(p.plan.Booted)
	if err != nil {
		return nil, err
	}
	target, err := p.topOf(p.plan.Live)
	if err != nil {
		return nil, err
	}
	names := slices.Concat(slices.Collect(maps.Keys(booted)), slices.Collect(maps.Keys(target)))
	for _, name := range names {
		if booted[name] != target[name] {
			paths = append(paths, "/"+name)
		}
	}
	usr, err := p.machine.Usr.Inspect()
	if err != nil {
		return nil, err
	}
	for _, mount := range usr.Submounts {
		if slices.ContainsFunc(changes, func(change treediff.Change) bool { return treediff.Below(change.Path, mount) }) {
			paths = append(paths, "/usr/"+mount)
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths), nil
}

// topOf is what a commit has at its top that a deployment shows, beside /usr.
func (p *preparation) topOf(commit ostree.Checksum) (map[string]ostree.Entry, error) {
	c, err := p.storage.Repo.Commit(commit)
	if err != nil {
		return nil, err
	}
	root, err := p.storage.Repo.Dirtree(c.Root.Contents)
	if err != nil {
		return nil, err
	}
	top := map[string]ostree.Entry{}
	for _, file := range root.Files {
		top[file.Name] = ostree.Entry{Kind: ostree.KindFile, Checksum: file.Checksum}
	}
	for _, dir := range root.Dirs {
		top[dir.Name] = dir.Tree.Entry()
	}
	for _, name := range append([]string{machine.UsrTree}, notBrought...) {
		delete(top, name)
	}
	return top, nil
}

// whiteoutPrefix begins the names of files that libostree checks out as whiteouts of overlayfs (process_passthrough_whiteouts in ostree-repo-checkout.c).
const whiteoutPrefix = ".ostree-wh."

// refuseWhiteouts refuses what a boot would show as a whiteout, which an overlay cannot show.
func (p *preparation) refuseWhiteouts() error {
	for _, change := range p.changes {
		if change.New.Kind != ostree.KindNone && strings.HasPrefix(path.Base(change.Path), whiteoutPrefix) {
			return fmt.Errorf("the commit has a whiteout, /usr/%s, which cannot be shown on an overlay: reboot into it", change.Path)
		}
	}
	return nil
}
