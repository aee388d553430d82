//go:build nspawn

package nspawn_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// client asks a server without a pause, and writes for each request when it began and ended, in microseconds, and how it ended.
const client = `#!/bin/bash
while [[ ! -e /run/load.stop ]]; do
	begin=${EPOCHREALTIME//./}
	code=$(curl --silent --output /dev/null --write-out '%{http_code}' --max-time 20 "$1")
	echo "$begin ${EPOCHREALTIME//./} $code"
done >"$2"
`

// span is a time, in microseconds since the epoch.
type span struct{ begin, end int64 }

func (s span) meets(other span) bool { return s.begin <= other.end && other.begin <= s.end }

// load is what clients have seen.
type load struct {
	m        *nspawn.Machine
	urls     []string
	failures map[string][]span
}

// underLoad does something while servers are asked.
func underLoad(t *testing.T, m *nspawn.Machine, urls []string, do func()) *load {
	t.Helper()
	m.Write("/run/client", client)
	m.Run("sh", "-c", "chmod 755 /run/client; rm -f /run/load.*")
	l := &load{m: m, urls: urls, failures: map[string][]span{}}
	for i, url := range urls {
		m.Run("systemd-run", fmt.Sprintf("--unit=load-%d", i), "--collect", "/run/client", url, l.file(i))
	}
	waitFor(t, "requests", func() bool { return l.count() > 20*len(urls) })
	do()
	before := l.count()
	waitFor(t, "requests", func() bool { return l.count() > before+20*len(urls) })
	m.Write("/run/load.stop", "")
	waitFor(t, "the clients' end", func() bool { return m.Try("systemctl", "is-active", "load-*").Code != 0 })
	for i, url := range urls {
		for line := range strings.Lines(m.Read(l.file(i))) {
			words := strings.Fields(line)
			if len(words) != 3 || words[2] != "200" { // without a code, curl itself could not be started
				l.failures[url] = append(l.failures[url], span{number(t, words[0]), number(t, words[1])})
			}
		}
	}
	return l
}

func (l *load) file(i int) string { return fmt.Sprintf("/run/load.%d", i) }

// count is how many requests have ended.
func (l *load) count() (n int) {
	for i := range l.urls {
		if l.m.Exists(l.file(i)) {
			n += strings.Count(l.m.Read(l.file(i)), "\n")
		}
	}
	return n
}

func number(t *testing.T, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// restartsOf are the times from when systemd has begun to stop a unit until it has started, from the journal: when systemd has sent its messages, not
// when journald has read them, which may be much later on a machine under load.
func restartsOf(t *testing.T, m *nspawn.Machine, unit string) (spans []span) {
	t.Helper()
	const stopping, started = "de5b426a63be47a7b6ac3eaac82e2f6f", "39f53479d3a045ac8e11786248231fbf" // of systemd's catalog
	for line := range strings.Lines(m.Journal("--unit="+unit, "--output=json", "--output-fields=MESSAGE_ID,_SOURCE_REALTIME_TIMESTAMP", "_PID=1")) {
		var entry struct {
			Time string `json:"_SOURCE_REALTIME_TIMESTAMP"`
			ID   string `json:"MESSAGE_ID"`
		}
		unmarshal(t, line, &entry)
		switch n := len(spans); {
		case entry.ID == stopping:
			spans = append(spans, span{begin: number(t, entry.Time)})
		case entry.ID == started && n > 0 && spans[n-1].end == 0:
			spans[n-1].end = number(t, entry.Time)
		}
	}
	return spans
}

// requireOnlyDuring fails if a request has failed when the unit was not being restarted.
func (l *load) requireOnlyDuring(t *testing.T, url, unit string) {
	t.Helper()
	restarts := restartsOf(t, l.m, unit)
	if len(restarts) == 0 {
		t.Fatalf("%s was not restarted", unit)
	}
	for _, failure := range l.failures[url] {
		during := false
		for _, restart := range restarts {
			during = during || failure.meets(restart)
		}
		if !during {
			t.Errorf("a request to %s failed between %d and %d, and %s was only restarted in %v", url, failure.begin, failure.end, unit, restarts)
		}
	}
}

// upgradedServers changes the programs of nginx and PostgreSQL, and nothing that they do.
func upgradedServers(tree *nspawn.Tree) {
	for _, program := range []string{"usr/sbin/nginx", "usr/lib/postgresql/17/bin/postgres"} {
		tree.Write(program, tree.Read(program)+"another build", 0o755) // behind what an ELF file consists of
	}
}

// socketActivated adds a server whose socket is systemd's.
func socketActivated(tree *nspawn.Tree) {
	tree.Write("usr/lib/systemd/system/lab-web.socket", "[Socket]\nListenStream=127.0.0.1:8080\n", 0o644)
	tree.Write("usr/lib/systemd/system/lab-web.service", "[Unit]\nRequires=lab-web.socket\n[Service]\nEnvironment=NGINX=3:\nKillSignal=SIGQUIT\n"+
		"ExecStart=/usr/sbin/nginx -c /etc/lab-web.conf\n", 0o644)
	tree.Write("usr/etc/lab-web.conf", "daemon off;\npid /run/lab-web.pid;\nerror_log /run/lab-web.log;\nevents {}\nhttp { access_log off; server { listen 127.0.0.1:8080; return 200 lab; } }\n", 0o644)
}

// serversMachine boots a machine with nginx and PostgreSQL, and restarts services that run on replaced files.
func serversMachine(t *testing.T) (m *nspawn.Machine, v1 string) {
	t.Helper()
	v1 = lab.Derive(t, lab.WithProduct(t, lab.Base(t, nspawn.Trixie, nspawn.Servers)), socketActivated)
	m = lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	m.Run("mkdir", "-p", "/etc/liveapply")
	configure(m, "RestartServices=changed", "HealthTimeout=3s")
	m.Run("systemctl", "start", "nginx", "postgresql", "lab-web.socket")
	return m, v1
}

const nginxURL, socketURL = "http://localhost/", "http://127.0.0.1:8080/"

func TestServersAreUpgradedUnderLoad(t *testing.T) {
	t.Parallel()
	m, v1 := serversMachine(t)
	v2 := derived(t, m, v1, upgradedServers)
	before := factsOf(t, m)
	m.Write("/run/insert", `#!/bin/bash
runuser -u postgres -- psql -qc 'CREATE TABLE lab (n int)'
for ((n = 0; ; n++)); do
	[[ -e /run/load.stop ]] && exit
	runuser -u postgres -- psql -qc "INSERT INTO lab VALUES ($n)" 2>/dev/null && echo $n
done >/run/inserted
`)
	m.Run("chmod", "755", "/run/insert")
	m.Run("systemd-run", "--unit=insert", "--collect", "/run/insert")
	programs := func() string {
		return m.Run("sh", "-c", `for unit in nginx postgresql@17-main lab-web; do
			readlink -e /proc/$(systemctl show --value --property=MainPID $unit)/exe || echo "$unit runs on an old file"; done`)
	}
	l := underLoad(t, m, []string{nginxURL, socketURL}, func() { apply(t, m, v2) })
	waitFor(t, "the end of the inserts", func() bool { return m.Try("systemctl", "is-active", "insert").Code != 0 })

	equal(t, "the programs that run", programs(), "/usr/sbin/nginx\n/usr/lib/postgresql/17/bin/postgres\n/usr/sbin/nginx")
	for _, unit := range []string{"nginx", "postgresql@17-main", "lab-web"} {
		if len(restartsOf(t, m, unit)) == 0 {
			t.Errorf("%s was not restarted", unit)
		}
	}
	l.requireOnlyDuring(t, nginxURL, "nginx")
	equal(t, "failed requests to the socket of systemd", len(l.failures[socketURL]), 0)
	inserted := strings.Fields(m.Read("/run/inserted"))
	rows := strings.Fields(m.Run("runuser", "-u", "postgres", "--", "psql", "-tAc", "SELECT n FROM lab"))
	has := map[string]bool{}
	for _, row := range rows {
		has[row] = true
	}
	for _, n := range inserted {
		if !has[n] {
			t.Errorf("the row %s was inserted, and is lost", n)
		}
	}
	if len(inserted) < 5 {
		t.Errorf("only %d rows were inserted", len(inserted))
	}
	reset(t, m)
	equal(t, "the programs that run after the reset", programs(), "/usr/sbin/nginx\n/usr/lib/postgresql/17/bin/postgres\n/usr/sbin/nginx")
	m.Run("sh", "-c", "rm -f /run/load.* /run/client /run/insert*; runuser -u postgres -- psql -qc 'DROP TABLE lab'")
	requireSame(t, m, before)
}

func TestServerThatCannotStartIsRolledBack(t *testing.T) {
	t.Parallel()
	m, v1 := serversMachine(t)
	configure(m, "RestartServices=changed", "HealthTimeout=30s") // it ends with the first failure
	before := factsOf(t, m)
	for name, broken := range map[string]func(*nspawn.Tree){ // of what the library is for, PostgreSQL may be the first that fails
		"a broken configuration": func(tree *nspawn.Tree) {
			upgradedServers(tree)
			tree.Write("usr/etc/nginx/nginx.conf", "events {\n", 0o644)
		},
		"a library that is missing": func(tree *nspawn.Tree) {
			upgradedServers(tree)
			found := ""
			for _, dir := range []string{"usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu"} {
				entries, _ := os.ReadDir(tree.Path(dir))
				for _, entry := range entries {
					if strings.HasPrefix(entry.Name(), "libssl.so") {
						tree.Remove(dir + "/" + entry.Name())
						found = dir
					}
				}
			}
			if found == "" {
				t.Fatal("there is no libssl")
			}
		},
		"a crash after two seconds": func(tree *nspawn.Tree) {
			upgradedServers(tree)
			tree.Write("usr/lib/systemd/system/nginx.service.d/lab.conf", "[Service]\nExecStartPost=systemd-run --on-active=2s --timer-property=AccuracySec=100ms systemctl kill --signal=SIGSEGV nginx\n", 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := m.For(t)
			bad := derived(t, m, v1, broken)
			l := underLoad(t, m, []string{nginxURL}, func() { equal(t, "exit status", tryApply(m, bad).Code, 1) })
			equal(t, "nginx is", m.Run("systemctl", "is-active", "nginx"), "active")
			var down int64
			if failures := l.failures[nginxURL]; len(failures) > 0 {
				down = failures[len(failures)-1].end - failures[0].begin
			}
			t.Logf("nginx did not answer for %d ms", down/1000)
			all := history(t, m)
			equal(t, "result", all[len(all)-1].Result, "rolled-back")
			requireSays(t, "the history", all[len(all)-1].Reason, []string{".service", "systemctl status"})
			requireSays(t, "status", m.Run("liveapplyctl", "status"), []string{"Last failure", ".service"})
			m.Run("sh", "-c", "rm -f /run/load.* /run/client; systemctl reset-failed")
			requireSame(t, m, before)
		})
	}
}
