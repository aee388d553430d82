package follow

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/image"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/internal/overlay/content"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
	"github.com/liveapply/liveapply/internal/transaction"
)

// mediumDir is where dracut has mounted the medium of a live system, in the initrd and afterwards.
const mediumDir = "/run/initramfs/live"

// Updates takes the images that the kernel command line names, and shows them above all that is there. One that cannot be had is left out: the
// machine starts without it, and this fails.
func Updates(ctx context.Context, m *machine.Machine, which string) error {
	images, err := m.Config.UpdatesImages()
	if err != nil {
		return err
	}
	configuration, err := m.Config.Load("")
	if err != nil {
		return err
	}
	rules := content.Rules(configuration.Overlay)
	var failed []error
	_, _, runtime := m.Stores(machine.PhysicalRoot)
	index, err := runtime.Index()
	if err != nil {
		return err
	}
	var fetched []overlay.Operation
	for _, asked := range images {
		if asked.IsURL() != (which == UpdatesByURL) || index.Find(updatesName(asked)) != nil {
			continue // or the initrd has taken it
		}
		// Before it is this one's turn: what comes at boot before all services must not wait for a server.
		op, err := fetchUpdates(ctx, m, asked, rules)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", asked, err))
			continue
		}
		fetched = append(fetched, op)
	}
	t, err := transaction.Claim(ctx, m, systemd.UpdatesUnit(which == UpdatesByURL), state.OverlayRequest(""))
	if err != nil {
		return errors.Join(errors.Join(failed...), err)
	}
	for _, op := range fetched {
		if err := importUpdates(ctx, m, op, rules); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", op.From, err))
		}
		op.Image.Close() // of memory, in /run
	}
	t.Begin("overlay")
	all, err := m.Overlays()
	if err == nil {
		err = goBack(ctx, m, t, all)
	}
	return errors.Join(errors.Join(failed...), err, transaction.Release(context.WithoutCancel(ctx), m, t))
}

// The images that Updates can be asked for, since those by URL have to wait for the network.
const (
	UpdatesByPath = "path"
	UpdatesByURL  = "url"
)

// updatesPriority puts updates images above what an administrator has made, later ones above the earlier.
const updatesPriority = 10000

func updatesName(asked config.UpdatesImage) string { return fmt.Sprintf("updates-%d", asked.Number) }

// fetchUpdates opens or fetches one image.
func fetchUpdates(ctx context.Context, m *machine.Machine, asked config.UpdatesImage, rules content.Rules) (op overlay.Operation, err error) {
	source, err := image.ParseSource(asked.Text)
	if err != nil {
		return op, err
	}
	if !asked.IsURL() {
		if source.Location, err = findImage(m, source.Location); err != nil {
			return op, err
		}
	}
	op = overlay.Operation{
		Verb: overlay.Import, Name: updatesName(asked), From: source.Location, SHA256: source.SHA256, Runtime: true,
		Priority: updatesPriority + asked.Number,
	}
	op.Image, err = content.FetchImage(ctx, op, rules, m.State.Run)
	return op, err
}

// importUpdates takes one image.
func importUpdates(ctx context.Context, m *machine.Machine, op overlay.Operation, rules content.Rules) error {
	_, _, runtime := m.Stores(machine.PhysicalRoot)
	request := &overlay.Request{
		Operations: []overlay.Operation{op},
		// Whoever writes the kernel command line may replace what the system cannot do without.
		Force: true,
	}
	draft, err := draftIn(ctx, m, runtime, nil, 0, request, rules)
	if err != nil {
		return err
	}
	defer draft.Close()
	if err := tryDraft(ctx, m, m.OverlayStores(), draft); err != nil {
		return err
	}
	return draft.Commit()
}

// findImage looks for an image by its path: in this root (in the initrd, that is the initramfs), on the medium of a live system, and in the system
// that is about to be started.
func findImage(m *machine.Machine, path string) (string, error) {
	for _, root := range []string{"/", mediumDir, m.Root} {
		if _, err := os.Lstat(filepath.Join(root, path)); err == nil {
			return filepath.Join(root, path), nil
		}
	}
	return "", fmt.Errorf("there is no %s, neither here nor on the medium (%s): %w", path, mediumDir, os.ErrNotExist)
}
