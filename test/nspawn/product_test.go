//go:build nspawn

package nspawn_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
	"github.com/liveapply/liveapply/test/nspawn"
)

// product returns the commit of the minimal image with the project.
func product(t *testing.T, suite nspawn.Suite) string {
	t.Helper()
	return lab.WithProduct(t, lab.Base(t, suite, nspawn.Minimal))
}

// productMachine returns a machine that runs this commit.
func productMachine(t *testing.T, suite nspawn.Suite, options nspawn.Options) (m *nspawn.Machine, commit string) {
	t.Helper()
	commit = product(t, suite)
	m = lab.Machine(t, commit, options)
	m.Boot()
	return m, commit
}

// releaseMachine returns a machine that runs release 1 of the lab.
func releaseMachine(t *testing.T, suite nspawn.Suite) (m *nspawn.Machine, v1 string) {
	t.Helper()
	v1 = lab.Derive(t, product(t, suite), labRelease("1"))
	m = lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	return m, v1
}

// derived makes a commit out of another one, and brings it into the machine's repo.
func derived(t *testing.T, m *nspawn.Machine, parent string, edit func(*nspawn.Tree)) string {
	t.Helper()
	commit := lab.Derive(t, parent, edit)
	m.Pull(commit)
	return commit
}

func applyUnit(commit string) string { return "liveapply@" + commit + ".service" }

// apply applies a commit that is in the machine's repo, which must succeed.
func apply(t *testing.T, m *nspawn.Machine, commit string) {
	t.Helper()
	if result := tryApply(m, commit); result.Code != 0 {
		t.Fatalf("systemctl start %s: exit status %d\n%s\n%s", applyUnit(commit), result.Code, result.Stderr,
			m.Journal("--unit=liveapply*", "--output=short-monotonic"))
	}
}

func tryApply(m *nspawn.Machine, commit string) nspawn.Result {
	return m.Try("systemctl", "start", applyUnit(commit))
}

// makeTransient has the machine stage no deployments, which takes time, for tests that are not about it.
func makeTransient(m *nspawn.Machine) {
	m.Run("mkdir", "--parents", "/etc/liveapply")
	m.Write("/etc/liveapply/liveapply.conf", "[Apply]\nTransient=yes\n")
}

// reset goes back to the booted tree, which must succeed.
func reset(t *testing.T, m *nspawn.Machine) {
	t.Helper()
	if result := m.Try("systemctl", "start", "liveapply-reset.service"); result.Code != 0 {
		t.Fatalf("systemctl start liveapply-reset.service: exit status %d\n%s\n%s", result.Code, result.Stderr,
			m.Journal("--unit=liveapply*", "--output=short-monotonic"))
	}
}

// stamp is the stamp as docs/architecture.md describes it to those who read it.
type stamp struct {
	Version        int      `json:"version"`
	Booted         string   `json:"booted"`
	Live           string   `json:"live"`
	Previous       string   `json:"previous"`
	Target         string   `json:"target"`
	Phase          string   `json:"phase"`
	Transaction    string   `json:"transaction"`
	Transient      bool     `json:"transient"`
	Applied        string   `json:"applied"`
	Layers         []string `json:"layers"`
	RebootRequired []string `json:"reboot_required"`
	Partial        *struct {
		Of       string   `json:"of"`
		Packages []string `json:"packages"`
		Without  []string `json:"without"`
	} `json:"partial"`
	Stack []usrLayer `json:"stack"`
}

// usrLayer is a part of what /usr shows.
type usrLayer struct {
	Kind       string   `json:"kind"`
	Name       string   `json:"name"`
	Generation int      `json:"generation"`
	Commit     string   `json:"commit"`
	Writable   bool     `json:"writable"`
	Stale      []string `json:"stale"`
}

// status is what liveapplyctl status --json says.
func status(t *testing.T, m *nspawn.Machine) stamp {
	t.Helper()
	var s stamp
	decode(t, m.Run("liveapplyctl", "status", "--json"), &s)
	return s
}

// transaction is a line of the history.
type transaction struct {
	ID          string `json:"transaction"`
	From        string `json:"from"`
	Target      string `json:"target"`
	Partial     any    `json:"partial"`
	Started     string `json:"started"`
	Result      string `json:"result"`
	Reason      string `json:"reason"`
	Passing     bool   `json:"passing"`
	RequestedBy string `json:"requested_by"`
	Allow       string `json:"allow"`
	Phases      []struct {
		Name    string  `json:"name"`
		Started string  `json:"started"`
		Seconds float64 `json:"seconds"`
		Steps   []struct {
			Name    string  `json:"name"`
			Started string  `json:"started"`
			Seconds float64 `json:"seconds"`
		} `json:"steps"`
	} `json:"phases"`
}

// history returns the transactions of the machine's life, the oldest first.
func history(t *testing.T, m *nspawn.Machine) []transaction {
	t.Helper()
	const path = "/var/lib/liveapply/history.jsonl"
	if !m.Exists(path) {
		return nil
	}
	var all []transaction
	for line := range strings.Lines(m.Read(path)) {
		var one transaction
		decode(t, line, &one)
		all = append(all, one)
	}
	return all
}

// decode parses JSON that must have no field that the type lacks.
func decode(t *testing.T, text string, into any) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

// facts is all that an application changes, and a refusal, a rollback and a reset leave as it was.
type facts struct {
	state    []string // see stateOf
	usr, etc nspawn.Snapshot
}

// factsOf looks at a running machine.
func factsOf(t *testing.T, m *nspawn.Machine) facts {
	t.Helper()
	return facts{state: stateOf(t, m), usr: m.Snapshot("/usr"), etc: m.Snapshot("/etc")}
}

// stateOf lists, each with what it is in front of it: mounts, refs, deployments, files in the backing directory and in
// /run, and the units that are active while something is live.
func stateOf(t *testing.T, m *nspawn.Machine) []string {
	t.Helper()
	var state []string
	add := func(what, lines string) {
		for line := range strings.Lines(lines) {
			state = append(state, what+": "+strings.TrimSpace(line))
		}
	}
	add("mount", mountTable(m))
	add("ref", strings.Join(refs(t, m), "\n"))
	add("ostree admin status", m.Run("ostree", "admin", "status"))
	for _, dir := range []string{"/sysroot/ostree/deploy/debian/backing", "/run/liveapply", "/run/ostree"} {
		add("file", strings.Join(below(t, m, dir), "\n"))
	}
	add("active unit", m.Run("systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating,deactivating,failed",
		"liveapply.target", "liveapply-etc-revert.service"))
	return state
}

// killedRef is what libostree leaves for good of a ref that it was about to replace when power was lost, or it was killed: it links the new file beside the old
// one, and renames it (glnx_link_tmpfile_at).
var killedRef = regexp.MustCompile(`/tmp\.[A-Za-z0-9]{6}$`)

// refs lists the refs and their commits. Those below ostree/ are libostree's own, which keep the deployments' commits and get other
// numbers whenever a deployment is staged or dropped: only what they keep is of interest.
func refs(t *testing.T, m *nspawn.Machine) []string {
	t.Helper()
	const dir = "/sysroot/ostree/repo/refs"
	var lines []string
	for _, path := range below(t, m, dir) {
		name := strings.TrimPrefix(path, dir+"/heads/")
		if strings.HasPrefix(name, "ostree/") && killedRef.MatchString(name) {
			continue
		}
		if strings.HasPrefix(name, "ostree/") {
			name = "ostree/"
		}
		if strings.HasPrefix(name, "test/") {
			continue // the test's, see Pull
		}
		lines = append(lines, name+" "+strings.TrimSpace(m.Read(path)))
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

// mountTable has a line per mount, sorted. A mount that was carried to another tree and back has another number. Credentials of
// a service are mounted while it runs, and the machine's console starts some at its own time.
func mountTable(m *nspawn.Machine) string {
	var lines []string
	for _, mount := range m.Mounts() {
		if strings.HasPrefix(mount.Mountpoint, "/run/credentials/") {
			continue
		}
		if strings.HasPrefix(mount.Source, "liveapply:") {
			mount.Optional = "" // mounted again, it is in another peer group
		}
		lines = append(lines, fmt.Sprintln(mount.Mountpoint, mount.FSType, mount.Source, mount.Root, mount.Options, mount.VFSOptions, mount.Optional))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// below lists the files below a directory, and not the directories: that they exist is no state. Nor is the lock of liveapply, or what it
// remembers of trees on which processes may still run.
func below(t *testing.T, m *nspawn.Machine, dir string) []string {
	t.Helper()
	if !m.Exists(dir) {
		return nil
	}
	root := m.Path(dir)
	var files []string
	err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !entry.IsDir() && path != m.Path("/run/liveapply/lock") && filepath.Dir(path) != m.Path("/run/liveapply/trees") {
			files = append(files, dir+strings.TrimPrefix(path, root))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// requireSame compares a machine with what it was.
func requireSame(t *testing.T, m *nspawn.Machine, before facts) {
	t.Helper()
	after := factsOf(t, m)
	requireSameState(t, before, after.state)
	requireTree(t, "/usr", after.usr, before.usr)
	requireTree(t, "/etc", after.etc, before.etc)
}

func requireSameState(t *testing.T, before facts, after []string) {
	t.Helper()
	if diff := lineDiff(before.state, after); diff != "" {
		t.Errorf("the machine is not as before:\n%s", diff)
	}
}

func requireTree(t *testing.T, what string, got, want nspawn.Snapshot) {
	t.Helper()
	if diff := nspawn.Diff(want, got); diff != "" {
		t.Errorf("%s differs:\n%.4000s", what, diff)
	}
}

// lineDiff shows the lines that only one of two lists has.
func lineDiff(before, after []string) string {
	var diff strings.Builder
	show := func(mark string, lines, others []string) {
		for _, line := range lines {
			if !slices.Contains(others, line) {
				fmt.Fprintln(&diff, mark, line)
			}
		}
	}
	show("-", before, after)
	show("+", after, before)
	return diff.String()
}

// trees has what treeOf has returned, by commit: that never changes.
var trees sync.Map

// treeOf returns /usr of a commit, as ostree checkout makes it.
func treeOf(t *testing.T, commit string) nspawn.Snapshot {
	t.Helper()
	if tree, ok := trees.Load(commit); ok {
		return tree.(nspawn.Snapshot)
	}
	tree := snapshot(t, filepath.Join(lab.Checkout(t, commit), "usr"))
	trees.Store(commit, tree)
	return tree
}

// requireUsrIs compares /usr with a fresh checkout of a commit.
func requireUsrIs(t *testing.T, m *nspawn.Machine, commit string) {
	t.Helper()
	requireTree(t, "/usr", m.Snapshot("/usr"), treeOf(t, commit))
}

// installWitness puts the command witness into the machine, outside /usr, and returns its path there.
func installWitness(t *testing.T, m *nspawn.Machine) string {
	t.Helper()
	const path = "/run/witness"
	build := exec.Command("go", "build", "-o", m.Path(path), "./witness")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build, err, output)
	}
	return path
}

// witnessStep is the file by which witnesses that watch are told what may be seen.
const witnessStep = "/run/step"

// tellWitnesses tells what may be seen from now on: "<number> <version before> <version after>", or "stop".
func tellWitnesses(t *testing.T, m *nspawn.Machine, step string) {
	t.Helper()
	m.Write(witnessStep+".new", step)
	if err := os.Rename(m.Path(witnessStep+".new"), m.Path(witnessStep)); err != nil {
		t.Fatal(err)
	}
}

// requireSaw waits for a witness that was told to stop, which must have seen nothing wrong, and all versions.
func requireSaw(t *testing.T, p *nspawn.Process, versions int) {
	t.Helper()
	output, err := p.Wait()
	if err != nil || !strings.HasSuffix(output, fmt.Sprintf("saw %d versions\n", versions)) {
		t.Errorf("a reader says: %s (%v), want that it saw %d versions", output, err, versions)
	}
}

// waitUntilReady waits until a process of a witness watches.
func waitUntilReady(t *testing.T, p *nspawn.Process) {
	t.Helper()
	waitFor(t, "a process to say that it is ready", func() bool { return strings.Contains(p.Output(), "ready\n") })
}

// waitFor waits for something that happens soon, or fails. It is patient: who waits for a slot of a fleet, for example, asks once a minute, and may do
// so after another one has.
func waitFor(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !happened(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// put adds a written tree to one that is being made.
func put(t *testing.T, tree *nspawn.Tree, spec ostreetest.Spec) {
	t.Helper()
	ostreetest.Run(t, "cp", "-a", "--remove-destination", "--no-target-directory", spec.Write(t), tree.Path("."))
}
