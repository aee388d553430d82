package phase

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/layer"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/treediff"
)

// refuseUnlocked makes sure that nobody else has put something on /usr.
func (p *preparation) refuseUnlocked() error {
	usr, err := p.machine.InspectToSwitch()
	if err != nil {
		return err
	}
	unlocked, err := p.machine.Sysroot.Unlocked(p.machine.Booted)
	if err != nil {
		return err
	}
	if ours := usr.Live != "" && unlocked == "transient"; ours {
		unlocked = ""
	}
	if unlocked == "" && usr.Unlocked {
		unlocked = "as another overlay is mounted on it"
	}
	if unlocked != "" {
		return fmt.Errorf("/usr is unlocked (%s), see ostree admin unlock: what was changed there would be hidden; reboot to lock it again", unlocked)
	}
	return nil
}

// refuseUnmergeable makes sure that libostree will be able to merge /etc into the deployment of the target at shutdown: else the next boot would not lead
// there. A transient application has none.
func (p *preparation) refuseUnmergeable() error {
	if p.plan.Transient || p.config.LeaveStaged {
		return nil
	}
	replaced, err := etcmerge.ReplacedDirectories(filepath.Join(machine.PhysicalRoot, p.machine.Booted.Path(), machine.EtcTree), p.storage.EtcDirs().Etc)
	if p.onlyLooks && errors.Is(err, fs.ErrPermission) {
		return nil // part of /etc is for root
	}
	if err != nil {
		return err
	}
	for _, path := range replaced {
		for _, commit := range []ostree.Checksum{p.plan.From, p.plan.NextBoot()} {
			entry, err := p.storage.Lookup(commit, filepath.Join(machine.EtcTree, path))
			if err != nil {
				return err
			}
			if entry.Kind != ostree.KindDirectory {
				path = "" // the live commit has replaced it, or the next deployment has none
				break
			}
		}
		if path != "" {
			return fmt.Errorf("/etc/%s has replaced a directory that the target has, too: libostree could not merge /etc into its deployment, and the next boot would not lead there; make it a directory again, or apply the commit with --transient", path)
		}
	}
	return nil
}

// refuseOtherEtc makes sure that /etc is that of the booted deployment, where files are put, and not something that is mounted over it.
func (p *preparation) refuseOtherEtc() error {
	var shown, own unix.Stat_t
	if err := unix.Stat(filepath.Join(p.machine.Root, "etc"), &shown); err != nil {
		return fmt.Errorf("looking at /etc: %w", err)
	}
	if err := unix.Stat(p.storage.EtcDirs().Etc, &own); err != nil {
		return fmt.Errorf("looking at /etc of the booted deployment: %w", err)
	}
	if shown.Dev != own.Dev || shown.Ino != own.Ino {
		return errors.New("/etc is not that of the booted deployment, whose changes it may not show: take out what is mounted there (systemd-confext unmerge), " +
			"or reboot into the commit if /etc is transient")
	}
	return nil
}

// refuseTarget looks at the commit itself.
func (p *preparation) refuseTarget() error {
	target := p.plan.Target
	if target == p.plan.Booted {
		return fmt.Errorf("commit %s is the booted one: go back to it with liveapplyctl reset", target)
	}
	commit, err := p.storage.Repo.Commit(target)
	if err != nil {
		return err
	}
	partial, err := p.storage.Repo.IsPartial(target)
	if err != nil {
		return err
	}
	if partial {
		return fmt.Errorf("commit %s is in the repo only in part: pull the rest of it (ostree pull REMOTE %s)", target, target)
	}
	if p.config.Allow == config.Force {
		return nil
	}
	return p.refuseOther(commit)
}

// refuseOther guards against a tree that is not a next version of the live one.
func (p *preparation) refuseOther(target *ostree.Commit) error {
	live, err := p.storage.Repo.Commit(p.plan.From)
	if err != nil {
		return err
	}
	if target.Timestamp.Before(live.Timestamp) {
		return fmt.Errorf("commit %s of %s is older than the live one of %s: to apply it all the same, use --allow=force",
			target.Checksum, target.Timestamp.UTC().Format("2006-01-02 15:04:05"), live.Timestamp.UTC().Format("2006-01-02 15:04:05"))
	}
	from, err := p.osRelease(live)
	if err != nil {
		return err
	}
	to, err := p.osRelease(target)
	if err != nil {
		return err
	}
	for _, key := range []string{"ID", "VERSION_ID"} {
		if from[key] != to[key] {
			return fmt.Errorf("commit %s is another distribution or release (os-release: %s=%s, live: %s): boot it, or use --allow=force",
				target.Checksum, key, to[key], from[key])
		}
	}
	return nil
}

// osReleaseLimit is far above what os-release(5) files hold.
const osReleaseLimit = 64 << 10

// osRelease reads os-release(5) out of a commit; one without has no values.
func (p *preparation) osRelease(commit *ostree.Commit) (map[string]string, error) {
	entry, err := p.storage.Repo.Lookup(commit.Root, "usr/lib/os-release")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	content, err := p.storage.Repo.ReadFile(entry.Checksum, osReleaseLimit)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for line := range bytes.Lines(content) {
		key, value, found := strings.Cut(strings.TrimSpace(string(line)), "=")
		if found && !strings.HasPrefix(key, "#") {
			values[key] = strings.Trim(value, `"'`)
		}
	}
	return values, nil
}

// refuseByPolicy enforces Allow=additive: nothing that is there changes or goes, no package and no file. Where packages come, that does not go for the indexes that
// follow from them.
func (p *preparation) refuseByPolicy() error {
	if p.config.Allow != config.Additive {
		return nil
	}
	what, names := "packages", p.plan.Impact.Packages.Replaced()
	if len(names) == 0 {
		what, names = "files", p.replacedFiles()
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("the policy Allow=additive forbids this commit, which changes or removes %d %s (%s): use --allow=replace, or reboot into it",
		len(names), what, report.Abbreviated(names))
}

// replacedFiles are the paths at which what is live does not stay as it is, though no package that comes explains that.
func (p *preparation) replacedFiles() []string {
	packagesCome := len(p.plan.Impact.Packages.Added) > 0
	changes := p.changes
	if p.plan.From != p.plan.Booted {
		changes = p.fromLive
	}
	var paths []string
	for _, change := range changes {
		if impact.IsReplacing(change) && !(packagesCome && impact.IsIndex(change.Path, p.config.Indexes, p.databases)) {
			paths = append(paths, "/usr/"+change.Path)
		}
	}
	return paths
}

// refuseLostMounts makes sure that the target has a directory for each mount below /usr, which moves with it.
func (p *preparation) refuseLostMounts() error {
	usr, err := p.machine.Usr.Inspect()
	if err != nil {
		return err
	}
	commit, err := p.storage.Repo.Commit(p.plan.Live)
	if err != nil {
		return err
	}
	for _, mount := range usr.Submounts {
		if slices.ContainsFunc(usr.Submounts, func(other string) bool { return treediff.Below(mount, other) }) {
			continue // its mount point is in the other mount
		}
		if _, err := p.storage.Repo.Lookup(commit.Root, filepath.Join(machine.UsrTree, mount)); errors.Is(err, fs.ErrNotExist) {
			return passing{fmt.Errorf("something is mounted on /usr/%s, which the target does not have: unmount it first", mount)}
		} else if err != nil {
			return err
		}
	}
	return nil
}

// refuseTooLittleSpace compares what the layer and the new /etc need with what is free.
func (p *preparation) refuseTooLittleSpace() error {
	var free unix.Statfs_t
	if err := unix.Fstatfs(int(p.storage.Sysroot.Fd()), &free); err != nil {
		return fmt.Errorf("asking for the free space of %s: %w", machine.PhysicalRoot, err)
	}
	need := layer.Need(p.changes)
	etc, err := p.etcNeed()
	if err != nil {
		return err
	}
	need.Bytes += etc.Bytes
	need.Inodes += etc.Inodes
	if available := int64(free.Bavail) * free.Bsize; need.Bytes > available {
		return passing{fmt.Errorf("%s has %d KiB free, and applying commit %s needs %d KiB: make room (ostree admin cleanup)",
			machine.PhysicalRoot, available>>10, p.plan.Target, need.Bytes>>10)}
	}
	// Filesystems without a fixed number of inodes say 0 of 0 (btrfs).
	if free.Files > 0 && uint64(need.Inodes) > free.Ffree {
		return passing{fmt.Errorf("%s has %d inodes free, and applying commit %s needs %d: remove files that are not needed",
			machine.PhysicalRoot, free.Ffree, p.plan.Target, need.Inodes)}
	}
	return nil
}

// etcNeed is what the etc phase takes: each new file is written out, and each old one kept by a link.
func (p *preparation) etcNeed() (layer.Size, error) {
	var need layer.Size
	if p.plan.Etc == nil {
		return need, nil
	}
	for _, change := range p.plan.Etc.Changes {
		need.Inodes++
		need.Bytes += blockSize + int64(len(change.Text))
		if change.Object.IsZero() {
			continue
		}
		file, err := p.storage.Repo.File(change.Object)
		if err != nil {
			return need, fmt.Errorf("/etc/%s of the target: %w", change.Path, err)
		}
		need.Bytes += file.Size
	}
	return need, nil
}

// blockSize is by how much a file's last block may exceed its content, in bytes, on the usual filesystems.
const blockSize = 4096
