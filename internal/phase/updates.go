package phase

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/image"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/internal/overlay/content"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
)

// initrdRoot is where an initrd mounts the system that it starts, and initrdFlag tells that this is an initrd (systemd's rule).
const (
	initrdRoot = "/sysroot"
	initrdFlag = "/etc/initrd-release"
)

// OpenForUpdates looks at the system that updates images are for: the running one, or in the initrd the one that is about to be started.
func OpenForUpdates() (*Machine, error) {
	if _, err := os.Lstat(initrdFlag); errors.Is(err, os.ErrNotExist) {
		return OpenAnywhereAsRoot()
	}
	m := newMachine(initrdRoot)
	m.Config.Root = "/" // its own kernel command line
	if err := m.lookForOSTree(); err != nil {
		return nil, err
	}
	return m, m.State.Make()
}

// lookForOSTree finds out in an initrd whether the system that is about to be started is a deployment.
func (m *Machine) lookForOSTree() error {
	sysroot, err := ostree.OpenSysroot(m.Root)
	if err == nil {
		sysroot = sysroot.InInitrd()
		m.Booted, err = sysroot.Booted()
	}
	if errors.Is(err, ostree.ErrNotBooted) {
		return nil
	}
	m.Sysroot = sysroot
	return err
}

// inInitrd tells whether the system has yet to be started: no service of it runs, and not all of its filesystems need be mounted.
func (m *Machine) inInitrd() bool { return m.Root != "/" }

// mediumDir is where dracut has mounted the medium of a live system, in the initrd and afterwards.
const mediumDir = "/run/initramfs/live"

// Updates takes the images that the kernel command line names, and shows them above all that is there. One that cannot be had is left out: the
// machine starts without it, and this fails.
func (m *Machine) Updates(ctx context.Context, which string) error {
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
	_, _, runtime := m.stores(physicalRoot)
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
		op, err := m.fetchUpdates(ctx, asked, rules)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", asked, err))
			continue
		}
		fetched = append(fetched, op)
	}
	t, err := m.claim(ctx, services.UpdatesUnit(which == UpdatesByURL), state.OverlayRequest(""))
	if err != nil {
		return errors.Join(errors.Join(failed...), err)
	}
	for _, op := range fetched {
		if err := m.importUpdates(ctx, op, rules); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", op.From, err))
		}
		op.Image.Close() // of memory, in /run
	}
	t.Begin("overlay")
	all, err := m.Overlays()
	if err == nil {
		err = m.goBack(ctx, t, all)
	}
	return errors.Join(errors.Join(failed...), err, m.release(context.WithoutCancel(ctx), t))
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
func (m *Machine) fetchUpdates(ctx context.Context, asked config.UpdatesImage, rules content.Rules) (op overlay.Operation, err error) {
	source, err := image.ParseSource(asked.Text)
	if err != nil {
		return op, err
	}
	if !asked.IsURL() {
		if source.Location, err = m.findImage(source.Location); err != nil {
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
func (m *Machine) importUpdates(ctx context.Context, op overlay.Operation, rules content.Rules) error {
	_, _, runtime := m.stores(physicalRoot)
	request := &overlay.Request{
		Operations: []overlay.Operation{op},
		// Whoever writes the kernel command line may replace what the system cannot do without.
		Force: true,
	}
	draft, err := m.draftIn(ctx, runtime, nil, 0, request, rules)
	if err != nil {
		return err
	}
	defer draft.Close()
	if err := m.tryDraft(ctx, m.OverlayStores(), draft); err != nil {
		return err
	}
	return draft.Commit()
}

// findImage looks for an image by its path: in this root (in the initrd, that is the initramfs), on the medium of a live system, and in the system
// that is about to be started.
func (m *Machine) findImage(path string) (string, error) {
	for _, root := range []string{"/", mediumDir, m.Root} {
		if _, err := os.Lstat(filepath.Join(root, path)); err == nil {
			return filepath.Join(root, path), nil
		}
	}
	return "", fmt.Errorf("there is no %s, neither here nor on the medium (%s): %w", path, mediumDir, os.ErrNotExist)
}
