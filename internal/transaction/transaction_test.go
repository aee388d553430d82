package transaction

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
)

// lab is a place with a systemd that knows which units work, and what starting one does.
type lab struct {
	place
	working map[string]bool
	started []string
	start   func(unit string) error
}

func newLab(t *testing.T) *lab {
	t.Helper()
	root := t.TempDir()
	m := &lab{working: map[string]bool{}}
	m.state = state.Dirs{Run: filepath.Join(root, "run"), Deployments: filepath.Join(root, "deployments"), Lib: filepath.Join(root, "lib")}
	if err := m.state.Make(); err != nil {
		t.Fatal(err)
	}
	m.underWay = m.state.Transaction
	m.with = func(_ context.Context, do func(unitManager) error) error { return do(m) }
	m.status = func(string, ...any) {}
	m.start = func(string) error { return m.end() }
	return m
}

func (m *lab) IsWorkingOn(_ context.Context, unit string) (bool, error) {
	return m.working[unit], nil
}

func (m *lab) Start(_ context.Context, unit string) error {
	m.started = append(m.started, unit)
	return m.start(unit)
}

// end ends what is under way, as a rollback does.
func (m *lab) end() error {
	lock, err := m.state.Lock(context.Background(), func() {})
	if err != nil {
		return err
	}
	defer lock.Close()
	return lock.Clear()
}

// begin leaves a transaction of a unit.
func (m *lab) begin(t *testing.T, unit, request string, switched bool) *state.Transaction {
	t.Helper()
	lock, err := m.state.Lock(t.Context(), func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	transaction, err := lock.Begin(unit, request)
	if err == nil {
		transaction.Switched = switched
		err = lock.Write(transaction)
	}
	if err != nil {
		t.Fatal(err)
	}
	return transaction
}

func (m *lab) own(t *testing.T, unit, request string) *state.Transaction {
	t.Helper()
	lock, own, err := m.place.own(t.Context(), unit, request)
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
	return own
}

const a, b = "liveapply@a.service", "liveapply@b.service"

func TestOwnGoesOnWithItsTransaction(t *testing.T) {
	m := newLab(t)
	first := m.own(t, a, "a")
	if again := m.own(t, a, "a"); again.ID != first.ID || len(m.started) != 0 {
		t.Errorf("got %+v and started %v", again, m.started)
	}
}

func TestOwnTakesBackFirstWhatWasInterrupted(t *testing.T) {
	for _, c := range []struct {
		name, unit, request string
		switched            bool
		first               string
	}{
		{"another", b, "b", false, systemd.RollbackUnit("b")},
		{"its own, which has switched /usr", a, "a", true, systemd.RollbackUnit("a")},
		{"a reset", systemd.ResetUnit, state.ResetRequest, true, systemd.ResetUnit},
		{"a rollback that became a reset", b, state.ResetRequest, true, systemd.ResetUnit},
		{"a change of overlays", systemd.OverlayUnit("1"), state.OverlayRequest("1"), false, systemd.OverlaysUnit},
		{"updates images", systemd.UpdatesUnit(true), state.OverlayRequest(""), false, systemd.OverlaysUnit},
		{"one of an earlier version, which noted no unit", "", "b", false, systemd.RollbackUnit("b")},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newLab(t)
			interrupted := m.begin(t, c.unit, c.request, c.switched)
			if own := m.own(t, a, "a"); own.ID == interrupted.ID || own.Unit != a || !slices.Equal(m.started, []string{c.first}) {
				t.Errorf("got %+v and started %v", own, m.started)
			}
		})
	}
}

func TestOwnWaitsForWhatUnitsWorkOn(t *testing.T) {
	m := newLab(t)
	other := m.begin(t, systemd.UpdatesUnit(true), state.OverlayRequest(""), false)
	m.working[systemd.UpdatesUnit(true)] = true
	var waited string
	m.status = func(_ string, args ...any) {
		waited, _ = args[0].(string)
		if err := m.end(); err != nil {
			t.Error(err)
		}
	}
	// What the same request names is not the same transaction.
	if own := m.own(t, systemd.OverlaysUnit, state.OverlayRequest("")); own.ID == other.ID || len(m.started) != 0 || waited != other.Request {
		t.Errorf("got %+v, started %v, waited for %s", own, m.started, waited)
	}
}

func TestOwnTakesOverWhatItsUnitTakesBack(t *testing.T) {
	m := newLab(t)
	interrupted := m.begin(t, systemd.OverlayUnit("1"), state.OverlayRequest("1"), false)
	own := m.own(t, systemd.OverlaysUnit, state.OverlayRequest(""))
	now, err := m.state.Transaction()
	if own.ID != interrupted.ID || err != nil || now.Unit != systemd.OverlaysUnit || len(m.started) != 0 {
		t.Errorf("got %+v, under way is %+v (%v), started %v", own, now, err, m.started)
	}
}

func TestDamagedFileIsReplacedByAReset(t *testing.T) {
	m := newLab(t)
	path := filepath.Join(m.state.Run, "transaction.json")
	if err := os.WriteFile(path, []byte("noise"), 0o600); err != nil {
		t.Fatal(err)
	}
	if own := m.own(t, a, "a"); own.Unit != a || !slices.Equal(m.started, []string{systemd.ResetUnit}) {
		t.Errorf("an application got %+v and started %v", own, m.started)
	}
	if err := os.WriteFile(path, []byte("noise"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.started = nil
	if own := m.own(t, systemd.ResetUnit, state.ResetRequest); own.Unit != systemd.ResetUnit || len(m.started) != 0 {
		t.Errorf("a reset got %+v and started %v", own, m.started)
	}
}

func TestRollbackThatFailsIsInTheWayOfAllButAReset(t *testing.T) {
	m := newLab(t)
	failure := errors.New("no space")
	m.status = func(string, ...any) {}
	m.start = func(string) error { return failure }
	interrupted := m.begin(t, b, "b", true)
	if _, _, err := m.place.own(t.Context(), a, "a"); !errors.Is(err, failure) {
		t.Errorf("got %v", err)
	}
	if own := m.own(t, systemd.ResetUnit, state.ResetRequest); own.ID == interrupted.ID || own.Request != state.ResetRequest {
		t.Errorf("got %+v", own)
	}
}

func TestInterruptedIsWhatNoUnitWorksOn(t *testing.T) {
	m := newLab(t)
	if unit, err := m.interrupted(t.Context()); unit != "" || err != nil {
		t.Errorf("without a transaction: %q (%v)", unit, err)
	}
	m.begin(t, b, "b", true)
	if unit, err := m.interrupted(t.Context()); unit != systemd.RollbackUnit("b") || err != nil {
		t.Errorf("interrupted: %q (%v)", unit, err)
	}
	m.working[b] = true
	if unit, err := m.interrupted(t.Context()); unit != "" || err != nil {
		t.Errorf("worked on: %q (%v)", unit, err)
	}
}

func TestOwnGivesUpWithItsContext(t *testing.T) {
	m := newLab(t)
	m.begin(t, b, "b", true)
	m.working[b] = true
	ctx, cancel := context.WithCancel(t.Context())
	m.status = func(string, ...any) { cancel() }
	if _, _, err := m.place.own(ctx, a, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// And it keeps no lock.
	if err := m.end(); err != nil {
		t.Error(err)
	}
}
