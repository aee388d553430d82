//go:build nspawn

package nspawn_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// branch is what the machines of these tests follow; the remote is shared.
func branch(t *testing.T) string {
	return "test/" + strings.NewReplacer("/", "-", "#", "-").Replace(t.Name())
}

// followServed has a machine follow the branch of a test on a remote, which is served over HTTP in the machine's network. The handler is around the one that serves.
func followServed(t *testing.T, m *nspawn.Machine, commit string, around func(http.Handler) http.Handler) {
	t.Helper()
	dir := lab.Release(t, branch(t), commit)
	handler := http.Handler(http.FileServer(http.Dir(dir)))
	if around != nil {
		handler = around(handler)
	}
	listener := m.Listen("127.0.0.1:0")
	server := &http.Server{Handler: handler}
	go server.Serve(listener) // until the test ends
	t.Cleanup(func() { server.Close() })
	m.Run("ostree", "remote", "add", "--repo=/sysroot/ostree/repo", "--no-gpg-verify", "lab", "http://"+listener.Addr().String())
	follow(t, m, commit, "lab:"+branch(t))
}

// release makes a commit with a file more the newest of the branch. The machine does not have it.
func release(t *testing.T, parent, name string) string {
	t.Helper()
	commit := lab.Derive(t, parent, func(tree *nspawn.Tree) { tree.Write("usr/share/"+name, name+"\n", 0o644) })
	lab.Release(t, branch(t), commit)
	return commit
}

// updateNow has updates fetched every few seconds.
const updateNow = "[Auto]\nUpdate=yes\nOnCalendar=*:*:0/5\nRandomizedDelaySec=0\n"

// updatingMachine returns a machine that is configured so; its timer is stopped, because there is nothing to follow yet.
func updatingMachine(t *testing.T, suite nspawn.Suite) (m *nspawn.Machine, commit string) {
	t.Helper()
	m, commit = automaticMachine(t, suite, updateNow)
	m.Run("systemctl", "stop", "liveapply-update.timer", "liveapply-update.service")
	m.Run("systemctl", "reset-failed")
	// To the second, and not to the minute.
	m.Run("mkdir", "/etc/systemd/system/liveapply-update.timer.d")
	m.Write("/etc/systemd/system/liveapply-update.timer.d/test.conf", "[Timer]\nAccuracySec=100ms\n")
	m.Run("systemctl", "daemon-reload")
	return m, commit
}

func TestTimerFetchesStagesAndApplies(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1 := updatingMachine(t, suite)
		followServed(t, m, v1, nil)
		m.Run("systemctl", "start", "liveapply-update.timer")
		waitFor(t, "an update that finds nothing", func() bool {
			return strings.Contains(m.Journal("--unit=liveapply-update.service", "--output=cat"), "No update available")
		})
		v2 := release(t, v1, "two")
		awaitLive(t, m, v2)
		requireUsrIs(t, m, v2)
		v3 := release(t, v2, "three")
		awaitLive(t, m, v3)
		m.Run("systemctl", "stop", "liveapply-update.timer")
		equal(t, "history", results(t, m), byItself("applied", v2)+"\n"+byItself("applied", v3))
		requireNoneFailed(t, m)

		m.Reboot()
		equal(t, "booted commit", m.BootedCommit(), v3)
		requireUsrIs(t, m, v3)
	})
}

func TestUpdateIsOnlyStagedWithoutApply(t *testing.T) {
	t.Parallel()
	m, v1 := automaticMachine(t, nspawn.Trixie, "[Auto]\nApply=no\n")
	followServed(t, m, v1, nil)
	v2 := release(t, v1, "two")
	m.Run("systemctl", "start", "liveapply-update.service")
	requireSays(t, "ostree admin status", m.Run("ostree", "admin", "status"), []string{v2, "(staged)"})
	requireSays(t, "liveapplyctl status", m.Run("liveapplyctl", "status"), []string{"Stays staged: ", "Apply=no"})
	equal(t, "live", status(t, m).Live, v1)
	m.Run("systemctl", "start", "liveapply-update.service") // nothing new is no failure
	requireNoneFailed(t, m)
}

func TestFailedUpdateIsSeenAndTriedAgain(t *testing.T) {
	t.Parallel()
	m, v1 := updatingMachine(t, nspawn.Trixie)
	away := make(chan struct{})
	followServed(t, m, v1, func(serve http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-away:
				serve.ServeHTTP(w, r)
			default:
				http.Error(w, "away", http.StatusServiceUnavailable)
			}
		})
	})
	v2 := release(t, v1, "two")
	m.Run("systemctl", "start", "liveapply-update.timer")
	waitFor(t, "a failure", func() bool {
		return strings.Contains(m.Run("systemctl", "--failed", "--plain", "--no-legend"), "liveapply-update.service")
	})
	equal(t, "live", status(t, m).Live, v1)
	waitFor(t, "liveapplyctl status to tell", func() bool {
		return strings.Contains(m.Run("liveapplyctl", "status"), "Updates: the last attempt failed, see systemctl status liveapply-update.service")
	})
	m.Run("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "liveapplyctl", "status")
	requireSays(t, "the journal", m.Journal("--output=cat"), []string{"503"}) // of a process that ends at once, journald may not know the unit
	close(away)
	awaitLive(t, m, v2)
	requireNoneFailed(t, m)
}

// systemd parses the command, and the status that means "nothing new" is no failure.
func TestUpdateCommand(t *testing.T) {
	t.Parallel()
	m, v1 := automaticMachine(t, nspawn.Trixie, "[Auto]\nUpdateCommand=/bin/sh -c 'ostree admin deploy --stage --os=debian \"$$(cat \"$0\")\" || exit 77' \"/run/what to stage\"\n")
	v2 := adds(t, m, v1, "two")
	m.Write("/run/what to stage", "none")
	m.Run("systemctl", "start", "liveapply-update.service")
	requireNoneFailed(t, m)
	m.Write("/run/what to stage", v2)
	m.Run("systemctl", "start", "liveapply-update.service")
	awaitLive(t, m, v2)
	requireSays(t, "the unit", m.Run("systemctl", "show", "liveapply-update.service"), []string{"Nice=19", "IOSchedulingClass=3"})
}
