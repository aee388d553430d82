package overlay

import (
	"context"
	"fmt"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
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

// vital are the files without which nothing can be taken back any more, as patterns: systemd, the C library and its loader, and this
// project's own.
var vital = []string{
	"usr/lib/systemd/systemd", "usr/lib/systemd/systemd-*", "usr/lib/systemd/libsystemd-*", "usr/lib/*/systemd/libsystemd-*",
	"usr/bin/systemctl", "usr/bin/systemd-*",
	"usr/lib/ld-*.so*", "usr/lib64/ld-*.so*", "usr/lib/*/ld-*.so*",
	"usr/lib/libc.so.*", "usr/lib64/libc.so.*", "usr/lib/*/libc.so.*",
	"usr/lib/liveapply", "usr/lib/liveapply/*", "usr/libexec/liveapply*", "usr/libexec/liveapply/*", "usr/bin/liveapplyctl",
	"usr/lib/systemd/system/liveapply*", "usr/lib/systemd/system-generators/liveapply*",
}

// isVital tells whether content at a path would hide such a file: it is one, or a directory with one in it that is not shown any more.
func isVital(landed string, hidesBelow bool) bool {
	return slices.ContainsFunc(vital, func(pattern string) bool {
		if matched, _ := path.Match(pattern, landed); matched {
			return true
		}
		if !hidesBelow {
			return false
		}
		depth := strings.Count(landed, "/")
		parts := strings.Split(pattern, "/")
		if len(parts) <= depth+1 {
			return false
		}
		matched, _ := path.Match(strings.Join(parts[:depth+1], "/"), landed)
		return matched
	})
}

// check refuses a generation that the rules do not allow.
func (r Rules) check(ctx context.Context, g *generation, force bool) error {
	entries, err := g.entries()
	if err != nil {
		return err
	}
	var size int64
	for _, e := range entries {
		size += e.Size
		if err := r.checkEntry(e, force); err != nil {
			return err
		}
	}
	if r.MaxSize > 0 && size > r.MaxSize {
		return fmt.Errorf("it has %d bytes, and MaxSize= of liveapply.conf allows %d", size, r.MaxSize)
	}
	return r.scan(ctx, filepath.Join(g.dir, treeName))
}

func (r Rules) checkEntry(e Entry, force bool) error {
	hidesBelow := e.Kind == Masked || e.Opaque
	switch {
	case e.Kind == Special:
		return fmt.Errorf("/%s is a device, a fifo or a socket: overlays have none", e.Path)
	case !r.AllowSetuid && e.privileged:
		return fmt.Errorf("/%s is setuid, setgid or has capabilities: AllowSetuid=yes in liveapply.conf would allow it", e.Path)
	case !force && e.Kind != Folder && isVital(e.Path, hidesBelow), !force && e.Opaque && isVital(e.Path, true):
		return fmt.Errorf("/%s belongs to what the system cannot do without (systemd, the C library, liveapply): to hide it all the same, use --force", e.Path)
	}
	return nil
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

// isPrivileged tells whether a file gives rights to those who run it.
func isPrivileged(st *unix.Stat_t, xattrs map[string]string) bool {
	_, capable := xattrs["security.capability"]
	return typeOf(st.Mode) == unix.S_IFREG && (st.Mode&unix.S_ISUID != 0 || st.Mode&unix.S_ISGID != 0 || capable)
}
