package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/internal/overlay/content"
)

const overlayEditDetails = `The editor is $VISUAL, $EDITOR, editor or vi, the first that there is. It gets a copy of the file as the overlay has it, or else as it is now; one that does not
exist begins empty. If nothing is changed, nothing is done, and the exit status is 77. If what was edited is not taken, a file in /tmp has it.`

func overlayEditCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	force := forceFlag(flags)
	starter := starterFlags(flags)
	return func(ctx context.Context, args []string) error {
		name := args[0]
		paths, err := absolute(args[1:])
		if err != nil {
			return usageError{fmt.Errorf("overlay edit: %w", err)}
		}
		c, err := newOverlayChange(*force, func(c *overlayChange) error { return c.fillByEditor(name, paths[0]) })
		if errors.Is(err, errNothing) {
			starter.say("Nothing was changed.")
		}
		if err != nil {
			return err
		}
		edited, err := os.ReadFile(c.request.Operations[0].From)
		if err != nil {
			return err
		}
		// A key in the editor may have sent a signal to all programs on the terminal, which was for the editor.
		ctx, stop := signal.NotifyContext(context.WithoutCancel(ctx), unix.SIGTERM, unix.SIGINT)
		defer stop()
		if err := starter.carryOut(ctx, c); err != nil {
			return rescue(edited, err)
		}
		return nil
	}
}

// rescue keeps what was edited when it is not taken, and adds to the reason where it is.
func rescue(edited []byte, reason error) error {
	file, err := os.CreateTemp("", "liveapply-edit-*")
	if err != nil {
		return errors.Join(reason, err)
	}
	defer file.Close()
	if _, err := file.Write(edited); err != nil {
		return errors.Join(reason, err)
	}
	return fmt.Errorf("%w\nwhat was edited is in %s", reason, file.Name())
}

func (c *overlayChange) fillByEditor(name, path string) error {
	o, err := findOverlay(c.machine, name)
	if err != nil {
		return err
	}
	if o.Writable {
		return fmt.Errorf("overlay %s is writable: edit %s itself", name, path)
	}
	file, mode, err := c.edit(o, path)
	if err != nil {
		return err
	}
	c.ask(overlay.Operation{Verb: overlay.Set, Name: name, Path: path, From: file, Mode: mode})
	c.say("Overlay %s has new content for %s%s", name, path, ofDisabled(o))
	return nil
}

// edit has the administrator change a private copy of a file, and returns where that is.
func (c *overlayChange) edit(o overlay.Placed, path string) (copied string, mode uint32, err error) {
	now, err := c.current(o, path)
	if err != nil {
		return "", 0, err
	}
	before, mode, err := readCurrent(now)
	if err != nil {
		return "", 0, err
	}
	// By its name, an editor knows what it is.
	if copied, err = c.keepAs(filepath.Base(path), bytes.NewReader(before)); err != nil {
		return "", 0, err
	}
	if err := runEditor(copied); err != nil {
		return "", 0, err
	}
	after, err := os.ReadFile(copied)
	if err == nil && bytes.Equal(before, after) {
		err = errNothing
	}
	return copied, mode, err
}

// current is where a file is as it is now: in the overlay, or else in the system.
func (c *overlayChange) current(o overlay.Placed, path string) (string, error) {
	landed, err := content.Under{Root: c.machine.Root}.Land(path)
	if err != nil {
		return "", err
	}
	entries, err := o.Entries()
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(entries, func(e overlay.Entry) bool { return e.Path == landed && e.Kind != overlay.Masked })
	if i >= 0 {
		return machine.OverlayFile(o, entries[i]), nil
	}
	return filepath.Join(c.machine.Root, landed), nil
}

// readCurrent reads a file, which may be missing.
func readCurrent(path string) (content []byte, mode uint32, err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, newFileMode, nil
	case errors.Is(err, unix.ELOOP):
		return nil, 0, fmt.Errorf("%s is a link: name the file that it leads to", path)
	case err != nil:
		return nil, 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		return nil, 0, err
	}
	content, err = io.ReadAll(file)
	return content, uint32(info.Mode().Perm()), err
}

// runEditor returns when the editor has ended. As for git and others, $VISUAL and $EDITOR are for the shell.
func runEditor(path string) error {
	editor := cmp.Or(os.Getenv("VISUAL"), os.Getenv("EDITOR"))
	for _, program := range []string{"editor", "vi"} {
		if found, err := exec.LookPath(program); editor == "" && err == nil {
			editor = found
		}
	}
	if editor == "" {
		return errors.New("there is no editor: name one in $EDITOR, or give the content to overlay set")
	}
	// This program waits for its end, whatever keys are for the editor.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT)
	defer signal.Stop(signals)
	command := exec.Command("sh", "-c", editor+` "$1"`, "sh", path)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := command.Run(); err != nil {
		return fmt.Errorf("%s: %w: nothing was changed", editor, err)
	}
	return nil
}
