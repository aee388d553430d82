package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/overlay"
)

const overlayDiffDetails = `It is compared with what lies below all overlays: text files as diff -u does, of others only what they are. Paths at which what the overlay replaced is
another file now are marked as stale. Only root may look.`

// change is what an overlay does to a path.
type change string

// The changes.
const (
	added    change = "added"
	replaced change = "replaced"
	hidden   change = "hidden"
	same     change = "same" // as it is below
)

// difference is what is different at a path of an overlay.
type difference struct {
	Path   string `json:"path"` // absolute
	Change change `json:"change"`
	Before *facts `json:"before,omitempty"` // below all overlays; nothing is there without it
	After  *facts `json:"after,omitempty"`
	Diff   string `json:"diff,omitempty"` // of text, as of diff -u
	Stale  bool   `json:"stale"`          // what the overlay replaced is another one now
}

// facts are what there is to know of a file but its content.
type facts struct {
	Kind   overlay.EntryKind `json:"kind"`
	Mode   uint32            `json:"mode"` // permission bits
	UID    uint32            `json:"uid"`
	GID    uint32            `json:"gid"`
	Size   int64             `json:"size,omitempty"`   // of a file
	Target string            `json:"target,omitempty"` // of a link
}

func overlayDiffCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	asJSON := flags.Bool("json", false, "print the differences as a JSON array")
	return func(ctx context.Context, args []string) error {
		differences, err := diffOverlay(ctx, args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(os.Stdout).Encode(differences)
		}
		return printDifferences(openScreen(os.Stdout), differences)
	}
}

func diffOverlay(ctx context.Context, name string) ([]difference, error) {
	differences := []difference{}
	err := viewOverlays(func(m *machine.Machine, view *machine.OverlayView) error {
		o, err := findOverlay(m, name)
		if err != nil {
			return err
		}
		entries, err := view.Entries(o)
		if err != nil {
			return onlyRoot(name, err)
		}
		for _, e := range entries {
			below, err := view.Below(e.Path)
			if err != nil {
				return err
			}
			d, err := compare(ctx, e, below, machine.OverlayFile(o, e))
			if err != nil {
				return fmt.Errorf("comparing /%s: %w", e.Path, err)
			}
			differences = append(differences, d)
		}
		return nil
	})
	return differences, err
}

// compare tells what an entry, which is in a file, changes.
func compare(ctx context.Context, e overlay.Entry, below machine.Below, file string) (d difference, err error) {
	d = difference{Path: "/" + e.Path, Stale: e.Stale}
	switch {
	case below.Directory != nil:
		d.Before = &facts{Kind: overlay.Folder, Mode: below.Directory.Mode & 0o7777, UID: below.Directory.UID, GID: below.Directory.GID}
	case below.Path != "":
		if d.Before, err = factsOf(below.Path); err != nil {
			return d, err
		}
	}
	if e.Kind != overlay.Masked {
		if d.After, err = factsOf(file); err != nil {
			return d, err
		}
	}
	if d.After != nil {
		if d.Diff, err = d.contentDiff(ctx, below.Path, file); err != nil {
			return d, err
		}
	}
	d.Change, err = d.kindOfChange(e, below.Path, file)
	return d, err
}

// factsOf looks at a file.
func factsOf(path string) (*facts, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, err
	}
	f := &facts{Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.Kind, f.Size = overlay.File, st.Size
	case unix.S_IFDIR:
		f.Kind = overlay.Folder
	case unix.S_IFLNK:
		f.Kind = overlay.Link
		f.Target, err = os.Readlink(path)
	default:
		f.Kind = overlay.Special
	}
	return f, err
}

func (d *difference) kindOfChange(e overlay.Entry, before, after string) (change, error) {
	switch {
	case d.After == nil:
		return hidden, nil
	case d.Before == nil:
		return added, nil
	case *d.Before != *d.After || e.Opaque || d.Diff != "":
		return replaced, nil
	case d.After.Kind != overlay.File:
		return same, nil
	}
	equal, err := haveSameContent(before, after)
	if !equal {
		return replaced, err
	}
	return same, nil
}

func haveSameContent(a, b string) (bool, error) {
	sumA, err := sumOf(a)
	if err != nil {
		return false, err
	}
	sumB, err := sumOf(b)
	return sumA == sumB, err
}

func sumOf(path string) (sum [sha256.Size]byte, err error) {
	file, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer file.Close()
	digest := sha256.New()
	_, err = io.Copy(digest, file)
	return [sha256.Size]byte(digest.Sum(nil)), err
}

// contentDiff compares text with text, or with nothing. It is empty for anything else, and if there is no difference.
func (d *difference) contentDiff(ctx context.Context, before, after string) (string, error) {
	if d.Before == nil {
		before = os.DevNull
	}
	for _, side := range []*facts{d.Before, d.After} {
		if side != nil && side.Kind != overlay.File {
			return "", nil
		}
	}
	for _, path := range []string{before, after} {
		if text, err := isText(path); err != nil || !text {
			return "", err
		}
	}
	return runDiff(ctx, before, after, d.Path)
}

// textBegin is how much of a file tells whether it is text, as it does for git.
const textBegin = 8000

func isText(path string) (bool, error) {
	file, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer file.Close()
	begin, err := io.ReadAll(io.LimitReader(file, textBegin))
	return bytes.IndexByte(begin, 0) < 0, err
}

// runDiff has diff(1) compare two files.
func runDiff(ctx context.Context, before, after, path string) (string, error) {
	label := func(side, file string) string {
		if file == os.DevNull {
			return file
		}
		return side + path
	}
	command := exec.CommandContext(ctx, "diff", "--text", "-u", "--label", label("a", before), "--label", label("b", after), "--", before, after)
	command.Env = append(os.Environ(), "LC_ALL=C")
	var complaint strings.Builder
	command.Stderr = &complaint
	output, err := command.Output()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) && failed.ExitCode() == 1 {
		return string(output), nil // they differ
	}
	if err != nil {
		return "", fmt.Errorf("diff: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	return "", nil
}

func printDifferences(out screen, differences []difference) error {
	var text strings.Builder
	for _, d := range differences {
		if line := d.line(); line != "" {
			for _, line := range out.wrap(printable(line), 0) {
				fmt.Fprintln(&text, out.style(bold, line))
			}
		}
		if d.Stale {
			for _, line := range out.wrap(printable("stale "+d.Path+": what it replaced is another file now"), 0) {
				fmt.Fprintln(&text, out.style(yellow, line))
			}
		}
		out.printDiff(&text, d.Diff)
	}
	_, err := fmt.Fprint(out, text.String())
	return err
}

// line tells what a diff of the content does not; empty if that tells all.
func (d *difference) line() string {
	switch {
	case d.Change == hidden && d.Before == nil:
		return "hidden " + d.Path + " (there is nothing)"
	case d.Change == hidden:
		return "hidden " + d.Path + " (" + d.Before.String() + ")"
	case d.Change == same:
		return "same " + d.Path + " (" + d.After.String() + ")"
	case d.Change == added:
		return "added " + d.Path + " (" + d.After.String() + ")"
	}
	before, after := *d.Before, *d.After
	if d.Diff != "" {
		before.Size, after.Size = 0, 0
		if before == after {
			return ""
		}
	}
	return "replaced " + d.Path + " (" + d.After.String() + ", was " + d.Before.String() + ")"
}

// String describes a file for people.
func (f *facts) String() string {
	if f.Kind == overlay.Link {
		return "symlink to " + f.Target
	}
	text := string(f.Kind) + ", " + octal(f.Mode)
	if f.UID != 0 || f.GID != 0 {
		text += fmt.Sprintf(", of %d:%d", f.UID, f.GID)
	}
	if f.Kind == overlay.File {
		text += ", " + size(f.Size)
	}
	return text
}

// printDiff prints the output of diff(1): in a pipe as it is, so that patch(1) can read it.
func (s screen) printDiff(w io.Writer, diff string) {
	if !s.isTerminal() {
		fmt.Fprint(w, diff)
		return
	}
	for line := range strings.Lines(diff) {
		style := plain
		switch line[0] {
		case '+':
			style = green
		case '-':
			style = red
		case '@':
			style = dim
		}
		fmt.Fprintln(w, s.style(style, harmless(strings.TrimSuffix(line, "\n"))))
	}
}
