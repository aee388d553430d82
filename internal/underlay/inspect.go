package underlay

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// State is what is mounted at Path.
type State struct {
	Source string // of the visible mount, "" if Path is not a mount point
	Shown  Source // the same, if it is one of ours; else it has no Live
	Live   string // the commit that the visible mount shows the tree of; "" if it is not ours, and on a system without OSTree

	// Stack is what is mounted at Path, bottom to top. Copies that the kernel makes when Path and the directory above it are in
	// one peer group (as in systemd-nspawn) are left out: they come and go with the mounts they copy.
	Stack []Mount

	// Submounts are the visible mount points below Path, relative to it, sorted. Those below another of them are left out.
	// A tree can only be switched to if it has each of them, as the same kind of file.
	Submounts []string

	// Unfinished: what is visible should be writable, and is not: a switch was cut short. The next one finishes it.
	Unfinished bool

	// Unlocked: an overlay that is not ours covers the booted /usr, as `ostree admin unlock` makes it.
	Unlocked bool

	// Extended: systemd-sysext has merged extensions into what was visible, which cannot be switched now. Shown and Live are about that.
	Extended bool
}

// ErrExtended tells what is in the way of a switch if State has Extended.
var ErrExtended = errors.New("systemd-sysext has merged extensions into it: take them out for that time (systemd-sysext unmerge, later merge)")

// Mount is a line of /proc/self/mountinfo.
type Mount struct {
	ID     int
	FSType string
	Source string
}

// Inspect tells what is mounted at Path, in the mount namespace of the calling thread.
func (u Usr) Inspect() (State, error) {
	t, err := u.look()
	if err != nil {
		return State{}, fmt.Errorf("inspecting %s: %w", u.Path, err)
	}
	return t.state(), nil
}

// look reads the mount table. The table can change while it is read: what is visible at Path must be the same mount before and
// after, and be in it.
func (u Usr) look() (table, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var err error
	for range 10 {
		var before, after identity
		var mounts []*mountinfo.Info
		if before, err = identify(unix.AT_FDCWD, u.Path); err != nil {
			return table{}, err
		}
		if mounts, err = mountsIn(ownMounts, nil); err != nil {
			return table{}, err
		}
		if after, err = identify(unix.AT_FDCWD, u.Path); err != nil {
			return table{}, err
		}
		if before != after {
			err = errors.New("the mount table keeps changing; try again")
			continue
		}
		var t table
		if t, err = newTable(mounts, u.Path, after); err == nil {
			return t, nil
		}
	}
	return table{}, err
}

// identity names a mount, and tells whether the path it was found by is its root.
type identity struct {
	id   int // as in mountinfo
	root bool
}

func identify(dirfd int, path string) (identity, error) {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_EMPTY_PATH
	if err := unix.Statx(dirfd, path, flags, unix.STATX_MNT_ID, &st); err != nil {
		return identity{}, fmt.Errorf("statx %s: %w", path, err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return identity{}, errors.New("statx does not tell mount ids: Linux 5.8 or later is needed")
	}
	return identity{int(st.Mnt_id), st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0}, nil
}

// isMountPoint tells whether something is mounted at path; not if path does not exist.
func isMountPoint(path string) (bool, error) {
	id, err := identify(unix.AT_FDCWD, path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	return id.root, err
}

// table is the mount table as seen from Path. The mounts there are, bottom to top: what was booted with, then ours.
type table struct {
	mounts  []*mountinfo.Info
	path    string
	stack   []*mountinfo.Info // at path, bottom to top
	visible *mountinfo.Info   // on which path is: the top of the stack, or the mount that path is a directory of
	ours    []*mountinfo.Info // the top of the stack, as far as it is ours
	base    *mountinfo.Info   // on which the booted tree is: what is below ours
}

func newTable(mounts []*mountinfo.Info, path string, at identity) (table, error) {
	byID := make(map[int]*mountinfo.Info, len(mounts))
	for _, m := range mounts {
		byID[m.ID] = m
	}
	t := table{mounts: mounts, path: path, visible: byID[at.id]}
	if t.visible == nil {
		return table{}, fmt.Errorf("mount %d, which %s is on, is not in the mount table", at.id, path)
	}
	below := t.visible
	for at.root && below != nil && below.Mountpoint == t.visible.Mountpoint && !slices.Contains(t.stack, below) {
		t.stack = append(t.stack, below)
		below = byID[below.Parent]
	}
	slices.Reverse(t.stack)
	t.stack = withoutCopies(t.stack)

	lowest := len(t.stack)
	for lowest > 0 && isOurs(t.stack[lowest-1]) {
		lowest--
	}
	t.ours = t.stack[lowest:]
	switch {
	case lowest > 0:
		t.base = t.stack[lowest-1]
	case len(t.ours) > 0:
		t.base = byID[t.ours[0].Parent]
	default:
		t.base = t.visible
	}
	if t.base == nil {
		return table{}, fmt.Errorf("the mount that %s is a directory of is not in the mount table", path)
	}
	return t, nil
}

// withoutCopies removes what the kernel copied to the bottom of the stack: if the booted /usr and the mount it is mounted
// on are in one peer group, then what is mounted on top of /usr propagates to the parent, and ends up beneath the booted /usr.
func withoutCopies(stack []*mountinfo.Info) []*mountinfo.Info {
	var kept []*mountinfo.Info
	for i, m := range stack {
		if !slices.ContainsFunc(stack[i+1:], func(above *mountinfo.Info) bool { return sameTree(m, above) }) {
			kept = append(kept, m)
		}
	}
	return kept
}

// sameTree tells whether two mounts show the same directory of the same filesystem.
func sameTree(a, b *mountinfo.Info) bool {
	return sameFilesystem(a, b) && a.Root == b.Root
}

func sameFilesystem(a, b *mountinfo.Info) bool { return a.Major == b.Major && a.Minor == b.Minor }

func isOurs(m *mountinfo.Info) bool {
	_, ok := shownBy(m)
	return ok
}

// shownBy returns what a mount shows; false if it is none of ours.
func shownBy(m *mountinfo.Info) (Source, bool) {
	if m.FSType != "overlay" {
		return Source{}, false
	}
	return ParseSource(m.Source)
}

// isWritable tells the overlays that have an upper directory.
func isWritable(m *mountinfo.Info) bool {
	return slices.ContainsFunc(strings.Split(m.VFSOptions, ","), func(option string) bool { return strings.HasPrefix(option, "upperdir=") })
}

// isExtension tells the overlay of extensions and what they were merged into, which src/sysext/sysext.c of systemd mounts on that.
func isExtension(m *mountinfo.Info) bool { return m.FSType == "overlay" && m.Source == "sysext" }

// isUnlock tells an overlay that covers /usr from a bind mount of a /usr that is itself in an overlay (composefs).
func isUnlock(m *mountinfo.Info) bool {
	return m.FSType == "overlay" && !isOurs(m) && !isExtension(m) && m.Root == "/"
}

// refuseExtended returns an error if systemd-sysext's overlay covers /usr.
func (t table) refuseExtended() error {
	if slices.ContainsFunc(t.stack, isExtension) {
		return fmt.Errorf("%s: %w", t.path, ErrExtended)
	}
	return nil
}

// refuseOthers returns an error if something else covers what a stack is to be shown in the place of.
func (t table) refuseOthers() error {
	if err := t.refuseExtended(); err != nil {
		return err
	}
	return errors.Join(t.refuseUnlocked(), t.refuseCovered())
}

// refuseUnlocked returns an error if `ostree admin unlock` covers the booted /usr.
func (t table) refuseUnlocked() error {
	if slices.ContainsFunc(t.stack, isUnlock) {
		return fmt.Errorf("%s is unlocked: an overlay that is not liveapply's is mounted there, as by `ostree admin unlock`; reboot to undo it", t.path)
	}
	return nil
}

// refuseCovered returns an error if something else covers one of our overlays.
func (t table) refuseCovered() error {
	if slices.ContainsFunc(t.stack[:len(t.stack)-len(t.ours)], isOurs) {
		if err := t.refuseExtended(); err != nil {
			return err
		}
		return fmt.Errorf("something else (%s %q) was mounted on %s over the live tree: unmount it first", t.visible.FSType, t.visible.Source, t.path)
	}
	return nil
}

// submounts lists the mount points below Path that are seen when m is the mount at Path, relative to it, sorted.
// Those below another of them are left out: they are either mounted there, and move with it, or hidden by it.
func (t table) submounts(m *mountinfo.Info) []string {
	var points []string
	for _, child := range t.mounts {
		if below, ok := strings.CutPrefix(child.Mountpoint, t.path+"/"); ok && child.Parent == m.ID {
			points = append(points, below)
		}
	}
	slices.Sort(points)
	var outer []string
	for _, point := range points {
		covered := func(other string) bool { return point == other || strings.HasPrefix(point, other+"/") }
		if !slices.ContainsFunc(outer, covered) {
			outer = append(outer, point)
		}
	}
	return outer
}

// describe tells two trees of mounts at a submount apart: what is mounted there and below, where, with which attributes.
func (t table) describe(m *mountinfo.Info, submount string) []string {
	var lines []string
	mountpoint := t.path + "/" + submount
	within := map[int]bool{m.ID: true}
	for grown := true; grown; {
		grown = false
		for _, child := range t.mounts {
			inside := child.Mountpoint == mountpoint || strings.HasPrefix(child.Mountpoint, mountpoint+"/")
			if inside && within[child.Parent] && !within[child.ID] {
				within[child.ID], grown = true, true
				lines = append(lines, fmt.Sprintf("%q %d:%d %q %s", child.Mountpoint, child.Major, child.Minor, child.Root, child.Options))
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// mountAttributes are the words of mountinfo's per-mount options, as show_mnt_opts in the kernel writes them.
var mountAttributes = map[string]int{
	"ro":          unix.MOUNT_ATTR_RDONLY,
	"nosuid":      unix.MOUNT_ATTR_NOSUID,
	"nodev":       unix.MOUNT_ATTR_NODEV,
	"noexec":      unix.MOUNT_ATTR_NOEXEC,
	"noatime":     unix.MOUNT_ATTR_NOATIME,
	"nodiratime":  unix.MOUNT_ATTR_NODIRATIME,
	"nosymfollow": unix.MOUNT_ATTR_NOSYMFOLLOW,
}

// isReadOnly is about the mount, not about the filesystem.
func isReadOnly(m *mountinfo.Info) bool { return attributesOf(m)&unix.MOUNT_ATTR_RDONLY != 0 }

// attributes returns those that a stack is to be attached with, as fsmount(2) takes them: those of the visible mount. Only whether it is
// read-only is not for one of our writable overlays to say. Also one that can be written comes read-only: see replace.
func (t table) attributes(stack Stack) int {
	attributes := attributesOf(t.visible)
	if isOurs(t.visible) && isWritable(t.visible) {
		attributes = attributes&^unix.MOUNT_ATTR_RDONLY | attributesOf(t.base)&unix.MOUNT_ATTR_RDONLY
	}
	if stack.writable() {
		attributes |= unix.MOUNT_ATTR_RDONLY
	}
	return attributes
}

func attributesOf(m *mountinfo.Info) int {
	words := strings.Split(m.Options, ",")
	attributes := 0
	for _, word := range words {
		attributes |= mountAttributes[word]
	}
	if !slices.Contains(words, "relatime") && !slices.Contains(words, "noatime") {
		attributes |= unix.MOUNT_ATTR_STRICTATIME // the kernel writes neither word for it
	}
	return attributes
}

func (t table) state() State {
	s := State{Submounts: t.submounts(t.visible)}
	for _, m := range t.stack {
		s.Stack = append(s.Stack, Mount{ID: m.ID, FSType: m.FSType, Source: m.Source})
		s.Unlocked = s.Unlocked || isUnlock(m)
	}
	if len(t.stack) > 0 {
		s.Source = t.visible.Source
	}
	merged := t.stack
	for len(merged) > 0 && isExtension(merged[len(merged)-1]) {
		merged, s.Extended = merged[:len(merged)-1], true
	}
	if len(merged) == 0 {
		return s
	}
	top := merged[len(merged)-1]
	if shown, ok := shownBy(top); ok {
		s.Shown, s.Unfinished = shown, isWritable(top) && isReadOnly(top)
		if shown.Live != Base {
			s.Live = shown.Live
		}
	}
	return s
}
