package bus

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	liveapplydbus "github.com/liveapply/liveapply/dbus"
	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
)

// Commits of the tests.
var (
	booted = ostree.Checksum{1}
	second = ostree.Checksum{2}
	third  = ostree.Checksum{3}
	broken = ostree.Checksum{4} // its application is refused
)

// fake is a System in memory.
type fake struct {
	mu      sync.Mutex
	running func(unit string) // called while a unit runs
	stamp   state.Stamp
	history []state.Entry
	unit    string         // that was started last
	request config.Request // for it
	watched chan struct{}  // closed when somebody watches
	changed []func()
	shares  map[string]float64 // of the phases
}

func newFake() *fake {
	return &fake{
		running: func(string) {},
		stamp:   *state.NewStamp(ostree.Deployment{Commit: booted}),
		watched: make(chan struct{}),
	}
}

func (f *fake) Status() (*state.Stamp, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stamp := f.stamp
	return &stamp, nil
}

func (f *fake) Transaction() (*state.Transaction, error) {
	return &state.Transaction{Request: second.String()}, nil
}

func (f *fake) Share(_ context.Context, _, phase string) float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.shares[phase]
}

func (f *fake) LastEntry() (*state.Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.history) == 0 {
		return nil, nil
	}
	last := f.history[len(f.history)-1]
	return &last, nil
}

func (f *fake) IsClean() (bool, error) {
	stamp, err := f.Status()
	return !stamp.IsApplied(), err
}

func (f *fake) Resolve(rev string) (ostree.Checksum, error) { return ostree.ParseChecksum(rev) }

func (f *fake) NextBoot() (ostree.Deployment, error) {
	return ostree.Deployment{Commit: booted, Booted: true}, nil
}

func (f *fake) Watch(ctx context.Context, changed func()) error {
	f.mu.Lock()
	f.changed = append(f.changed, changed)
	f.mu.Unlock()
	close(f.watched)
	<-ctx.Done()
	return ctx.Err()
}

// take returns the unit that was started last, and the request that was written for it, once.
func (f *fake) take() (unit string, request config.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	unit, request = f.unit, f.request
	f.unit, f.request = "", config.Request{}
	return unit, request
}

func (f *fake) DryRun(_ context.Context, rev string, _ config.Request) (*state.Plan, error) {
	f.mu.Lock()
	running := f.running
	f.mu.Unlock()
	running("")
	if rev == broken.String() {
		return nil, errors.New("it is broken")
	}
	return &state.Plan{
		Target: second, Impact: impact.Impact{Kind: impact.Additive}, Etc: &etcmerge.Plan{Changes: []etcmerge.Change{{Path: "secret"}}},
	}, nil
}

func (f *fake) UnitOf(context.Context, uint32) (string, error) { return "lab.service", nil }

// edit changes the stamp as a phase does.
func (f *fake) edit(change func(*state.Stamp)) {
	f.mu.Lock()
	change(&f.stamp)
	watching := f.changed
	f.mu.Unlock()
	for _, changed := range watching {
		changed()
	}
}

// whileRunning has a function called while a unit runs.
func (f *fake) whileRunning(do func(unit string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running = do
}

func (f *fake) Start(ctx context.Context, unit string, _ ostree.Checksum, request config.Request) error {
	target := booted
	for _, commit := range []ostree.Checksum{second, third, broken} {
		if unit == systemd.ApplyUnit(commit.String()) {
			target = commit
		}
	}
	f.edit(func(s *state.Stamp) { s.Target, s.Phase = target, "prepare" })
	f.mu.Lock()
	f.unit, f.request = unit, request
	running := f.running
	f.mu.Unlock()
	running(unit)
	entry := state.Entry{Transaction: rand.Text(), Target: target, Result: state.Applied}
	if target == broken {
		entry.Result, entry.Reason = state.Refused, "it is broken"
	}
	f.edit(func(s *state.Stamp) {
		f.history = append(f.history, entry)
		s.Target, s.Phase = ostree.Checksum{}, ""
		if entry.Result == state.Applied {
			s.Previous, s.Live = s.Live, target
		}
	})
	if entry.Result != state.Applied {
		return errors.New("the unit failed")
	}
	return ctx.Err()
}

// startBus runs a bus of its own, which can start the service (see TestMain), and returns its address.
func startBus(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("bus.conf", fmt.Sprintf(`<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path=%[1]s/socket</listen>
  <servicedir>%[1]s</servicedir>
  <policy context="default"><allow send_destination="*"/><allow own="*"/><allow receive_sender="*"/></policy>
</busconfig>`, dir))
	write(Name+".service", "[D-BUS Service]\nName="+Name+"\nExec="+os.Args[0]+"\n")
	daemon := exec.Command("dbus-daemon", "--config-file="+dir+"/bus.conf", "--nofork", "--print-address")
	output, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	daemon.Stderr = os.Stderr
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		daemon.Process.Kill()
		daemon.Wait()
	})
	address, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatalf("dbus-daemon does not tell its address: %v", err)
	}
	return strings.TrimSpace(address)
}

// serve runs the service on a bus until the test ends, and returns when it had the name and watches the system; the function that it returns
// waits for the end.
func serve(t *testing.T, address string, system *fake, idle time.Duration) (ended func() error) {
	t.Helper()
	conn := connect(t, address)
	owners := listenFor(t, conn, dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, Name))
	ctx, stop := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() {
		result <- Run(ctx, func(options ...dbus.ConnOption) (*dbus.Conn, error) { return dbus.Connect(address, options...) }, system, idle)
	}()
	ended = sync.OnceValue(func() error { return <-result })
	t.Cleanup(func() {
		stop()
		if err := ended(); err != nil {
			t.Errorf("the service ended with: %v", err)
		}
	})
	limit := time.After(time.Minute)
	for owned := false; !owned; { // it may end at once, so that looking for it now and then could miss it
		select {
		case s, ok := <-owners:
			owned = ok && s.Name == "org.freedesktop.DBus.NameOwnerChanged" && s.Body[2] != ""
		case <-limit:
			t.Fatal("the service does not come up")
		}
	}
	<-system.watched
	return ended
}

func connect(t *testing.T, address string) *dbus.Conn {
	t.Helper()
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// listen returns what the service signals, and is subscribed when it returns.
func listen(t *testing.T, conn *dbus.Conn) <-chan *dbus.Signal {
	t.Helper()
	return listenFor(t, conn, dbus.WithMatchObjectPath(Path))
}

func listenFor(t *testing.T, conn *dbus.Conn, what ...dbus.MatchOption) <-chan *dbus.Signal {
	t.Helper()
	if err := conn.AddMatchSignal(what...); err != nil {
		t.Fatal(err)
	}
	signals := make(chan *dbus.Signal, 1000)
	conn.Signal(signals)
	return signals
}

// until returns the signals up to one of a name.
func until(t *testing.T, signals <-chan *dbus.Signal, name string) []*dbus.Signal {
	t.Helper()
	var got []*dbus.Signal
	limit := time.After(time.Minute)
	for {
		select {
		case s := <-signals:
			if got = append(got, s); s.Name == name {
				return got
			}
		case <-limit:
			t.Fatalf("waited in vain for %s; there was %v", name, got)
		}
	}
}

const finished = Interface + ".Finished"

func callMethod(conn *dbus.Conn, method string, args ...any) (job dbus.ObjectPath, err error) {
	err = conn.Object(Name, Path).Call(Interface+"."+method, 0, args...).Store(&job)
	return job, err
}

var none = map[string]dbus.Variant{}

func mustCall(t *testing.T, conn *dbus.Conn, method string, args ...any) dbus.ObjectPath {
	t.Helper()
	job, err := callMethod(conn, method, args...)
	if err != nil {
		t.Fatalf("%s%v: %v", method, args, err)
	}
	return job
}

// The interface on the bus, that of the Go methods and properties, and the installed one are the same.
func TestInterfaceIsTheInstalledOne(t *testing.T) {
	address := startBus(t)
	serve(t, address, newFake(), time.Minute)
	node, err := introspect.Call(connect(t, address).Object(Name, Path))
	if err != nil {
		t.Fatal(err)
	}
	var file introspect.Node
	if err := xml.Unmarshal(liveapplydbus.Manager, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Interfaces) != 1 || file.Interfaces[0].Name != Interface {
		t.Fatalf("the file has other interfaces than %s: %v", Interface, file.Interfaces)
	}
	installed := file.Interfaces[0]
	var names []string
	for _, i := range node.Interfaces {
		if names = append(names, i.Name); i.Name == Interface {
			if diff := cmp.Diff(installed, i); diff != "" {
				t.Errorf("interface (-installed +on the bus):\n%s", diff)
			}
		}
	}
	slices.Sort(names)
	want := []string{"org.freedesktop.DBus.Introspectable", "org.freedesktop.DBus.Peer", "org.freedesktop.DBus.Properties", Interface}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("interfaces of the object (-want +got):\n%s", diff)
	}

	methods := map[string]string{}
	for _, m := range installed.Methods {
		methods[m.Name] = signature(m.Args)
	}
	implemented := map[string]string{}
	for _, m := range introspect.Methods(manager{}) {
		implemented[m.Name] = signature(m.Args)
	}
	if diff := cmp.Diff(methods, implemented); diff != "" {
		t.Errorf("methods (-installed +implemented):\n%s", diff)
	}
	properties := map[string]string{}
	for _, p := range installed.Properties {
		properties[p.Name] = p.Type
	}
	known := map[string]string{}
	for name, value := range (facts{RebootRequired: []string{}}).properties() {
		known[name] = value.Signature().String()
	}
	if diff := cmp.Diff(properties, known); diff != "" {
		t.Errorf("properties (-installed +implemented):\n%s", diff)
	}
}

func signature(args []introspect.Arg) string {
	var s string
	for _, arg := range args {
		s += arg.Direction + ":" + arg.Type + " "
	}
	return s
}

func TestSignalsTellWhatChanged(t *testing.T) {
	address, system := startBus(t), newFake()
	serve(t, address, system, time.Minute)
	conn := connect(t, address)
	signals := listen(t, conn)
	system.whileRunning(func(string) {
		system.edit(func(s *state.Stamp) { s.Phase = "mount" })
		system.edit(func(s *state.Stamp) { s.Live = second })
		system.edit(func(s *state.Stamp) { s.Transient = true }) // no property
		system.edit(func(s *state.Stamp) { s.Phase = "etc" })
		for _, share := range []float64{0.5, 0, 0.75} { // nothing goes back
			system.edit(func(*state.Stamp) { system.shares = map[string]float64{"etc": share} })
		}
		system.edit(func(s *state.Stamp) { s.Phase, s.RebootRequired = "record", []string{"kernel"} })
	})
	job := mustCall(t, conn, "Apply", second.String(), none)
	var got []string
	for _, s := range until(t, signals, finished) {
		got = append(got, fmt.Sprint(s.Name[strings.LastIndexByte(s.Name, '.')+1:], s.Body))
	}
	want := []string{
		`PropertiesChanged[org.liveapply1.Manager map[Phase:"prepare" Progress:@d 0 Target:"` + second.String() + `"] []]`,
		`PhaseChanged[prepare]`, `Progress[0]`,
		`PropertiesChanged[org.liveapply1.Manager map[Phase:"mount" Progress:@d 0.16666666666666666] []]`,
		`PhaseChanged[mount]`, `Progress[0.16666666666666666]`,
		`PropertiesChanged[org.liveapply1.Manager map[Live:"` + second.String() + `"] []]`,
		`PropertiesChanged[org.liveapply1.Manager map[Phase:"etc" Progress:@d 0.3333333333333333] []]`,
		`PhaseChanged[etc]`, `Progress[0.3333333333333333]`,
		`PropertiesChanged[org.liveapply1.Manager map[Progress:@d 0.4166666666666667] []]`, `Progress[0.4166666666666667]`,
		`PropertiesChanged[org.liveapply1.Manager map[Progress:@d 0.4583333333333333] []]`, `Progress[0.4583333333333333]`,
		`PropertiesChanged[org.liveapply1.Manager map[Phase:"record" Progress:@d 0.8333333333333334 RebootRequired:["kernel"]] []]`,
		`PhaseChanged[record]`, `Progress[0.8333333333333334]`,
		`PropertiesChanged[org.liveapply1.Manager map[Phase:"" Progress:@d 1 Target:""] []]`,
		`PhaseChanged[]`, `Progress[1]`,
		fmt.Sprintf(`Finished[%s applied Commit %s is live.]`, job, second),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("signals (-want +got):\n%s", diff)
	}
}

func TestJobsEndAsTheHistorySays(t *testing.T) {
	address, system := startBus(t), newFake()
	serve(t, address, system, time.Minute)
	conn := connect(t, address)
	signals := listen(t, conn)
	who := fmt.Sprintf("D-Bus, uid %d (lab.service)", os.Getuid())
	for i, step := range []struct {
		method  string
		args    []any
		unit    string
		result  string
		message string
		request config.Request
	}{
		{"Apply", []any{second.String(), map[string]dbus.Variant{"Allow": dbus.MakeVariant("additive"), "Transient": dbus.MakeVariant(true)}},
			systemd.ApplyUnit(second.String()), "applied", "Commit " + second.String() + " is live.",
			config.Request{Allow: config.Additive, Transient: true, RequestedBy: who, Revision: second.String()}},
		{"Apply", []any{broken.String(), none}, systemd.ApplyUnit(broken.String()), "refused", "it is broken", config.Request{RequestedBy: who, Revision: broken.String()}},
		{"Apply", []any{third.String(), none}, systemd.ApplyUnit(third.String()), "applied", "Commit " + third.String() + " is live.", config.Request{RequestedBy: who, Revision: third.String()}},
		{"Rollback", []any{none}, systemd.ApplyUnit(second.String()), "applied", "Commit " + second.String() + " is live.",
			config.Request{Allow: config.Force, RequestedBy: who + ", rollback"}},
		{"Reset", []any{none}, systemd.ResetUnit, "reset", "The booted tree is live again (commit " + booted.String() + ").", config.Request{RequestedBy: who}},
	} {
		job := mustCall(t, conn, step.method, step.args...)
		all := until(t, signals, finished)
		if diff := cmp.Diff([]any{job, step.result, step.message}, all[len(all)-1].Body); diff != "" {
			t.Errorf("step %d, %s: Finished (-want +got):\n%s", i, step.method, diff)
		}
		step.request.RequestedFrom = "lab.service"
		started, request := system.take()
		if started != step.unit {
			t.Errorf("step %d, %s: started %s, want %s", i, step.method, started, step.unit)
		}
		if diff := cmp.Diff(step.request, request); diff != "" {
			t.Errorf("step %d, %s: request (-want +got):\n%s", i, step.method, diff)
		}
	}
}

func TestErrorsHaveNames(t *testing.T) {
	address, system := startBus(t), newFake()
	serve(t, address, system, time.Minute)
	conn := connect(t, address)
	for _, c := range []struct {
		name   string
		method string
		args   []any
	}{
		{errNoSuchCommit, "Apply", []any{"no-such-ref", none}},
		{errNothingToDo, "Apply", []any{booted.String(), none}},
		{errNothingToDo, "Apply", []any{"", none}},
		{errInvalidOption, "Apply", []any{second.String(), map[string]dbus.Variant{"Allow": dbus.MakeVariant("all")}}},
		{errInvalidOption, "Apply", []any{second.String(), map[string]dbus.Variant{"Transient": dbus.MakeVariant("yes")}}},
		{errInvalidOption, "Apply", []any{second.String(), map[string]dbus.Variant{"RequestedBy": dbus.MakeVariant("me")}}},
		{errInvalidOption, "Apply", []any{second.String(), map[string]dbus.Variant{"Packages": dbus.MakeVariant([]string{})}}},
		{errInvalidOption, "Apply", []any{second.String(), map[string]dbus.Variant{"Packages": dbus.MakeVariant([]string{"nginx", ""})}}},
		{errInvalidOption, "Apply", []any{second.String(), map[string]dbus.Variant{"Exclude": dbus.MakeVariant([]string{""})}}},
		{errNothingToDo, "Reset", []any{none}},
		{errInvalidOption, "Reset", []any{map[string]dbus.Variant{"Allow": dbus.MakeVariant("force")}}},
		{errNothingToDo, "Rollback", []any{none}},
		{errInvalidOption, "Rollback", []any{map[string]dbus.Variant{"Allow": dbus.MakeVariant("force")}}},
		{"org.freedesktop.DBus.Error.InvalidArgs", "Apply", []any{second.String()}},
		{"org.freedesktop.DBus.Error.UnknownMethod", "Frobnicate", nil},
	} {
		if _, err := callMethod(conn, c.method, c.args...); !isNamed(err, c.name) {
			t.Errorf("%s%v: %#v, want %s", c.method, c.args, err, c.name)
		}
	}
	system.edit(func(s *state.Stamp) { s.Live, s.Target, s.Phase = second, third, "etc" })
	if _, err := callMethod(conn, "Rollback", none); !isNamed(err, errUnderWay) {
		t.Errorf("Rollback during a transaction: %#v", err)
	}
	system.edit(func(s *state.Stamp) { s.Phase = "" })
	if _, err := callMethod(conn, "Rollback", none); !isNamed(err, errFailed) {
		t.Errorf("Rollback to nobody knows where: %#v", err)
	}
	object := conn.Object(Name, Path)
	if _, err := object.GetProperty(Interface + ".Frobnicate"); !isNamed(err, errUnknownProperty) {
		t.Errorf("an unknown property: %#v", err)
	}
	if _, err := object.GetProperty("org.example.Lab.Live"); !isNamed(err, errUnknownInterface) {
		t.Errorf("an unknown interface: %#v", err)
	}
	if err := object.SetProperty(Interface+".Live", dbus.MakeVariant("")); !isNamed(err, errReadOnly) {
		t.Errorf("a property that cannot be written: %#v", err)
	}
}

func TestOptionsAskForWhatTheRequestDoes(t *testing.T) {
	for _, want := range []config.Request{
		{},
		{Allow: config.Force, Transient: true, RestartServices: config.RestartRolling, Packages: []string{"nginx", "linux-*"}},
		{Exclude: []string{"nginx"}},
	} {
		got, err := requestOf(Options(want))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
	}
}

// Who calls knows the job before its end, however soon that is.
func TestFinishedComesAfterTheAnswer(t *testing.T) {
	address := startBus(t)
	signals := listen(t, connect(t, address))
	s := &Service{conn: connect(t, address), system: newFake(), work: newWork(), ctx: t.Context()}
	unanswered := call{":1.1", 7}
	s.work.calls[unanswered] = make(chan struct{})
	s.begin(unanswered, func() (state.Result, string) { return state.Applied, "" })
	time.Sleep(100 * time.Millisecond) // long enough for Finished, if it did not wait
	s.emit(Interface + ".Answered")
	s.work.answers[1] = unanswered
	s.work.RetireSerial(1)
	for _, signal := range until(t, signals, finished) {
		if signal.Name == Interface+".Answered" {
			return
		}
	}
	t.Error("Finished came before the answer")
}

func TestDiffTellsWhatEverybodyMayKnow(t *testing.T) {
	address, system := startBus(t), newFake()
	serve(t, address, system, time.Minute)
	conn := connect(t, address)
	signals := listen(t, conn)
	last := func() []any {
		all := until(t, signals, finished)
		return all[len(all)-1].Body
	}
	job := mustCall(t, conn, "Diff", second.String())
	end := last()
	var got state.Summary
	text, _ := end[2].(string)
	if end[0] != job || end[1] != "done" || json.Unmarshal([]byte(text), &got) != nil || got.Target != second || got.Impact.Kind != impact.Additive {
		t.Errorf("Finished%v, want the summary of the plan", end)
	}
	if got.Etc != nil || strings.Contains(text, "secret") {
		t.Errorf("everybody is told the names of files in /etc: %s", text)
	}
	job = mustCall(t, conn, "Diff", broken.String())
	if diff := cmp.Diff([]any{job, "refused", "it is broken"}, last()); diff != "" {
		t.Errorf("Finished of a commit that would be refused (-want +got):\n%s", diff)
	}
	if unit, request := system.take(); unit != "" || !cmp.Equal(request, config.Request{}) {
		t.Errorf("a comparison started %q, and wrote the request %v", unit, request)
	}

	// Everybody may ask, but not for any number of them at once.
	release := make(chan struct{})
	system.whileRunning(func(string) { <-release })
	for range maxDiffs {
		mustCall(t, conn, "Diff", second.String())
	}
	if _, err := callMethod(conn, "Diff", second.String()); !isNamed(err, errLimitsExceeded) {
		t.Errorf("one more than %d comparisons: %v", maxDiffs, err)
	}
	close(release)
	for range maxDiffs {
		last()
	}
	mustCall(t, conn, "Diff", second.String())
}

// The service neither ends while a job runs, nor before the job's end is announced; then it does.
func TestServiceEndsWhenItHasNothingToDo(t *testing.T) {
	address, system := startBus(t), newFake()
	release := make(chan struct{})
	system.whileRunning(func(string) { <-release })
	conn := connect(t, address)
	signals := listen(t, conn)
	begun := make(chan *dbus.Call, 1)
	// The call is there before the service knows that it has the name, so that it cannot end before the job.
	call := sync.OnceFunc(func() { callBehind(t, conn, begun) })
	ended := serve(t, intercept(t, address, ignore, func(message []byte) {
		if bytes.Contains(message, []byte("NameAcquired")) && bytes.Contains(message, []byte(Name)) {
			call()
		}
	}), system, 50*time.Millisecond)
	var job dbus.ObjectPath
	if err := (<-begun).Store(&job); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // long enough to end, if it wanted to
	if _, err := conn.Object(Name, Path).GetProperty(Interface + ".Live"); err != nil {
		t.Errorf("the service has ended while a job runs: %v", err)
	}
	close(release)
	all := until(t, signals, finished)
	if all[len(all)-1].Body[0] != job {
		t.Errorf("Finished is of %v, want %s", all[len(all)-1].Body, job)
	}
	if err := ended(); err != nil {
		t.Error(err)
	}
	var owned bool
	if err := conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, Name).Store(&owned); err != nil || owned {
		t.Errorf("the name has an owner: %v (%v)", owned, err)
	}
}

// What the bus has got before it releases the name is done, although the service was about to end: see Service.serve.
func TestCallWhileTheServiceEndsIsDone(t *testing.T) {
	address, system := startBus(t), newFake()
	client := connect(t, address)
	signals := listen(t, client)
	late := make(chan *dbus.Call, 1)
	// When the service gives the name up for the first time, somebody calls just before.
	call := sync.OnceFunc(func() { callBehind(t, client, late) })
	ended := serve(t, intercept(t, address, func(message []byte) {
		if bytes.Contains(message, []byte("ReleaseName")) {
			call()
		}
	}, ignore), system, 10*time.Millisecond)
	all := until(t, signals, finished)
	answer := <-late
	if answer.Err != nil {
		t.Fatalf("the late call failed: %v", answer.Err)
	}
	if all[len(all)-1].Body[0] != answer.Body[0] {
		t.Errorf("Finished is of %v, want %v", all[len(all)-1].Body, answer.Body)
	}
	if err := ended(); err != nil {
		t.Error(err)
	}
}

// callBehind asks for an application, and returns when the bus has handed that to the service.
func callBehind(t *testing.T, client *dbus.Conn, answer chan *dbus.Call) {
	client.Object(Name, Path).Go(Interface+".Apply", 0, answer, second.String(), none)
	if err := client.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err; err != nil { // the bus has handled what was sent before
		t.Errorf("the bus does not answer: %v", err)
	}
}

func ignore([]byte) {}

// intercept returns the address of a bus that is the one at address, but has toBus and fromBus look at all that is sent to it and by it, before it
// gets there.
func intercept(t *testing.T, address string, toBus, fromBus func([]byte)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	_, busPath, _ := strings.Cut(address, "path=")
	busPath, _, _ = strings.Cut(busPath, ",")
	forward := func(from, to net.Conn, see func([]byte)) {
		defer to.Close()
		buffer := make([]byte, 1<<16)
		for {
			n, err := from.Read(buffer)
			if err != nil {
				return
			}
			see(buffer[:n])
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			service, err := listener.Accept()
			if err != nil {
				return
			}
			bus, err := net.Dial("unix", busPath)
			if err != nil {
				t.Errorf("connecting to the bus: %v", err)
				return
			}
			go forward(service, bus, toBus)
			go forward(bus, service, fromBus)
		}
	}()
	return "unix:path=" + path
}

// TestMain is the service itself where a bus has started this program: see TestNoCallIsLost.
func TestMain(m *testing.M) {
	if os.Getenv("DBUS_STARTER_ADDRESS") == "" {
		os.Exit(m.Run())
	}
	starter := func(options ...dbus.ConnOption) (*dbus.Conn, error) {
		return dbus.Connect(os.Getenv("DBUS_STARTER_ADDRESS"), options...)
	}
	if err := Run(context.Background(), starter, newFake(), time.Millisecond); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A service that ends as soon as it may is called from several sides, until it has ended often enough.
func TestNoCallIsLost(t *testing.T) {
	address := startBus(t)
	watcher := connect(t, address)
	signals := listen(t, watcher)
	if err := watcher.AddMatchSignal(dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, Name)); err != nil {
		t.Fatal(err)
	}
	const wanted = 50
	var ends, calls atomic.Int64
	asking, ctx := errgroup.WithContext(t.Context())
	for range 3 {
		conn := connect(t, address)
		asking.Go(func() error {
			for ends.Load() < wanted && ctx.Err() == nil {
				if _, err := conn.Object(Name, Path).GetProperty(Interface + ".Live"); err != nil {
					return fmt.Errorf("reading a property: %w", err)
				}
				if _, err := callMethod(conn, "Apply", broken.String(), none); err != nil {
					return fmt.Errorf("a method: %w", err)
				}
				calls.Add(1)
				time.Sleep(mathrand.N(4 * time.Millisecond)) // so that calls come before, while and after the service ends
			}
			return nil
		})
	}
	failed := make(chan error, 1)
	go func() { failed <- asking.Wait() }()
	jobs, all := int64(0), int64(-1)
	for jobs != all {
		select {
		case s := <-signals:
			if s.Name == finished {
				jobs++
			} else if s.Name == "org.freedesktop.DBus.NameOwnerChanged" && s.Body[2] == "" {
				ends.Add(1)
			}
		case err := <-failed:
			if err != nil {
				t.Fatalf("a call was lost: %v", err)
			}
			all = calls.Load()
		case <-time.After(time.Minute):
			t.Fatalf("nothing happens after %d calls, %d jobs have ended, and the service %d times", calls.Load(), jobs, ends.Load())
		}
	}
}
