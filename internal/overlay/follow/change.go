package follow

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/internal/overlay/content"
	"github.com/liveapply/liveapply/internal/report"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
	"github.com/liveapply/liveapply/internal/transaction"
	"github.com/liveapply/liveapply/internal/underlay"
)

// Change carries out a request that liveapplyctl has left: all of it in one step, or nothing. If it is killed, liveapply-overlays.service makes
// the system what the stores say then: that is the state before, or the one after.
func Change(ctx context.Context, m *machine.Machine, id string) error {
	request := state.OverlayRequest(id)
	t, err := transaction.Claim(ctx, m, systemd.OverlayUnit(id), request)
	if err != nil {
		return errors.Join(err, m.State.RemoveOverlayRequest(id))
	}
	err = changeOverlays(ctx, m, t, id)
	return errors.Join(err, m.State.RemoveOverlayRequest(id), transaction.Release(context.WithoutCancel(ctx), m, t))
}

func changeOverlays(ctx context.Context, m *machine.Machine, t *state.Transaction, id string) error {
	request, err := takeOverlayRequest(ctx, m, id)
	if err != nil {
		return err
	}
	t.RequestedBy = request.RequestedBy
	if t.From, err = m.Live(); err != nil {
		return err
	}
	t.Begin("overlay")
	if err := m.Lock.Write(t); err != nil {
		return err
	}
	configuration, err := m.Config.Load("")
	if err != nil {
		return err
	}
	writable, err := openOverlayStores(m)
	if err != nil {
		return err
	}
	defer writable.close()
	if err := stopWriting(m, request); err != nil {
		return err
	}
	draft, err := draft(ctx, m, writable, request, content.Rules(configuration.Overlay))
	if err != nil {
		// What was writable is so again.
		return errors.Join(err, followStores(context.WithoutCancel(ctx), m, t, goBack), m.DropOverlayContent(writable.list()))
	}
	defer draft.Close()
	if err := commitDraft(ctx, m, t, writable, draft); err != nil {
		return errors.Join(err, m.DropOverlayContent(writable.list()))
	}
	for _, op := range request.Operations {
		report.Announce(t, report.MessageOverlay, fmt.Sprintf("Overlay %s: %s %s", op.Name, op.Verb, op.Path), map[string]string{"LIVEAPPLY_OVERLAY": op.Name})
	}
	return m.DropOverlayContent(writable.list())
}

// takeOverlayRequest reads a request and removes it. What it leaves to a backup is read from that.
func takeOverlayRequest(ctx context.Context, m *machine.Machine, id string) (*overlay.Request, error) {
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
func stopWriting(m *machine.Machine, request *overlay.Request) error {
	shown, err := m.EnabledOverlays()
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
	return showOverlays(m, shown)
}

// overlayStores are where overlays are, to be changed.
type overlayStores struct {
	system, global, runtime overlay.Store
	storage                 *machine.Storage // nil without OSTree
}

func openOverlayStores(m *machine.Machine) (*overlayStores, error) {
	s := &overlayStores{}
	sysroot := machine.PhysicalRoot
	if m.IsOSTree() {
		var err error
		if s.storage, err = m.OpenStorage(); err != nil {
			return nil, err
		}
		sysroot = s.storage.Root()
	}
	s.system, s.global, s.runtime = m.Stores(sysroot)
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
func draft(ctx context.Context, m *machine.Machine, stores *overlayStores, request *overlay.Request, rules content.Rules) (*content.Draft, error) {
	store, err := stores.of(request)
	if err != nil {
		return nil, err
	}
	others, err := overlay.All(slices.DeleteFunc(stores.list(), func(other overlay.Store) bool { return other == store }))
	if err != nil {
		return nil, err
	}
	var version int
	err = systemd.With(ctx, func(manager *systemd.Manager) error {
		version, err = manager.Version()
		return err
	})
	if err != nil {
		return nil, err
	}
	return draftIn(ctx, m, store, others, version, request, rules)
}

// draftIn does that in a store. systemd is the version of the running one, which counts for what only a unit or a user sees.
func draftIn(ctx context.Context, m *machine.Machine, store overlay.Store, others []overlay.Placed, manager int, request *overlay.Request, rules content.Rules) (*content.Draft, error) {
	base, closeBase, err := m.OverlayBase()
	if err != nil {
		return nil, err
	}
	defer closeBase()
	under := content.Under{Root: m.Root, Base: base, Scratch: m.State.Run, Systemd: manager}
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
func commitDraft(ctx context.Context, m *machine.Machine, t *state.Transaction, stores *overlayStores, draft *content.Draft) error {
	if err := tryDraft(ctx, m, stores.list(), draft); err != nil {
		return err
	}
	if err := draft.Commit(); err != nil {
		return errors.Join(err, draft.TakeBack())
	}
	err := followStores(ctx, m, t, follow)
	if err == nil {
		return nil
	}
	if back := draft.TakeBack(); back != nil {
		return errors.Join(err, back)
	}
	return errors.Join(err, followStores(context.WithoutCancel(ctx), m, t, goBack))
}

// followStores has the system follow, by follow or goBack, what the stores say now.
func followStores(ctx context.Context, m *machine.Machine, t *state.Transaction, follow func(context.Context, *machine.Machine, *state.Transaction, []overlay.Placed) error) error {
	all, err := m.Overlays()
	if err != nil {
		return err
	}
	return follow(ctx, m, t, all)
}

// tryDraft has a program run on the stack that a draft would make of what the stores have, in a namespace of its own.
func tryDraft(ctx context.Context, m *machine.Machine, stores []overlay.Store, draft *content.Draft) error {
	all, err := overlay.AllWith(stores, draft.Store, draft.Index)
	if err != nil {
		return err
	}
	live, err := m.Live()
	if err != nil {
		return err
	}
	s, err := m.Stack(live, m.LayersOf(live), overlay.Enabled(all))
	if err != nil || s.IsNothing() {
		return err
	}
	report.Status("trying to run a program with the new overlays")
	program := underlay.Program{Name: "/usr/bin/true"}
	if m.InInitrd() {
		program.Root = m.Root
	}
	return m.Usr.Try(ctx, s.Stack, program)
}

// Stores makes the system what the stores of overlays say: at boot, and when a change of overlays was killed. It ends the transaction
// of that.
func Stores(ctx context.Context, m *machine.Machine, _ string) error {
	t, err := transaction.Claim(ctx, m, systemd.OverlaysUnit, state.OverlayRequest(""))
	if err != nil {
		return err
	}
	if t.From, err = m.Live(); err == nil {
		t.Begin("overlay")
		err = m.Lock.Write(t)
	}
	if err == nil {
		err = followAtBoot(ctx, m, t)
	}
	return errors.Join(err, transaction.Release(context.WithoutCancel(ctx), m, t))
}

// followAtBoot leaves persistent overlays out that cannot be shown: the machine works without them.
func followAtBoot(ctx context.Context, m *machine.Machine, t *state.Transaction) error {
	stores, err := openOverlayStores(m)
	if err != nil {
		return err
	}
	defer stores.close()
	if err := followStores(ctx, m, t, goBack); err != nil {
		// A tree that cannot be composed, or an index that cannot be read, must not leave half of it.
		return errors.Join(err, goBack(ctx, m, t, nil))
	}
	return m.DropOverlayContent(stores.list())
}
