//go:build nspawn

package nspawn_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// changeAllPackages gives every package a new version and another file, as a large update has.
func changeAllPackages(t *testing.T, tree *nspawn.Tree) (changed int) {
	t.Helper()
	const mark = "+lab1"
	status := tree.Read(dpkgDatabase + "/status")
	versions := map[string]bool{}
	for _, found := range regexp.MustCompile(`(?m)^Version: (.*)$`).FindAllStringSubmatch(status, -1) {
		versions[found[1]] = true
	}
	status = regexp.MustCompile(`(?m)^Version: .*$`).ReplaceAllString(status, "$0"+mark)
	for version := range versions { // what needs exactly this version
		status = strings.ReplaceAll(status, "(= "+version+")", "(= "+version+mark+")")
	}
	tree.Write(dpkgDatabase+"/status", status, 0o644)
	for _, found := range regexp.MustCompile(`(?m)^Package: (.*)$`).FindAllStringSubmatch(status, -1) {
		name := found[1]
		list := dpkgDatabase + "/info/" + name + ".list"
		if _, err := os.Lstat(tree.Path(list)); err != nil {
			list = dpkgDatabase + "/info/" + name + ":amd64.list"
		}
		tree.Write(list, tree.Read(list)+"/usr/share/lab\n/usr/share/lab/"+name+"\n", 0o644)
		tree.Write("usr/share/lab/"+name, "the new version", 0o644)
		changed++
	}
	return changed
}

// serversUpdate returns a commit that changes all packages of another one, and adds nginx and PostgreSQL.
func serversUpdate(t *testing.T, m *nspawn.Machine) string {
	t.Helper()
	changed := 0
	update := derived(t, m, lab.WithProduct(t, lab.Base(t, nspawn.Trixie, nspawn.Servers)), func(tree *nspawn.Tree) {
		changed = changeAllPackages(t, tree)
	})
	if changed < 150 {
		t.Fatalf("only %d packages change", changed)
	}
	return update
}

// ownPaths lists what dpkg, on the machine, says that packages have, as paths below /usr. What is elsewhere is made by systemd-tmpfiles.
func ownPaths(m *nspawn.Machine, packages []string) map[string]bool {
	own := map[string]bool{}
	for _, name := range packages {
		for _, line := range strings.Split(m.Run("dpkg-query", "--listfiles", name), "\n") {
			for _, dir := range []string{"bin", "sbin", "lib", "lib64"} { // links into /usr
				if strings.HasPrefix(line, "/"+dir+"/") {
					line = "/usr" + line
				}
			}
			if rest, ok := strings.CutPrefix(line, "/etc"); ok {
				line = "/usr/etc" + rest
			}
			if rest, ok := strings.CutPrefix(line, "/usr/"); ok {
				own[rest] = true
			}
		}
	}
	return own
}

// versions asks dpkg on the machine for all packages.
func versions(m *nspawn.Machine) []string {
	return strings.Split(m.Run("dpkg-query", "--show", "--showformat=${binary:Package} ${Version}\n"), "\n")
}

func TestPackagesAreTakenOutOfATarget(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	update := serversUpdate(t, m)
	before, packages := factsOf(t, m), versions(m)

	var dry struct{ Live string }
	unmarshal(t, m.Run("liveapplyctl", "apply", "--dry-run", "--json", "--transient", "--packages=nginx", update), &dry)
	requireSame(t, m, before)
	equal(t, "the objects of a dry run in the repo", m.Try("ostree", "show", dry.Live).Code, 1)

	// Who puts account files together has to read them.
	asNobody := m.Try("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "liveapplyctl", "apply", "--dry-run", "--packages=nginx", update)
	equal(t, "exit status of a dry run as nobody", asNobody.Code, exitFailed)
	requireSays(t, "a dry run as nobody", asNobody.Stderr, []string{"permission denied: ask as root"})
	m.Run("liveapplyctl", "apply", "--transient", "--packages=nginx", update)
	equal(t, "live, as the dry run has said", status(t, m).Live, dry.Live)

	var taken []string
	for _, line := range versions(m) {
		if !slices.Contains(packages, line) {
			name, _, _ := strings.Cut(line, " ")
			taken = append(taken, name)
		}
	}
	if !slices.Contains(taken, "nginx") || len(taken) > 20 || slices.Contains(taken, "postgresql") {
		t.Errorf("these packages were taken: %q", taken)
	}
	equal(t, "what dpkg finds wrong", m.Run("dpkg", "--audit"), "")
	own := ownPaths(m, taken)
	missing := 0
	for name := range own {
		if result := m.Try("stat", "/usr/"+name); result.Code != 0 && !strings.HasPrefix(name, "share/doc/") &&
			!strings.HasPrefix(name, "share/man/") && !strings.HasPrefix(name, "share/locale/") {
			missing++
			t.Logf("/usr/%s is missing", name)
		}
	}
	equal(t, "files of the packages that are missing", missing, 0)
	requireOnlyTheirs(t, treeOf(t, v1), m.Snapshot("/usr"), own)

	m.Run("systemctl", "start", "nginx")
	if page := m.Run("curl", "--silent", "--fail", "http://localhost/"); !strings.Contains(page, "Welcome to nginx") {
		t.Errorf("nginx serves %q", page)
	}
	shown := m.Run("liveapplyctl", "status")
	requireSays(t, "status", shown, []string{update + "\n", "(partial: ", "nginx 1."})
	requireSays(t, "history", m.Run("liveapplyctl", "history"), []string{"partial: ", "nginx 1."})
	m.Run("systemctl", "stop", "nginx")

	t.Run("and asked again, there is nothing to do", func(t *testing.T) {
		m := m.For(t)
		live := status(t, m).Live
		m.Run("liveapplyctl", "apply", "--transient", "--packages=nginx", update)
		equal(t, "live", status(t, m).Live, live)
	})
	t.Run("and the whole can follow, and be taken back", func(t *testing.T) {
		m := m.For(t)
		m.Run("liveapplyctl", "apply", "--transient", update)
		requireLive(t, m, update)
		m.Run("liveapplyctl", "rollback")
		equal(t, "status after the rollback", m.Run("systemctl", "start", "nginx"), "")
		m.Run("systemctl", "stop", "nginx")
		requireSays(t, "status", m.Run("liveapplyctl", "status"), []string{"(partial: ", "nginx 1."})
	})
	reset(t, m)
	requireSame(t, m, before)
}

// requireOnlyTheirs fails if something differs between two trees of /usr that is not of the packages whose paths are given, nor made of what packages
// have.
func requireOnlyTheirs(t *testing.T, old, new nspawn.Snapshot, own map[string]bool) {
	t.Helper()
	made := regexp.MustCompile(`^(share/dpkg/database/.*|etc/(passwd|group|shadow|gshadow|subuid|subgid)-?|share/factory(/.*)?|lib/(tmpfiles|sysusers)\.d/.*)$`)
	var others []string
	names := map[string]bool{}
	for name := range old {
		names[name] = true
	}
	for name := range new {
		names[name] = true
	}
	for name := range names {
		a, wasThere := old[name]
		b, isThere := new[name]
		link := !wasThere && b.Target != ""
		if own[name] || made.MatchString(name) || wasThere && isThere && a == b || link {
			continue
		}
		others = append(others, fmt.Sprintf("%s: %v, %v", name, a, b))
	}
	slices.Sort(others)
	if len(others) > 0 {
		t.Errorf("%d paths differ besides those of the packages:\n%s", len(others), strings.Join(others[:min(20, len(others))], "\n"))
	}
}

func TestPackagesAreLeftOutOfATarget(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	update := serversUpdate(t, m)
	before := factsOf(t, m)
	old := versions(m)

	// tzdata needs nothing of a certain version, and nothing needs tzdata so.
	m.Run("liveapplyctl", "apply", "--except=tzda*", update)

	var same []string
	for _, line := range versions(m) {
		if slices.Contains(old, line) {
			same = append(same, strings.Fields(line)[0])
		}
	}
	equal(t, "packages that are as booted", fmt.Sprint(same), "[tzdata]")
	equal(t, "the file of the new tzdata", m.Try("test", "-e", "/usr/share/lab/tzdata").Code, 1)
	equal(t, "the file of the new bash", m.Read("/usr/share/lab/bash"), "the new version")
	requireOnlyTheirs(t, treeOf(t, update), m.Snapshot("/usr"), map[string]bool{"share/lab/tzdata": true})
	requireSays(t, "status", m.Run("liveapplyctl", "status"), []string{update + "\n", "(partial: without tzdata", "into the commit of which a part is live"})
	equal(t, "the next boot leads to", m.Run("sh", "-c", "ostree admin status | grep -c "+update), "1")

	now := status(t, m)
	equal(t, "of", now.Partial.Of, update)
	equal(t, "packages that were left out", len(now.Partial.Without), 1)
	m.Run("ostree", "fsck", "--quiet")
	equal(t, "live, in the repo", m.Run("ostree", "rev-parse", "liveapply/live"), now.Live)

	reset(t, m)
	requireSame(t, m, before)
	equal(t, "booted", status(t, m).Live, v1)
}

func TestSelectionsThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	m, _ := productMachine(t, nspawn.Trixie, nspawn.Options{})
	update := serversUpdate(t, m)
	before := factsOf(t, m)
	bare := derived(t, m, update, func(tree *nspawn.Tree) { tree.Remove(dpkgDatabase) })
	for _, r := range []refusal{
		{update, []string{"--packages=no-such-package"}, []string{"no-such-package", "neither"}},
		{update, []string{"--packages=["}, []string{"no pattern"}},
		{update, []string{"--packages=libsystemd0"}, []string{"stays, and needs", "select"}},
		{bare, []string{"--packages=nginx"}, []string{"no package database"}},
	} {
		requireRefused(t, m, before, r)
	}
	equal(t, "exit status of both at once", m.Try("liveapplyctl", "apply", "--packages=a", "--except=b", update).Code, 2)
}
