//go:build nspawn

package nspawn_test

import (
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

func TestServersThatArriveByALiveApplyServe(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, _ := productMachine(t, suite, nspawn.Options{})
		servers := lab.WithProduct(t, lab.Base(t, suite, nspawn.Servers))
		m.Pull(servers)
		before := factsOf(t, m)

		apply(t, m, servers)
		m.Run("systemctl", "start", "nginx", "postgresql")

		if page := m.Run("curl", "--silent", "--fail", "http://localhost/"); !strings.Contains(page, "Welcome to nginx") {
			t.Errorf("nginx serves %q", page)
		}
		equal(t, "answer of PostgreSQL", m.Run("runuser", "-u", "postgres", "--", "psql", "-tAc",
			"CREATE TABLE t (n int); INSERT INTO t VALUES (6), (7); SELECT sum(n) FROM t"), "CREATE TABLE\nINSERT 0 2\n13")
		for path, want := range map[string]string{
			"/etc/nginx/nginx.conf": "root:root 644",
			"/var/log/nginx":        "root:adm 755",
			"/var/lib/nginx":        "root:root 755",
			"/etc/postgresql":       "postgres:postgres 755",
			"/var/lib/postgresql":   "postgres:postgres 755",
			"/var/log/postgresql":   "root:postgres 1775",
			"/run/postgresql":       "postgres:postgres 2775",
		} {
			equal(t, "owner and mode of "+path, m.Try("stat", "--format=%U:%G %a", path).Stdout, want)
		}
		equal(t, "users of the workers of nginx", m.Run("sh", "-c", "ps -C nginx -o user= | sort -u | tr '\\n' ' '"), "root www-data ")
		equal(t, "failed units", m.Run("systemctl", "--failed", "--plain", "--no-legend"), "")

		m.Run("systemctl", "stop", "nginx", "postgresql")
		reset(t, m)
		requireSame(t, m, before)
	})
}
