//go:build nspawn

package nspawn_test

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveapply/liveapply/test/nspawn"
)

// damage is what may happen to a file.
type damage struct {
	name string
	do   func(path string) error
}

var damages = []damage{
	{"truncated", func(path string) error {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		return os.Truncate(path, info.Size()/2)
	}},
	{"emptied", func(path string) error { return os.Truncate(path, 0) }},
	{"noise", func(path string) error {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		random := rand.New(rand.NewPCG(1, 2))
		for i := range content {
			content[i] = byte(random.Uint32())
		}
		return os.WriteFile(path, content, 0o600)
	}},
	{"removed", os.Remove},
}

// stateFile is a file that liveapply keeps while a commit is live, or being applied.
type stateFile struct {
	name string
	path func(m *nspawn.Machine, r *releases) string // on the host, where even /sysroot is writable
	// says is what has to be said when something is to be done without it.
	says []string
}

func (f stateFile) damage(t *testing.T, m *nspawn.Machine, r *releases, how damage) {
	t.Helper()
	if err := how.do(f.path(m, r)); err != nil {
		t.Fatal(err)
	}
}

var (
	stampFile = stateFile{name: "stamp", path: func(m *nspawn.Machine, r *releases) string {
		return m.Path("/run/ostree/deployment-state/" + r.booted + ".0/liveapply.json")
	}}
	transactionFile = stateFile{name: "transaction", says: []string{"transaction", "going back to the booted tree"}, path: inRun("transaction.json")}
	planFile        = stateFile{name: "plan", says: []string{"plan"}, path: inRun("plan.json")}
	stagingFile     = stateFile{name: "staging", path: inRun("staging.json")}
	manifestFile    = stateFile{name: "manifest", says: []string{"manifest.json", "reloading everything"},
		path: func(m *nspawn.Machine, r *releases) string {
			return backing(m, r.booted, "layers/"+r.live+"/manifest.json")
		}}
	journalFile = stateFile{name: "journal of etc", says: []string{"etc/journal.json", "by the defaults"},
		path: func(m *nspawn.Machine, r *releases) string { return backing(m, r.booted, "etc/journal.json") }}
	historyFile = stateFile{name: "history", path: func(m *nspawn.Machine, _ *releases) string {
		return m.Path("/var/lib/liveapply/history.jsonl")
	}}
)

func inRun(name string) func(*nspawn.Machine, *releases) string {
	return func(m *nspawn.Machine, _ *releases) string { return m.Path("/run/liveapply/" + name) }
}

// backing is the host's path of a path below liveapply's directory of the booted deployment.
func backing(m *nspawn.Machine, booted, path string) string {
	return filepath.Join(m.Sysroot(), "ostree/deploy/debian/backing", booted+".0", "liveapply", path)
}

// releases are the commits of a test, and how the machine was when nothing was applied.
type releases struct {
	booted, live, other string
	before              facts
}

// newReleases boots a machine in release 1, where the administrator has changed a default and made a file.
func newReleases(t *testing.T) (*nspawn.Machine, *releases) {
	t.Helper()
	r := &releases{booted: lab.Derive(t, product(t, nspawn.Trixie), labRelease("1"))}
	m := lab.Machine(t, r.booted, nspawn.Options{})
	m.Boot()
	r.live = derived(t, m, r.booted, labRelease("2"))
	r.other = derived(t, m, r.live, labRelease("3"))
	m.Write("/etc/lab/edited", "mine\n")
	m.Write("/etc/lab/own", "mine\n")
	r.before = factsOf(t, m)
	return m, r
}

// messagesOf returns what liveapply has written to the journal while something was done.
func messagesOf(m *nspawn.Machine, do func()) string {
	journal := func() string { return m.Journal("--unit=liveapply*", "--output=cat") }
	seen := len(journal())
	do()
	return journal()[seen:]
}

// requireBooted is requireSame with the machine in the booted tree, after a way back that a damaged file was in the way of.
func (f stateFile) requireBooted(t *testing.T, m *nspawn.Machine, r *releases) {
	t.Helper()
	if f.name == stagingFile.name && strings.Contains(m.Run("ostree", "admin", "status"), "(staged)") {
		m.Run("ostree", "admin", "undeploy", "0") // as the message says: nobody knows whose it is
	}
	after := factsOf(t, m)
	if f.name == journalFile.name { // accounts that were made may stay
		requireTree(t, "/etc", withoutAccounts(after.etc), withoutAccounts(r.before.etc))
		r.before.etc = after.etc
	}
	requireSameState(t, r.before, after.state)
	requireTree(t, "/usr", after.usr, r.before.usr)
	requireTree(t, "/etc", after.etc, r.before.etc)
}

// What can be known from elsewhere is; what cannot is said, and the way back works without it.
func TestDamagedFileWhileACommitIsLive(t *testing.T) {
	t.Parallel()
	m, r := newReleases(t)
	for j, file := range []stateFile{stampFile, stagingFile, manifestFile, journalFile, historyFile} {
		for i, how := range damages {
			if !isExhaustive() && (i+j)%2 != 0 {
				continue
			}
			t.Run(file.name+" "+how.name+", then a reset", func(t *testing.T) {
				m := m.For(t)
				m.Run("rm", "-rf", "/var/lib/liveapply")
				apply(t, m, r.live)
				was := status(t, m)
				file.damage(t, m, r, how)
				requireStatus(t, m, was)
				messages := messagesOf(m, func() { m.Run("liveapplyctl", "reset") })
				requireSays(t, "the journal", messages, file.says)
				file.requireBooted(t, m, r)
				requireLastLine(t, m, "reset")
			})
			if t.Failed() {
				return
			}
		}
	}
}

func TestAnotherCommitIsAppliedInSpiteOfADamagedFile(t *testing.T) {
	t.Parallel()
	m, r := newReleases(t)
	for j, file := range []stateFile{stampFile, stagingFile, manifestFile, historyFile} {
		for i, how := range damages {
			if !isExhaustive() && i != j {
				continue
			}
			t.Run(file.name+" "+how.name, func(t *testing.T) {
				m := m.For(t)
				m.Run("rm", "-rf", "/var/lib/liveapply")
				apply(t, m, r.live)
				file.damage(t, m, r, how)
				apply(t, m, r.other)
				requireLive(t, m, r.other)
				requireUsrIs(t, m, r.other)
				requireLastLine(t, m, "applied")
				reset(t, m)
				file.requireBooted(t, m, r)
			})
			if t.Failed() {
				return
			}
		}
	}
}

// The way over the defaults, too, takes back only what is still as the live commits have put it there.
func TestResetWithADamagedJournalOfEtcKeepsWhatIsTheAdministrators(t *testing.T) {
	t.Parallel()
	m, r := newReleases(t)
	for i, how := range damages {
		if !isExhaustive() && i > 0 {
			continue
		}
		t.Run(how.name, func(t *testing.T) {
			m := m.For(t)
			apply(t, m, r.live)
			apply(t, m, r.other)
			equal(t, "default", m.Read("/etc/lab/default"), "3\n")
			m.Write("/etc/lab/default", t.Name())
			m.Write("/etc/lab/later", t.Name())
			m.Run("rm", "/etc/lab/only-in-1", "/etc/lab/only-in-3")
			for _, name := range []string{"lab/default", "lab/later"} {
				r.before.etc[name] = m.Snapshot("/etc/" + name)["."]
			}
			delete(r.before.etc, "lab/only-in-1")
			journalFile.damage(t, m, r, how)
			m.Run("liveapplyctl", "reset")
			journalFile.requireBooted(t, m, r)
			m.Run("sh", "-c", "cp -a /usr/etc/lab/default /usr/etc/lab/only-in-1 /etc/lab")
			r.before.etc = m.Snapshot("/etc")
		})
		if t.Failed() {
			return
		}
	}
}

// What would be put into /etc then could not be taken back.
func TestAnotherCommitIsRefusedWithADamagedJournalOfEtc(t *testing.T) {
	t.Parallel()
	m, r := newReleases(t)
	for _, how := range damages {
		t.Run(how.name, func(t *testing.T) {
			m := m.For(t)
			apply(t, m, r.live)
			journalFile.damage(t, m, r, how)
			applied := factsOf(t, m)
			result := m.Try("liveapplyctl", "apply", r.other)
			equal(t, "exit status", result.Code, exitRefused)
			requireSays(t, "liveapplyctl", result.Stderr, []string{"etc/journal.json", "liveapplyctl reset"})
			requireSame(t, m, applied)
			m.Run("liveapplyctl", "reset")
			journalFile.requireBooted(t, m, r)
		})
		if t.Failed() {
			return
		}
	}
}

// Of what is damaged only the journal of etc and the manifest are there in the next boot, and the first is needed before.
func TestRebootWithADamagedFile(t *testing.T) {
	t.Parallel()
	m, r := newReleases(t)
	for j, file := range []stateFile{journalFile, manifestFile} {
		for i, how := range damages {
			if !isExhaustive() && i != j {
				continue
			}
			t.Run(file.name+" "+how.name, func(t *testing.T) {
				m := m.For(t)
				m.Run("liveapplyctl", "apply", "--transient", r.live)
				file.damage(t, m, r, how)
				m.Reboot()
				after := factsOf(t, m)
				requireSameState(t, facts{state: exceptMounts(r.before.state)}, exceptMounts(after.state))
				requireTree(t, "/etc", withoutAccounts(after.etc), withoutAccounts(r.before.etc))
				requireNothingLeft(t, m)
			})
			if t.Failed() {
				return
			}
		}
	}
}

// And if nothing could be taken back at shutdown, because the power was cut, then at boot.
func TestPowerCutWithADamagedJournalOfEtc(t *testing.T) {
	t.Parallel()
	m, r := newReleases(t)
	for i, how := range damages {
		if !isExhaustive() && i < 3 {
			continue
		}
		t.Run(how.name, func(t *testing.T) {
			m := m.For(t)
			m.Run("liveapplyctl", "apply", "--transient", r.live)
			journalFile.damage(t, m, r, how)
			m.PowerCut()
			m.Boot()
			after := factsOf(t, m)
			requireSameState(t, facts{state: exceptMounts(r.before.state)}, exceptMounts(after.state))
			requireTree(t, "/etc", withoutAccounts(after.etc), withoutAccounts(r.before.etc))
			requireNothingLeft(t, m)
		})
		if t.Failed() {
			return
		}
	}
}

// requireStatus compares what status says with what it said before. When the commit was applied it may know less exactly.
func requireStatus(t *testing.T, m *nspawn.Machine, was stamp) {
	t.Helper()
	is := status(t, m)
	was.Applied, was.Transaction, is.Applied, is.Transaction = "", "", "", ""
	if diff := cmp.Diff(was, is); diff != "" {
		t.Errorf("status (-before +after):\n%s", diff)
	}
}

// requireLastLine looks at how the history says that the last transaction ended; what is before it may be damaged.
func requireLastLine(t *testing.T, m *nspawn.Machine, result string) {
	t.Helper()
	content := strings.TrimSuffix(m.Read("/var/lib/liveapply/history.jsonl"), "\n")
	var last transaction
	decode(t, content[strings.LastIndexByte(content, '\n')+1:], &last)
	equal(t, "result in the history", last.Result, result)
}

// A transaction ends with what it was to lead to, or with what was before it; or, where nobody knows any more what that was, in the booted
// tree.
func TestDamagedFileInTheMidstOfATransaction(t *testing.T) {
	t.Parallel()
	m, r := newReleases(t)
	for j, in := range []struct {
		file  stateFile
		after string // the phase
		ends  func(r *releases) string
	}{
		{transactionFile, "prepare", booted},
		{transactionFile, "etc", booted},
		{planFile, "prepare", live},
		{planFile, "etc", live},
		{stampFile, "mount", other},
		{stagingFile, "prepare", other},
		{manifestFile, "mount", other},
		{journalFile, "etc", booted},
		{historyFile, "etc", other},
	} {
		for i, how := range damages {
			if !isExhaustive() && i != j%len(damages) {
				continue
			}
			t.Run(in.file.name+" "+how.name+" after "+in.after, func(t *testing.T) {
				m := m.For(t)
				m.Run("rm", "-rf", "/var/lib/liveapply")
				apply(t, m, r.live)
				applied, target := factsOf(t, m), *r
				target.live = r.other
				messages := messagesOf(m, func() {
					holdAfter(t, m, in.after, r.other)
					in.file.damage(t, m, &target, how)
					m.Write("/run/go", "")
					awaitEnd(m)
				})
				removeDropIns(m)
				forgetOutcomes(m)
				switch in.ends(r) {
				case r.booted:
					requireSays(t, "the journal", messages, in.file.says)
					in.file.requireBooted(t, m, r)
					return
				case r.live:
					requireSays(t, "the journal", messages, in.file.says)
					requireSame(t, m, applied)
				case r.other:
					requireLive(t, m, r.other)
					requireUsrIs(t, m, r.other)
				}
				reset(t, m)
				in.file.requireBooted(t, m, r)
			})
			if t.Failed() {
				return
			}
		}
	}
}

func booted(r *releases) string { return r.booted }
func live(r *releases) string   { return r.live }
func other(r *releases) string  { return r.other }

// A file of a transaction that nobody has begun says nothing that could be taken back, and is in nobody's way.
func TestDamagedFileOfNoTransaction(t *testing.T) {
	t.Parallel()
	m, r := newReleases(t)
	for _, file := range []stateFile{transactionFile, planFile} {
		for _, content := range []string{"", "{", "\x00\xff noise"} {
			t.Run(file.name+" "+content, func(t *testing.T) {
				m := m.For(t)
				leave := func() {
					if err := os.WriteFile(file.path(m, r), []byte(content), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				leave()
				equal(t, "live commit", status(t, m).Live, r.booted)
				apply(t, m, r.live)
				requireLive(t, m, r.live)
				awaitEnd(m) // systemd looks whether there is something to roll back
				leave()
				equal(t, "live commit", status(t, m).Live, r.live)
				reset(t, m)
				if err := os.Remove(file.path(m, r)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				requireSame(t, m, r.before)
			})
		}
	}
}
