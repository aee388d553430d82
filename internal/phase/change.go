package phase

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/internal/overlay/content"
	"github.com/liveapply/liveapply/internal/services"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/underlay"
)

// Overlay carries out a request that liveapplyctl has left: all of it in one step, or nothing. If it is killed, liveapply-overlays.service makes
// the system what the stores say then: that is the state before, or the one after.
func (m *Machine) Overlay(ctx context.Context, id string) error {
	request := state.OverlayRequest(id)
	t, err := m.claim(ctx, services.OverlayUnit(id), request)
	if err != nil {
		return errors.Join(err, m.State.RemoveOverlayRequest(id))
	}
	err = m.changeOverlays(ctx, t, id)
	return errors.Join(err, m.State.RemoveOverlayRequest(id), m.release(context.WithoutCancel(ctx), t))
}

func (m *Machine) changeOverlays(ctx context.Context, t *state.Transaction, id string) error {
	request, err := m.takeOverlayRequest(ctx, id)
	if err != nil {
		return err
	}
	t.RequestedBy = request.RequestedBy
	if t.From, err = m.Live(); err != nil {
		return err
	}
	t.Begin("overlay")
	if err := m.lock.Write(t); err != nil {
		return err
	}
	configuration, err := m.Config.Load("")
	if err != nil {
		return err
	}
	writable, err := m.openOverlayStores()
	if err != nil {
		return err
	}
	defer writable.close()
	if err := m.stopWriting(request); err != nil {
		return err
	}
	draft, err := m.draft(ctx, writable, request, content.Rules(configuration.Overlay))
	if err != nil {
		// What was writable is so again.
		return errors.Join(err, m.followStores(context.WithoutCancel(ctx), t, m.goBack), m.dropOverlayContent(writable.list()))
	}
	defer draft.Close()
	if err := m.commitDraft(ctx, t, writable, draft); err != nil {
		return errors.Join(err, m.dropOverlayContent(writable.list()))
	}
	for _, op := range request.Operations {
		announce(t, messageOverlay, fmt.Sprintf("Overlay %s: %s %s", op.Name, op.Verb, op.Path), map[string]string{"LIVEAPPLY_OVERLAY": op.Name})
	}
	return m.dropOverlayContent(writable.list())
}

// takeOverlayRequest reads a request and removes it. What it leaves to a backup is read from that.
func (m *Machine) takeOverlayRequest(ctx context.Context, id string) (*overlay.Request, error) {
	text, err := m.State.TakeOverlayRequest(id)
	if err != nil {
		return nil, err
	}
	request, err := overlay.ParseRequest(text)
	if err != nil {
		return nil, err
	}
	for i := range request.Operations {
		op := &request.Operations[i]
		if op.Verb != overlay.Restore {
			continue
		}
		about, err := content.ReadBackup(ctx, op.From)
		if err != nil {
			return nil, err
		}
		op.Name, op.Scope = cmp.Or(op.Name, about.Name), cmp.Or(op.Scope, about.Scope)
	}
	return request, nil
}

// stopWriting shows what is to be frozen without its being written to: what was written from here on would be lost.
func (m *Machine) stopWriting(request *overlay.Request) error {
	shown, err := m.enabled()
	if err != nil {
		return err
	}
	writable := shown.Writable()
	if writable == nil || !slices.ContainsFunc(request.Operations, func(op overlay.Operation) bool {
		return op.Verb == overlay.Freeze && op.Name == writable.Name
	}) {
		return nil
	}
	writable.Writable = false
	return m.showOverlays(shown)
}

// overlayStores are where overlays are, to be changed.
type overlayStores struct {
	system, global, runtime overlay.Store
	storage                 *storage // nil without OSTree
}

func (m *Machine) openOverlayStores() (*overlayStores, error) {
	s := &overlayStores{}
	sysroot := physicalRoot
	if m.IsOSTree() {
		var err error
		if s.storage, err = m.openStorage(); err != nil {
			return nil, err
		}
		sysroot = s.storage.root()
	}
	s.system, s.global, s.runtime = m.stores(sysroot)
	return s, nil
}

func (s *overlayStores) close() {
	if s.storage != nil {
		s.storage.Close()
	}
}

func (s *overlayStores) list() []overlay.Store {
	if s.storage == nil {
		return []overlay.Store{s.system, s.runtime}
	}
	return []overlay.Store{s.system, s.global, s.runtime}
}

// of finds the store that all operations of a request are about: the change of one index is one step, that of two is not.
func (s *overlayStores) of(request *overlay.Request) (overlay.Store, error) {
	all, err := overlay.All(s.list())
	if err != nil {
		return overlay.Store{}, err
	}
	stores := map[string]overlay.Store{} // by the names of overlays, also of those that the request makes
	for _, o := range all {
		stores[o.Name] = o.Store
	}
	first := request.Operations[0]
	for _, op := range request.Operations {
		if _, known := stores[op.Name]; !known {
			if stores[op.Name], err = s.ofNew(op); err != nil {
				return overlay.Store{}, err
			}
		}
		if stores[op.Name] != stores[first.Name] {
			return overlay.Store{}, fmt.Errorf("%s and %s are not kept in the same place (persistent or until the reboot, for this system or for all), and cannot be changed in one step: name them one after the other",
				first.Name, op.Name)
		}
	}
	return stores[first.Name], nil
}

// ofNew is the store of an overlay that an operation makes.
func (s *overlayStores) ofNew(op overlay.Operation) (overlay.Store, error) {
	switch {
	case op.Runtime:
		return s.runtime, nil
	case op.Scope == overlay.Global && s.storage == nil:
		return overlay.Store{}, errors.New("the scope global needs OSTree: this system is the only one here")
	case op.Scope == overlay.Global:
		return s.global, nil
	}
	return s.system, nil
}

// draft makes all that a request asks for, without effect so far.
func (m *Machine) draft(ctx context.Context, stores *overlayStores, request *overlay.Request, rules content.Rules) (*content.Draft, error) {
	store, err := stores.of(request)
	if err != nil {
		return nil, err
	}
	others, err := overlay.All(slices.DeleteFunc(stores.list(), func(other overlay.Store) bool { return other == store }))
	if err != nil {
		return nil, err
	}
	var version int
	err = services.With(ctx, func(systemd *services.Systemd) error {
		version, err = systemd.Version()
		return err
	})
	if err != nil {
		return nil, err
	}
	return m.draftIn(ctx, store, others, version, request, rules)
}

// draftIn does that in a store. systemd is the version of the running one, which counts for what only a unit or a user sees.
func (m *Machine) draftIn(ctx context.Context, store overlay.Store, others []overlay.Placed, systemd int, request *overlay.Request, rules content.Rules) (*content.Draft, error) {
	base, closeBase, err := m.OverlayBase()
	if err != nil {
		return nil, err
	}
	defer closeBase()
	under := content.Under{Root: m.Root, Base: base, Scratch: m.State.Run, Systemd: systemd}
	draft, err := content.NewDraft(store, under, rules, others...)
	if err != nil {
		return nil, err
	}
	for _, op := range request.Operations {
		if err = draft.Do(ctx, op); err != nil {
			break
		}
	}
	if err == nil {
		err = draft.Finish(ctx, request.Force)
	}
	if err != nil {
		draft.Close()
		return nil, err
	}
	return draft, nil
}

// commitDraft tries the new stack, makes it true, and has the system follow. If that fails, all is as before.
func (m *Machine) commitDraft(ctx context.Context, t *state.Transaction, stores *overlayStores, draft *content.Draft) error {
	if err := m.tryDraft(ctx, stores.list(), draft); err != nil {
		return err
	}
	if err := draft.Commit(); err != nil {
		return errors.Join(err, draft.TakeBack())
	}
	err := m.followStores(ctx, t, m.follow)
	if err == nil {
		return nil
	}
	if back := draft.TakeBack(); back != nil {
		return errors.Join(err, back)
	}
	return errors.Join(err, m.followStores(context.WithoutCancel(ctx), t, m.goBack))
}

// followStores has the system follow, by Machine.follow or goBack, what the stores say now.
func (m *Machine) followStores(ctx context.Context, t *state.Transaction, follow func(context.Context, *state.Transaction, []overlay.Placed) error) error {
	all, err := m.Overlays()
	if err != nil {
		return err
	}
	return follow(ctx, t, all)
}

// tryDraft has a program run on the stack that a draft would make of what the stores have, in a namespace of its own.
func (m *Machine) tryDraft(ctx context.Context, stores []overlay.Store, draft *content.Draft) error {
	all, err := overlay.AllWith(stores, draft.Store, draft.Index)
	if err != nil {
		return err
	}
	live, err := m.Live()
	if err != nil {
		return err
	}
	s, err := m.stack(live, m.layersOf(live), overlay.Enabled(all))
	if err != nil || s.isNothing() {
		return err
	}
	status("trying to run a program with the new overlays")
	program := underlay.Program{Name: "/usr/bin/true"}
	if m.inInitrd() {
		program.Root = m.Root
	}
	return m.Usr.Try(ctx, s.Stack, program)
}

// FollowOverlays makes the system what the stores of overlays say: at boot, and when a change of overlays was killed. It ends the transaction
// of that.
func (m *Machine) FollowOverlays(ctx context.Context, _ string) error {
	t, err := m.claim(ctx, services.OverlaysUnit, state.OverlayRequest(""))
	if err != nil {
		return err
	}
	if t.From, err = m.Live(); err == nil {
		t.Begin("overlay")
		err = m.lock.Write(t)
	}
	if err == nil {
		err = m.followAtBoot(ctx, t)
	}
	return errors.Join(err, m.release(context.WithoutCancel(ctx), t))
}

// followAtBoot leaves persistent overlays out that cannot be shown: the machine works without them.
func (m *Machine) followAtBoot(ctx context.Context, t *state.Transaction) error {
	stores, err := m.openOverlayStores()
	if err != nil {
		return err
	}
	defer stores.close()
	if err := m.followStores(ctx, t, m.goBack); err != nil {
		// A tree that cannot be composed, or an index that cannot be read, must not leave half of it.
		return errors.Join(err, m.goBack(ctx, t, nil))
	}
	return m.dropOverlayContent(stores.list())
}
