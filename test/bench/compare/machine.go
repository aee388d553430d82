package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/liveapply/liveapply/test/nspawn"
)

// inMachine is where the benchmark has its files inside the machine.
const inMachine = "/run/liveapply-bench"

// chainLength is the number of services that run when a commit is applied: six phases, and the one that was started.
const chainLength = 7

// inside measures the whole: systemctl start liveapply@C.service in a booted machine, beside an empty chain of as many services.
func (b *bench) inside(d debian) section {
	b.Logf("the whole, in a machine")
	m := &machine{b, d.machine}
	m.Boot()
	m.prepare()
	runs := m.runs(d)
	var functions []func(bool)
	for _, r := range runs {
		functions = append(functions, func(counted bool) { m.run(r, counted) })
	}
	b.inTurn(functions)
	s := section{title: "THE WHOLE, IN A BOOTED MACHINE", groups: []group{m.compareRuns(runs), m.memory(d)}}
	m.PowerOff()
	return s
}

// machine is one that is on.
type machine struct {
	*bench
	*nspawn.Machine
}

// run is something that is measured in the machine.
type run struct {
	name   string
	before func() // not measured
	argv   []string
	after  func() // not measured
	row    row
	phases map[string]samples // seconds, if a commit was applied
}

// prepare installs what the measurements use: the program measure, and the empty chain.
func (m *machine) prepare() {
	m.Run("mkdir", "-p", inMachine, "/etc/liveapply/liveapply.conf.d")
	m.Write(inMachine+"/measure", readFile(m.session, m.program("measure")))
	m.Run("chmod", "755", inMachine+"/measure")
	for _, c := range []emptyChain{plainChain, reloadingChain} {
		for i := range chainLength {
			m.Write("/run/systemd/system/"+c.unit(i, ""), c.service(i))
		}
	}
	m.Run("systemctl", "daemon-reload")
}

// emptyChain is the floor: services in the shape of those that apply a commit, which do nothing of their own.
type emptyChain struct {
	name     string
	reloader int // the service that reloads systemd, if any does
}

var (
	plainChain     = emptyChain{"bench", -1}
	reloadingChain = emptyChain{"bench-reload", 4} // where the phase services is
)

// unit is the name of a service: of its template, or of an instance.
func (c emptyChain) unit(i int, instance string) string {
	return fmt.Sprintf("%s-%d@%s.service", c.name, i, instance)
}

// service has the shape of the units that apply a commit: each phase requires the one before, and the last service, which is the
// one that is started, only wants the last phase.
func (c emptyChain) service(i int) string {
	lines := []string{"[Unit]"}
	switch {
	case i == chainLength-1:
		lines = append(lines, "Wants="+c.unit(i-1, "%i"), "After="+c.unit(i-1, "%i"))
	case i > 0:
		lines = append(lines, "Requires="+c.unit(i-1, "%i"), "After="+c.unit(i-1, "%i"))
	}
	command := "/bin/true"
	if i == c.reloader {
		command = "systemctl daemon-reload"
	}
	return strings.Join(append(lines, "[Service]", "Type=oneshot", "ExecStart="+command, ""), "\n")
}

// start is the command that runs the whole chain.
func (c emptyChain) start() []string {
	return []string{"systemctl", "start", c.unit(chainLength-1, "x")}
}

// setTransient says whether to stage a deployment of what is applied.
func (m *machine) setTransient(transient bool) {
	m.Write("/etc/liveapply/liveapply.conf.d/bench.conf", fmt.Sprintf("[Apply]\nTransient=%t\n", transient))
}

// patient runs a command again when it fails. The filesystem is the host's: while somebody else deploys on it, libostree freezes it
// for an instant (fsfreeze_thaw_cycle), and then it cannot be remounted, which is what ostree begins with.
func (m *machine) patient(argv ...string) {
	for range patience {
		if m.Try(argv[0], argv[1:]...).Code == 0 {
			return
		}
		time.Sleep(time.Second)
	}
	m.Run(argv[0], argv[1:]...)
}

const patience = 10

// The runs by their place in the list.
const (
	chain = iota
	reload
	chainAndReload
	stage
	applyOne
	applyPackage
	applyStaged
	applyAndStage
	applyLarge
	reset
)

func (m *machine) runs(d debian) []*run {
	start := func(commit string) []string {
		return []string{"systemctl", "start", "liveapply@" + commit + ".service"}
	}
	transient := func() { m.setTransient(true) }
	takeBack := func() { m.Run("liveapplyctl", "reset") }
	stagePackage := []string{"ostree", "admin", "deploy", "--stage", "--os=debian", d.pack}
	unstage := func() { m.patient("ostree", "admin", "undeploy", "0") }
	runs := make([]*run, reset+1)
	runs[chain] = &run{name: fmt.Sprintf("an empty chain of %d services", chainLength), argv: plainChain.start()}
	runs[reload] = &run{name: "systemctl daemon-reload", argv: []string{"systemctl", "daemon-reload"}}
	runs[chainAndReload] = &run{name: "such a chain, of which one reloads", argv: reloadingChain.start()}
	runs[stage] = &run{name: "ostree admin deploy --stage", argv: stagePackage, after: unstage}
	runs[applyOne] = &run{name: "apply one file, transient", before: transient, argv: start(d.one), after: takeBack}
	runs[applyPackage] = &run{name: "apply one package, transient", before: transient, argv: start(d.pack), after: takeBack}
	runs[applyStaged] = &run{name: "apply one package, staged before", argv: start(d.pack),
		before: func() { m.setTransient(false); m.patient(stagePackage...) },
		after:  func() { takeBack(); unstage() }}
	runs[applyAndStage] = &run{name: "apply one package and stage it", argv: start(d.pack),
		before: func() { m.setTransient(false) }, after: takeBack}
	runs[applyLarge] = &run{name: "apply nginx, PostgreSQL, Python, git, transient", before: transient, argv: start(d.servers), after: takeBack}
	runs[reset] = &run{name: "liveapplyctl reset of one package", argv: []string{"liveapplyctl", "reset"},
		before: func() { transient(); m.Run("systemctl", start(d.pack)[1:]...) }}
	return runs
}

// run runs something once.
func (m *machine) run(r *run, counted bool) {
	if r.before != nil {
		r.before()
	}
	m.settle()
	report := inMachine + "/report"
	m.Run(inMachine+"/measure", append([]string{report}, r.argv...)...)
	if counted {
		r.row.time = append(r.row.time, parseFigures(m.Read(report))["elapsed"])
		if strings.HasPrefix(r.argv[len(r.argv)-1], "liveapply@") {
			r.addPhases(m.lastApplication())
		}
	}
	if r.after != nil {
		r.after()
	}
}

// settle waits for what a measurement must not include: writes of the one before, and what systemd does when a reload has
// returned, as for the next service that is started.
func (m *machine) settle() {
	m.Run("sync")
	m.Run("systemctl", "start", plainChain.unit(0, "settle"))
	time.Sleep(settling)
}

const settling = 200 * time.Millisecond

// application is a line of the history.
type application struct {
	Result string `json:"result"`
	Phases []struct {
		Name    string  `json:"name"`
		Seconds float64 `json:"seconds"`
	} `json:"phases"`
}

func (m *machine) lastApplication() application {
	var a application
	m.check(json.Unmarshal([]byte(m.Run("tail", "-n1", historyFile)), &a))
	if a.Result != "applied" {
		m.Fatalf("the last line of the history says %q", a.Result)
	}
	return a
}

func (r *run) addPhases(a application) {
	if r.phases == nil {
		r.phases = map[string]samples{}
	}
	for _, phase := range a.Phases {
		r.phases[phase.Name] = append(r.phases[phase.Name], phase.Seconds)
	}
}

func (m *machine) compareRuns(runs []*run) group {
	g := group{name: "processes started in the machine"}
	for _, r := range runs {
		r.row.name, r.row.data = r.name, -1
		g.rows = append(g.rows, r.row)
		for _, name := range slices.Sorted(maps.Keys(r.phases)) {
			if r == runs[applyPackage] || r == runs[applyLarge] {
				g.rows = append(g.rows, row{name: "    its phase " + name, time: r.phases[name], data: -1})
			}
		}
	}
	floor := runs[chainAndReload].row.time
	ratio := func(name string, i int, to samples) comparison {
		return comparison{name: name, value: runs[i].row.time.median() / to.median(), held: notHeld}
	}
	limited := func(name string, i int) comparison {
		c := ratio(name, i, floor)
		c.held, c.limit = atMost, 1.5
		return c
	}
	g.comparisons = []comparison{
		ratio("one file / chain with reload", applyOne, floor),
		limited("package, transient / chain with reload", applyPackage),
		limited("package, staged before / chain with reload", applyStaged),
		ratio("package, staging / (chain with reload + stage)", applyAndStage, floor.plus(runs[stage].row.time)),
		ratio("package, transient / (chain + reload)", applyPackage, runs[chain].row.time.plus(runs[reload].row.time)),
	}
	return g
}

// historyFile has a line for each application, with the time of each phase.
const historyFile = "/var/lib/liveapply/history.jsonl"

// memory measures prepare's for 20,000 changes, transient, because otherwise it starts ostree.
func (m *machine) memory(d debian) group {
	m.setTransient(true)
	unit := m.Run("systemctl", "cat", "liveapply-prepare@.service")
	var helper string
	for line := range strings.Lines(unit) {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStart="); ok {
			helper = command
		}
	}
	report := inMachine + "/prepare"
	dropIn := "/run/systemd/system/liveapply-prepare@.service.d"
	m.Run("mkdir", "-p", dropIn)
	m.Write(filepath.Join(dropIn, "measure.conf"), fmt.Sprintf("[Service]\nExecStart=\nExecStart=%s/measure %s %s\n", inMachine, report, helper))
	m.Run("systemctl", "daemon-reload")
	r := row{name: "prepare", data: -1}
	for range m.rounds {
		m.Run("systemctl", "start", "liveapply@"+d.twenty+".service")
		figures := parseFigures(m.Read(report))
		r.time = append(r.time, figures["elapsed"])
		r.peak = append(r.peak, figures["peak"])
		m.Run("liveapplyctl", "reset")
	}
	m.Run("rm", "-r", dropIn)
	m.Run("systemctl", "daemon-reload")
	return group{
		name: "20,000 added files, transient",
		rows: []row{r},
		comparisons: []comparison{
			{name: "memory of prepare, at its largest", value: slices.Max(r.peak) / 1024, unit: " MiB", held: under, limit: 64},
		},
	}
}
