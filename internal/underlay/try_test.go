package underlay

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// tool returns the path at which a layer's program is to be found, after it was written.
func (m *machine) tool(script string) string {
	m.t.Helper()
	m.write("layers/one/bin/tool", script)
	return filepath.Join(m.usr.Path, "bin/tool")
}

func (m *machine) try(argv ...string) error {
	m.t.Helper()
	return m.usr.Try(m.t.Context(), stackOf("one", m.layer("one")), Program{Name: argv[0], Args: argv[1:]})
}

func TestTryRunsTheCandidateAndChangesNothing(t *testing.T) {
	forEachLayout(t, func(t *testing.T, m *machine) {
		m.tmpfs("local", "local")
		test := `#!/bin/sh
			[ "$(cat ` + m.usr.Path + `/version)" = one ] && [ "$(cat ` + m.usr.Path + `/local/name)" = local ] || echo wrong tree
			exec 2>&1
			[ "$(id -u):$(id -G)" = 65534:65534 ] && grep -q "NoNewPrivs:.1" /proc/self/status && [ -z "$HOME" ] && [ $(pwd) = / ] || echo privileged
			exit 3`
		tool := m.tool(test)
		for _, tree := range []string{"booted", "two", "three"} {
			if tree != "booted" {
				m.show(tree)
			}
			before, files := m.table(), m.files("root/run")
			err := m.try(tool)
			if want := "trying liveapply:one: the tree cannot run " + tool + ": exit status 3"; err == nil || err.Error() != want {
				t.Errorf("the error is %v, want %s", err, want)
			}
			if diff := cmp.Diff(before, m.table()); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(files, m.files("root/run")); diff != "" {
				t.Error(diff)
			}
			m.shows(tree)
		}
		m.tool("#!/bin/sh\nexit 0\n")
		m.check(m.try(tool))
		m.detach()
	})
}

func TestTryTellsHowAProgramFailed(t *testing.T) {
	m := newMachine(t, ownGroup)
	for _, test := range []struct{ script, want string }{
		{"#!/bin/sh\necho error while loading shared libraries >&2; exit 127\n", `exit status 127: it said "error while loading shared libraries"`},
		{"#!/bin/sh\nkill -SEGV $$\n", "signal: segmentation fault"},
		{"#!" + m.usr.Path + "/lib/ld.so\n", "no such file or directory"},
		{"\x7fELF", "exec format error"},
	} {
		tool := m.tool(test.script)
		err := m.try(tool)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: the error is %v, want %q in it", test.script, err, test.want)
		}
	}
}

func TestTryEndsWithItsContext(t *testing.T) {
	m := newMachine(t, ownGroup)
	started := filepath.Join(m.dir, "started")
	m.check(unix.Mkfifo(started, 0))
	m.check(os.Chmod(started, 0o666))
	tool := m.tool("#!/bin/sh\nyes & sleep 1000 & echo $! >" + started + "; wait\n")
	ctx, cancel := context.WithCancel(t.Context())
	child := make(chan string, 1)
	go func() {
		pid, err := os.ReadFile(started) // waits until the program writes it
		if err != nil {
			t.Error(err)
		}
		child <- strings.TrimSpace(string(pid))
		cancel()
	}()
	err := m.usr.Try(ctx, stackOf("one", m.layer("one")), Program{Name: tool})
	if err == nil || !strings.Contains(err.Error(), "context canceled") {
		t.Errorf("the error is %v", err)
	}
	if err != nil && len(err.Error()) > 3*maxOutput {
		t.Errorf("the error has %d characters", len(err.Error()))
	}
	if state, err := os.ReadFile("/proc/" + <-child + "/stat"); err == nil && !strings.Contains(string(state), ") Z ") {
		t.Errorf("a process that the program left is alive: %s", state)
	}
}
