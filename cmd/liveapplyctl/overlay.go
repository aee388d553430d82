package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/overlay"
)

const overlayDetails = `An overlay is a named set of files that lie on top of what a commit has, in /usr, /etc and /run. A change of overlays that are enabled takes effect at
once, in one step. Without a verb it is list. See liveapply-overlay(7).`

// overlayVerbs are in the order of the help.
func overlayVerbs() []verb {
	return []verb{
		{"overlay create", "NAME", "Make a new overlay, which is enabled", overlayCreateDetails, overlayCreateCommand, nil},
		{"overlay add", "NAME PATH...", "Take files as they are now", overlayAddDetails, pathsCommand(overlay.Add), nil},
		{"overlay set", "NAME PATH...", "Give files other content", overlaySetDetails, overlaySetCommand, nil},
		{"overlay edit", "NAME PATH", "Change a file in an editor", overlayEditDetails, overlayEditCommand, nil},
		{"overlay mask", "NAME PATH...", "Hide files or directories", overlayMaskDetails, pathsCommand(overlay.Mask), nil},
		{"overlay unset", "NAME PATH...", "Take paths out of an overlay", overlayUnsetDetails, pathsCommand(overlay.Unset), nil},
		{"overlay enable", "NAME...", "Have overlays take effect", "", namesCommand(overlay.Enable), nil},
		{"overlay disable", "NAME...", "Keep overlays, without effect", "", namesCommand(overlay.Disable), nil},
		{"overlay remove", "NAME...", "Delete overlays", overlayRemoveDetails, namesCommand(overlay.Remove), nil},
		{"overlay freeze", "NAME", "Make a writable overlay an ordinary one", overlayFreezeDetails, overlayFreezeCommand, nil},
		{"overlay import", "IMAGE", "Take an updates image", overlayImportDetails, overlayImportCommand, nil},
		{"overlay backup", "NAME [FILE]", "Write an overlay to a file", overlayBackupDetails, overlayBackupCommand, nil},
		{"overlay restore", "FILE", "Make an overlay from a backup", overlayRestoreDetails, overlayRestoreCommand, nil},
		{"overlay list", "", "Show which overlays there are", overlayListDetails, overlayListCommand, nil},
		{"overlay show", "NAME", "Show what an overlay has", overlayShowDetails, overlayShowCommand, nil},
		{"overlay diff", "NAME", "Show what an overlay changes", overlayDiffDetails, overlayDiffCommand, nil},
	}
}

// overlayCommand runs a verb of overlay.
func overlayCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	flags.SetInterspersed(false)
	return func(ctx context.Context, args []string) error {
		if len(args) == 0 {
			args = []string{"list"}
		}
		v, err := findVerb(overlayVerbs(), "overlay "+args[0])
		if err != nil {
			return err
		}
		return v.run(ctx, args[1:])
	}
}

// findOverlay finds the overlay of a name.
func findOverlay(m *machine.Machine, name string) (overlay.Placed, error) {
	all, err := m.Overlays()
	if err != nil {
		return overlay.Placed{}, err
	}
	i := slices.IndexFunc(all, func(o overlay.Placed) bool { return o.Name == name })
	if i < 0 {
		return overlay.Placed{}, fmt.Errorf("there is no overlay %s: make it with liveapplyctl overlay create %s", name, name)
	}
	return all[i], nil
}
