//go:build nspawn

package nspawn_test

import (
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/test/nspawn"
)

// overlayRequests numbers the requests of this test run.
var overlayRequests atomic.Int64

// overlays has operations carried out in one step, which must succeed.
func overlays(t *testing.T, m *nspawn.Machine, operations ...overlay.Operation) {
	t.Helper()
	if result := tryOverlays(t, m, overlay.Request{Operations: operations}); result.Code != 0 {
		t.Fatalf("changing overlays: %s\n%s", result.Stderr, m.Journal("--unit=liveapply-overlay*", "--output=short-monotonic"))
	}
}

// tryOverlays leaves a request and starts the unit that carries it out.
func tryOverlays(t *testing.T, m *nspawn.Machine, request overlay.Request) nspawn.Result {
	t.Helper()
	return m.Try("systemctl", "start", leaveRequest(t, m, request))
}

// leaveRequest returns the unit that carries a request out.
func leaveRequest(t *testing.T, m *nspawn.Machine, request overlay.Request) (unit string) {
	t.Helper()
	content, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("test%d", overlayRequests.Add(1))
	m.Run("mkdir", "--parents", "/run/liveapply/overlay")
	m.Write("/run/liveapply/overlay/"+id+".json", string(content))
	return "liveapply-overlay@" + id + ".service"
}

// set gives a path a content, in an overlay.
func set(m *nspawn.Machine, name, path, content string) overlay.Operation {
	from := fmt.Sprintf("/run/test-content-%d", overlayRequests.Add(1))
	m.Write(from, content)
	return overlay.Operation{Verb: overlay.Set, Name: name, Path: path, From: from, Mode: 0o644}
}

func TestOverlayReplacesAddsAndMasks(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, booted := productMachine(t, suite, nspawn.Options{})
		makeTransient(m)
		usr, etc := m.Snapshot("/usr"), m.Snapshot("/etc")
		mounts := len(m.MountsAt("/usr"))
		host := m.Run("cat", "/usr/lib/os-release")

		overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "fix"})
		overlays(t, m,
			set(m, "fix", "/usr/lib/os-release", "ID=fixed\n"),
			set(m, "fix", "/usr/share/new/file", "new\n"),
			set(m, "fix", "/etc/new.conf", "conf\n"),
			set(m, "fix", "/etc/issue", "changed\n"),
			overlay.Operation{Verb: overlay.Mask, Name: "fix", Path: "/usr/bin/factor"},
			overlay.Operation{Verb: overlay.Mask, Name: "fix", Path: "/etc/issue.net"},
		)
		shown := func() {
			t.Helper()
			equal(t, "a replaced file", m.Run("cat", "/usr/lib/os-release"), "ID=fixed")
			equal(t, "a new file", m.Run("cat", "/usr/share/new/file"), "new")
			equal(t, "a new file in /etc", m.Run("cat", "/etc/new.conf"), "conf")
			equal(t, "a replaced file in /etc", m.Run("cat", "/etc/issue"), "changed")
			for _, masked := range []string{"/usr/bin/factor", "/etc/issue.net"} {
				if m.Try("test", "-e", masked).Code == 0 {
					t.Errorf("%s is there", masked)
				}
			}
		}
		shown()

		v2 := derived(t, m, booted, func(tree *nspawn.Tree) {
			tree.Write("usr/share/two", "2\n", 0o644)
			tree.Write("usr/etc/issue", "version 2\n", 0o644)
		})
		apply(t, m, v2)
		shown()
		equal(t, "a file of the commit", m.Run("cat", "/usr/share/two"), "2")

		overlays(t, m, overlay.Operation{Verb: overlay.Disable, Name: "fix"})
		equal(t, "the file below", m.Run("cat", "/usr/lib/os-release"), host)
		equal(t, "the file of the commit in /etc", m.Run("cat", "/etc/issue"), "version 2")
		overlays(t, m, overlay.Operation{Verb: overlay.Enable, Name: "fix"})
		shown()
		reset(t, m)
		shown()

		// From early boot on, and only then.
		m.Reboot()
		shown()
		run := func() string {
			return m.Run("systemctl", "show", "--property=InvocationID", "liveapply-overlays.service")
		}
		first := run()
		if first == "InvocationID=" {
			t.Error("what shows them at boot has not run")
		}
		m.Run("systemctl", "start", "systemd-tmpfiles-clean.service")
		equal(t, "run of what shows them at boot", run(), first)
		overlays(t, m, overlay.Operation{Verb: overlay.Remove, Name: "fix"})
		for path, before := range map[string]nspawn.Snapshot{"/usr": usr, "/etc": etc} {
			if diff := nspawn.Diff(before, m.Snapshot(path)); diff != "" {
				t.Errorf("%s is not as before:\n%s", path, diff)
			}
		}
		equal(t, "the mounts on /usr", len(m.MountsAt("/usr")), mounts)
	})
}

// A mask is not seen where there is nothing else of its directory any more, neither what it hides nor the directory in another layer.
func TestMaskWithoutAnythingToHideIsNotListed(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, _ := productMachine(t, suite, nspawn.Options{})
		for _, dir := range []string{"/usr/share/new", "/etc/new"} {
			overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "low"}, set(m, "low", dir+"/file", "new\n"))
			overlays(t, m, overlay.Operation{Verb: overlay.Create, Name: "top", Priority: 1},
				overlay.Operation{Verb: overlay.Mask, Name: "top", Path: dir + "/file"})
			equal(t, "what is masked", m.Run("ls", dir), "")
			overlays(t, m, overlay.Operation{Verb: overlay.Disable, Name: "low"})
			equal(t, "a mask of nothing", m.Run("ls", dir), "")
			// Also as part of another generation.
			overlays(t, m, set(m, "top", "/usr/share/other", "other\n"))
			equal(t, "a mask of nothing", m.Run("ls", dir), "")
			overlays(t, m, overlay.Operation{Verb: overlay.Remove, Name: "low"}, overlay.Operation{Verb: overlay.Remove, Name: "top"})
		}
	})
}
