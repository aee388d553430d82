package main

import (
	"fmt"
	"slices"
)

// generatorPath is where systemd has its generators.
const generatorPath = "/usr/lib/systemd/system-generators/liveapply-generator"

// starts is how often each of the short processes is started in a round.
const starts = 20

// generator measures liveapply-generator in a booted machine, on OSTree and as if it were off it, beside /bin/true: it runs in every boot, and every
// daemon-reload waits for it.
func (b *bench) generator(d debian) section {
	b.Logf("the generator, in a machine")
	m := &machine{b, d.machine}
	m.SetKernelArgs("liveapply.auto=additive") // as by default; other parts want no deployment applied
	m.Boot()
	m.prepare()
	empty := &run{name: "/bin/true", argv: []string{"/bin/true"}}
	off := m.generatorRun("off OSTree", "")
	on := m.generatorRun("on OSTree", "")
	full := m.generatorRun("on OSTree, with windows and updates", "[Auto]\nWindow=Sat..Sun 02:00 4h\nUpdate=yes\nOnCalendar=Mon 03:00\nUpdateCommand=rpm-ostree upgrade\n")
	var functions []func(bool)
	for _, r := range []*run{empty, off, on, full} {
		var around []string
		if r == off {
			around = withoutRun
		}
		functions = append(functions, func(counted bool) {
			for range starts {
				m.start(r, around, counted)
			}
		})
	}
	b.inTurn(functions)
	m.Run("rm", "-r", automaticConf)
	g := group{name: "liveapply-generator"}
	for _, r := range []*run{empty, off, on, full} {
		r.row.name, r.row.data = r.name, -1
		g.rows = append(g.rows, r.row)
		if r != empty {
			g.comparisons = append(g.comparisons, comparison{name: r.name + " / /bin/true", value: r.row.time.median() / empty.row.time.median(), held: atMost, limit: 3})
		}
	}
	m.PowerOff()
	return section{title: "THE GENERATOR, IN A BOOTED MACHINE", groups: []group{g}}
}

// withoutRun is the beginning of a command that runs the rest with another /run, in which nothing says that the machine was booted from OSTree; inMachine stays.
var withoutRun = []string{"unshare", "--mount", "sh", "-c", "mount --bind " + inMachine + " /var/mnt && mount -t tmpfs tmpfs /run && mkdir -p " + inMachine +
	" && mount --bind /var/mnt " + inMachine + ` && exec "$@"`, "sh"}

const automaticConf = "/etc/liveapply/liveapply.conf.d/automatic.conf"

func (m *machine) generatorRun(name, configuration string) *run {
	out := inMachine + "/generated"
	return &run{name: name, argv: []string{generatorPath, out, out, out}, before: func() {
		m.Write(automaticConf, configuration)
		m.Run("sh", "-c", fmt.Sprintf("rm -rf %s && mkdir %s", out, out))
	}}
}

// start is run for a process that is so short that what is around it must not be measured.
func (m *machine) start(r *run, around []string, counted bool) {
	if r.before != nil {
		r.before()
	}
	report := inMachine + "/report"
	argv := slices.Concat(around, []string{inMachine + "/measure", report}, r.argv)
	m.Run(argv[0], argv[1:]...)
	if counted {
		r.row.time = append(r.row.time, parseFigures(m.Read(report))["elapsed"])
	}
}
