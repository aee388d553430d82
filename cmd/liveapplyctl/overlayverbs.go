package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/overlay"
)

const (
	overlayCreateDetails = `SCOPE is who sees it: system (the default), global (all systems on this machine that share its repo), user:UID (the manager of a user, and what it starts)
or unit:UNIT (only that service). Among overlays that have a path, that with the higher priority is on top; of equal ones, that whose name sorts later. Through a
writable overlay, /usr can be written to.`
	overlayAddDetails = `Then the overlay has them, and they stay as they are now whatever commit is live. All paths are one step.`
	overlaySetDetails = `There is one --from for each PATH, in the same order; - is standard input. A file that is there keeps its owner, mode and extended attributes. All paths
are one step.`
	overlayMaskDetails   = `What is at PATH, and below it, is not there any more as long as the overlay is enabled. All paths are one step.`
	overlayUnsetDetails  = `They are as without the overlay again. All paths are one step.`
	overlayRemoveDetails = `Their content is gone then: to be able to come back, disable them, or write a backup first.`
	overlayFreezeDetails = `What was written to /usr through it stays, as the content of an ordinary overlay, and /usr is read-only again.`
	overlayImportDetails = `IMAGE is a directory, a tar or cpio archive, plain or compressed by gzip, xz or zstd, or a filesystem image (squashfs, erofs, ext4), with usr, etc and
run, or lib, lib64, bin and sbin. If there is an overlay of updates of this name, it gets the image's content in the place of its own.`
	overlayRestoreDetails = `FILE is what backup has written; - is standard input. It is checked before anything is changed. The overlay is enabled if it was when it was backed up, and it
stays after a reboot.`
)

// place is where a new overlay belongs.
type place struct {
	scope    string
	runtime  bool
	priority int
}

func placeFlags(flags *pflag.FlagSet) *place {
	p := &place{}
	flags.StringVar(&p.scope, "scope", string(overlay.System), "be seen by `SCOPE`: system, global, user:UID or unit:UNIT")
	flags.BoolVar(&p.runtime, "runtime", false, "stay until the next boot only")
	flags.IntVar(&p.priority, "priority", 0, "lie above overlays with less than `N`")
	return p
}

// asksPlace tells whether somebody wants one in particular.
func asksPlace(flags *pflag.FlagSet) bool {
	return flags.Changed("scope") || flags.Changed("runtime") || flags.Changed("priority")
}

// operation makes a new overlay there.
func (p *place) operation(verb overlay.Verb, name string) (overlay.Operation, error) {
	op := overlay.Operation{Verb: verb, Name: name, Runtime: p.runtime, Priority: p.priority}
	if err := overlay.CheckName(name); err != nil {
		return op, err
	}
	var err error
	if op.Scope, err = overlay.ParseScope(p.scope); err != nil {
		return op, fmt.Errorf("--scope: %w", err)
	}
	return op, nil
}

func overlayCreateCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	place := placeFlags(flags)
	writable := flags.Bool("writable", false, "be what is written when somebody writes to /usr")
	starter := starterFlags(flags)
	return func(ctx context.Context, args []string) error {
		op, err := place.operation(overlay.Create, args[0])
		if err != nil {
			return usageError{fmt.Errorf("overlay create: %w", err)}
		}
		op.Writable = *writable
		return starter.changeOverlays(ctx, false, func(c *overlayChange) error {
			c.ask(op)
			c.say("Overlay %s is made, and enabled.", op.Name)
			return nil
		})
	}
}

// pathsCommand does the same to each of several paths.
func pathsCommand(verb overlay.Verb) func(*pflag.FlagSet) func(context.Context, []string) error {
	said := map[overlay.Verb]string{overlay.Add: "has", overlay.Mask: "hides", overlay.Unset: "no longer has"}[verb]
	return func(flags *pflag.FlagSet) func(context.Context, []string) error {
		force := forceFlag(flags)
		starter := starterFlags(flags)
		return func(ctx context.Context, args []string) error {
			name := args[0]
			paths, err := absolute(args[1:])
			if err != nil {
				return usageError{fmt.Errorf("overlay %s: %w", verb, err)}
			}
			return starter.changeOverlays(ctx, *force, func(c *overlayChange) error {
				o, err := findOverlay(c.machine, name)
				if err != nil {
					return err
				}
				for _, path := range paths {
					c.ask(overlay.Operation{Verb: verb, Name: name, Path: path})
				}
				c.say("Overlay %s %s %s%s", name, said, strings.Join(paths, ", "), ofDisabled(o))
				return nil
			})
		}
	}
}

func overlaySetCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	from := flags.StringArray("from", nil, "take the new content from `FILE`, or from standard input if it is -")
	force := forceFlag(flags)
	starter := starterFlags(flags)
	return func(ctx context.Context, args []string) error {
		name := args[0]
		paths, err := absolute(args[1:])
		if err == nil {
			err = checkSources(paths, *from)
		}
		if err != nil {
			return usageError{fmt.Errorf("overlay set: %w", err)}
		}
		return starter.changeOverlays(ctx, *force, func(c *overlayChange) error {
			o, err := findOverlay(c.machine, name)
			if err != nil {
				return err
			}
			for i, path := range paths {
				file, mode, err := c.content((*from)[i])
				if err != nil {
					return err
				}
				c.ask(overlay.Operation{Verb: overlay.Set, Name: name, Path: path, From: file, Mode: mode})
			}
			c.say("Overlay %s has new content for %s%s", name, strings.Join(paths, ", "), ofDisabled(o))
			return nil
		})
	}
}

// checkSources makes sure that it is known which path gets which content.
func checkSources(paths, from []string) error {
	stdin := 0
	for _, file := range from {
		if file == "-" {
			stdin++
		}
	}
	switch {
	case len(from) != len(paths):
		return fmt.Errorf("--from=FILE is given %d times for %d paths: give it once for each", len(from), len(paths))
	case stdin > 1:
		return errors.New("standard input can be the content of one path only")
	}
	return nil
}

// namesCommand does the same to each of several overlays.
func namesCommand(verb overlay.Verb) func(*pflag.FlagSet) func(context.Context, []string) error {
	said := map[overlay.Verb]string{overlay.Enable: "enabled", overlay.Disable: "disabled", overlay.Remove: "removed"}[verb]
	return func(flags *pflag.FlagSet) func(context.Context, []string) error {
		starter := starterFlags(flags)
		return func(ctx context.Context, names []string) error {
			err := starter.changeOverlays(ctx, false, func(c *overlayChange) error {
				for _, name := range names {
					o, err := findOverlay(c.machine, name)
					if err != nil {
						return err
					}
					if verb == overlay.Remove || o.Enabled != (verb == overlay.Enable) {
						c.ask(overlay.Operation{Verb: verb, Name: name})
					}
				}
				c.say("%s: %s.", strings.Join(names, ", "), said)
				if len(c.request.Operations) == 0 {
					return errNothing
				}
				return nil
			})
			if errors.Is(err, errNothing) {
				starter.say("%s: %s already.", strings.Join(names, ", "), said)
			}
			return err
		}
	}
}

func overlayFreezeCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	force := forceFlag(flags)
	starter := starterFlags(flags)
	return func(ctx context.Context, args []string) error {
		name := args[0]
		err := starter.changeOverlays(ctx, *force, func(c *overlayChange) error {
			o, err := findOverlay(c.machine, name)
			if err != nil {
				return err
			}
			if !o.Writable {
				return errNothing
			}
			c.ask(overlay.Operation{Verb: overlay.Freeze, Name: name})
			c.say("Overlay %s is an ordinary one now%s", name, ofDisabled(o))
			return nil
		})
		if errors.Is(err, errNothing) {
			starter.say("Overlay %s is not writable.", name)
		}
		return err
	}
}

// sha256Digits is a checksum as sha256sum(1) prints it.
var sha256Digits = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)

func overlayImportCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	name := flags.String("name", "updates", "give the overlay this `NAME`")
	sum := flags.String("sha256", "", "refuse an image without this `CHECKSUM`, 64 hexadecimal digits")
	place := placeFlags(flags)
	force := forceFlag(flags)
	starter := starterFlags(flags)
	return func(ctx context.Context, args []string) error {
		op, err := place.operation(overlay.Import, *name)
		if err == nil {
			op.SHA256 = *sum
			op.From, err = imageSource(args[0], *sum)
		}
		if err != nil {
			return usageError{fmt.Errorf("overlay import: %w", err)}
		}
		return starter.changeOverlays(ctx, *force, func(c *overlayChange) error {
			if _, err := findOverlay(c.machine, op.Name); err == nil && asksPlace(flags) {
				return fmt.Errorf("there is an overlay %s already, which stays where it is: leave --scope, --runtime and --priority out, or remove it first", op.Name)
			}
			c.ask(op)
			c.say("Overlay %s has the content of %s.", op.Name, args[0])
			return nil
		})
	}
}

// imageSource is where an image is, for whoever reads it elsewhere.
func imageSource(image, sum string) (string, error) {
	isURL := strings.Contains(image, "://")
	switch {
	case sum != "" && !sha256Digits.MatchString(sum):
		return "", fmt.Errorf("--sha256: %q is not 64 hexadecimal digits, as sha256sum prints them", sum)
	case isURL && sum == "":
		return "", errors.New("what is fetched from elsewhere needs a checksum: --sha256")
	case isURL:
		return image, nil
	}
	paths, err := absolute([]string{image})
	if err != nil {
		return "", err
	}
	return paths[0], nil
}

func overlayRestoreCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	name := flags.String("name", "", "give the overlay this `NAME`, and not the one that it had")
	force := forceFlag(flags)
	starter := starterFlags(flags)
	return func(ctx context.Context, args []string) error {
		if *name != "" {
			if err := overlay.CheckName(*name); err != nil {
				return usageError{fmt.Errorf("overlay restore: --name: %w", err)}
			}
		}
		return starter.changeOverlays(ctx, *force, func(c *overlayChange) error {
			file, _, err := c.content(args[0])
			if err != nil {
				return err
			}
			c.ask(overlay.Operation{Verb: overlay.Restore, Name: *name, From: file})
			c.say("The overlay of %s is restored.", args[0])
			return nil
		})
	}
}
