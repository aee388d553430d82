package content

import (
	"context"
	"fmt"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/overlay"
)

// Rules are what an administrator allows content to be, [Overlay] in liveapply.conf(5).
type Rules struct {
	MaxSize     int64    // of the files of one overlay, in bytes; 0 for no limit
	AllowPaths  []string // patterns as in path.Match, or directories; none allows all
	AllowSetuid bool
	ContentScan []string // a command that gets the directory of new content, and refuses it by failing
}

// allowPath refuses what AllowPaths= does not name.
func (r Rules) allowPath(landed string) error {
	if len(r.AllowPaths) == 0 {
		return nil
	}
	for _, pattern := range r.AllowPaths {
		pattern = strings.Trim(pattern, "/")
		for at := landed; at != "."; at = path.Dir(at) {
			if matched, err := path.Match(pattern, at); err == nil && matched {
				return nil
			}
		}
	}
	return fmt.Errorf("/%s is not among AllowPaths= of liveapply.conf", landed)
}

// vital are the files without which nothing can be taken back any more, as patterns: systemd, the C library and its loader, and the directories that
// have them.
var vital = []string{
	"usr/lib", "usr/lib64", "usr/bin", "usr/sbin", "usr/libexec", "usr/lib/systemd", "usr/lib/systemd/system",
	"usr/lib/systemd/systemd", "usr/lib/systemd/systemd-*", "usr/lib/systemd/libsystemd-*", "usr/lib/*/systemd/libsystemd-*", "usr/lib64/systemd/libsystemd-*",
	"usr/bin/systemctl", "usr/bin/systemd-*", "usr/sbin/init",
	"usr/lib/ld-*.so*", "usr/lib64/ld-*.so*", "usr/lib/*/ld-*.so*",
	"usr/lib/lib[cm].so.*", "usr/lib64/lib[cm].so.*", "usr/lib/*/lib[cm].so.*",
}

// own are this project's files and directories.
var own = []string{
	"usr/lib/liveapply", "usr/libexec/liveapply*", "usr/bin/liveapplyctl",
	"usr/lib/systemd/system/liveapply*", "usr/lib/systemd/system-generators/liveapply*", "run/liveapply",
}

// hidesVital tells whether content would hide such a file.
func (u Under) hidesVital(e overlay.Entry) bool {
	for at := e.Path; at != "."; at = path.Dir(at) {
		if matchesAny(own, at) {
			return true
		}
	}
	if e.Kind != overlay.Folder && matchesAny(vital, e.Path) {
		return true
	}
	return (e.Kind == overlay.Masked || e.Opaque) && (u.hasBelow(e.Path, vital) || u.hasBelow(e.Path, own))
}

func matchesAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		matched, _ := path.Match(pattern, name)
		return matched
	})
}

// hasBelow tells whether the system has what fits a pattern in a directory.
func (u Under) hasBelow(dir string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		found, _ := filepath.Glob(filepath.Join(u.Root, pattern))
		return slices.ContainsFunc(found, func(file string) bool { return strings.HasPrefix(file, filepath.Join(u.Root, dir)+"/") })
	})
}

// check refuses content that the rules do not allow.
func (r Rules) check(entries []overlay.Entry, under Under, force bool) error {
	var size int64
	for _, e := range entries {
		size += e.Size
		if err := r.checkEntry(e, under, force); err != nil {
			return err
		}
	}
	return r.checkSize(size)
}

func (r Rules) checkSize(size int64) error {
	if r.MaxSize > 0 && size > r.MaxSize {
		return fmt.Errorf("it has %d bytes, and MaxSize= of liveapply.conf allows %d", size, r.MaxSize)
	}
	return nil
}

func (r Rules) checkEntry(e overlay.Entry, under Under, force bool) error {
	if e.Kind != overlay.Folder || e.Opaque {
		if err := r.allowPath(e.Path); err != nil {
			return err
		}
	}
	switch {
	case e.Kind == overlay.Special:
		return fmt.Errorf("/%s is a device, a fifo or a socket: overlays have none", e.Path)
	case isAccounts(e.Path):
		return fmt.Errorf("/%s is for users and groups: it cannot be replaced, use sysusers.d(5)", e.Path)
	case !r.AllowSetuid && e.Privileged:
		return fmt.Errorf("/%s is setuid, setgid or has capabilities: AllowSetuid=yes in liveapply.conf would allow it", e.Path)
	case !force && under.hidesVital(e):
		return fmt.Errorf("/%s belongs to what the system cannot do without (systemd, the C library, liveapply): to hide it all the same, use --force", e.Path)
	}
	return nil
}

func isAccounts(path string) bool {
	rest, inEtc := strings.CutPrefix(path, "etc/")
	return inEtc && etcmerge.IsAccounts(rest)
}

// scan has a command look at new content.
func (r Rules) scan(ctx context.Context, dir string) error {
	if len(r.ContentScan) == 0 {
		return nil
	}
	command := exec.CommandContext(ctx, r.ContentScan[0], append(slices.Clone(r.ContentScan[1:]), dir)...)
	output, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("ContentScan= refuses it: %s: %w: %s", strings.Join(r.ContentScan, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
