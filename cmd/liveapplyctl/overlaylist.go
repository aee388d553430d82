package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/overlay"
)

const (
	overlayListDetails = `The topmost is first. A path of an overlay is stale if what it replaced is another file now, in the commit that is live; this is only shown to root.`
	overlayShowDetails = `For each path it shows what the overlay has there. It is stale if what it replaced is another file now. Only root may look.`
)

// listedOverlay is what list tells of an overlay.
type listedOverlay struct {
	overlay.Overlay
	Runtime bool     `json:"runtime"` // gone after a reboot
	Stale   []string `json:"stale"`   // paths at which what it replaced is another one; null if that is not known
}

// shownOverlay is what show tells of one.
type shownOverlay struct {
	listedOverlay
	Entries []overlay.Entry `json:"entries"`
}

// listed tells of an overlay what everybody may know.
func listed(m *machine.Machine, o overlay.Placed) listedOverlay {
	return listedOverlay{Overlay: o.Overlay, Runtime: strings.HasPrefix(o.Store.Path, m.State.Run+"/")}
}

func overlayListCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	asJSON := flags.Bool("json", false, "print the overlays as a JSON array")
	return func(context.Context, []string) error {
		overlays, err := listOverlays()
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(os.Stdout).Encode(overlays)
		}
		return printOverlays(openScreen(os.Stdout), overlays)
	}
}

func listOverlays() ([]listedOverlay, error) {
	overlays := []listedOverlay{}
	err := viewOverlays(func(m *machine.Machine, view *machine.OverlayView) error {
		all, err := m.Overlays()
		if err != nil {
			return err
		}
		for _, o := range all {
			one := listed(m, o)
			if one.Stale, err = view.Stale(o); err != nil && !errors.Is(err, fs.ErrPermission) {
				return err
			}
			overlays = append(overlays, one)
		}
		return nil
	})
	return overlays, err
}

// viewOverlays looks at overlays, on any system.
func viewOverlays(look func(*machine.Machine, *machine.OverlayView) error) error {
	m, err := machine.OpenAnywhere()
	if err != nil {
		return err
	}
	view := m.ViewOverlays()
	defer view.Close()
	return look(m, view)
}

func printOverlays(out screen, overlays []listedOverlay) error {
	var text strings.Builder
	if len(overlays) == 0 {
		fmt.Fprintln(&text, "There is no overlay.")
	} else {
		t := table{columns: []column{{"NAME", false}, {"SCOPE", false}, {"PRIORITY", true}, {"STATE", false}, {"STALE", true}, {"WHAT", false}}}
		for _, o := range overlays {
			t.rows = append(t.rows, row{cells: []cell{
				{o.Name, plain}, {string(o.Scope), plain}, {strconv.Itoa(o.Priority), plain}, stateOf(o.Overlay), staleOf(o.Stale), {what(o), dim},
			}})
		}
		t.print(out, &text)
	}
	_, err := fmt.Fprint(out, text.String())
	return err
}

func stateOf(o overlay.Overlay) cell {
	if o.Enabled {
		return cell{"enabled", green}
	}
	return cell{"disabled", dim}
}

// staleOf is the number of stale paths.
func staleOf(paths []string) cell {
	switch {
	case paths == nil:
		return cell{"?", dim}
	case len(paths) == 0:
		return cell{"-", dim}
	}
	return cell{strconv.Itoa(len(paths)), yellow}
}

// what says what else there is to say.
func what(o listedOverlay) string {
	words := []string{string(o.Kind)}
	if o.Runtime {
		words = append(words, "runtime")
	}
	if o.Writable {
		words = append(words, "writable")
	}
	if o.Source != "" {
		words = append(words, "from "+printable(o.Source))
	}
	return strings.Join(words, ", ")
}

func overlayShowCommand(flags *pflag.FlagSet) func(context.Context, []string) error {
	asJSON := flags.Bool("json", false, "print the overlay, and its entries, as JSON")
	return func(_ context.Context, args []string) error {
		shown, err := showOverlay(args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(os.Stdout).Encode(shown)
		}
		return printEntries(openScreen(os.Stdout), shown)
	}
}

func showOverlay(name string) (shown shownOverlay, err error) {
	err = viewOverlays(func(m *machine.Machine, view *machine.OverlayView) error {
		o, err := findOverlay(m, name)
		if err != nil {
			return err
		}
		entries, err := view.Entries(o)
		if err != nil {
			return onlyRoot(name, err)
		}
		shown = shownOverlay{listed(m, o), append([]overlay.Entry{}, entries...)}
		shown.Stale = machine.StalePaths(entries)
		return nil
	})
	return shown, err
}

// onlyRoot says who may look at the content of an overlay.
func onlyRoot(name string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("only root can see what overlay %s has", name)
	}
	return err
}

func printEntries(out screen, o shownOverlay) error {
	fields := []field{
		{"Overlay", bold, []string{o.Name}},
		{"Kind", plain, []string{what(o.listedOverlay)}},
		{"Scope", plain, []string{string(o.Scope)}},
		{"Priority", plain, []string{strconv.Itoa(o.Priority)}},
		{"State", stateOf(o.Overlay).style, []string{stateOf(o.Overlay).text}},
	}
	var text strings.Builder
	out.printFields(&text, fields)
	if len(o.Entries) > 0 {
		fmt.Fprintln(&text)
		t := table{columns: []column{{"KIND", false}, {"MODE", false}, {"SIZE", true}, {"STALE", false}, {"PATH", false}}}
		for _, e := range o.Entries {
			t.rows = append(t.rows, row{cells: []cell{
				{string(e.Kind), plain}, {modeOf(e), plain}, {sizeOf(e), plain}, {map[bool]string{true: "stale", false: "-"}[e.Stale], staleStyle(e.Stale)},
				{printable("/" + e.Path), plain},
			}})
		}
		t.print(out, &text)
	}
	_, err := fmt.Fprint(out, text.String())
	return err
}

func staleStyle(stale bool) string {
	if stale {
		return yellow
	}
	return dim
}

// modeOf is what ls(1) and chmod(1) know as the mode; a link has none of its own, and a mask none at all.
func modeOf(e overlay.Entry) string {
	if e.Kind == overlay.Link || e.Kind == overlay.Masked {
		return "-"
	}
	return octal(e.Mode)
}

func octal(mode uint32) string { return fmt.Sprintf("%04o", mode) }

func sizeOf(e overlay.Entry) string {
	if e.Kind != overlay.File {
		return "-"
	}
	return size(e.Size)
}
