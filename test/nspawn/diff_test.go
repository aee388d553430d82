//go:build nspawn

package nspawn_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
	"github.com/liveapply/liveapply/test/nspawn"
)

// foreseen is what diff --json and apply --dry-run --json print, as far as it is compared here.
type foreseen struct {
	From      string          `json:"from"`
	Target    string          `json:"target"`
	Layers    []string        `json:"layers"`
	Transient bool            `json:"transient"`
	Impact    json.RawMessage `json:"impact"`
	Etc       []struct {
		Path string `json:"path"`
		Kind string `json:"kind"`
	} `json:"etc"`
}

// dpkgDatabase is where the trees of the tests have it.
const dpkgDatabase = "usr/share/dpkg/database"

// packagesOf asks dpkg for the packages of a commit.
func packagesOf(t *testing.T, commit string) []string {
	t.Helper()
	database := filepath.Join(lab.Checkout(t, commit), dpkgDatabase)
	list := ostreetest.Run(t, "dpkg-query", "--admindir="+database, "--show", "--showformat=${Package} ${Version} ${Architecture}\n")
	return strings.Split(strings.TrimSpace(list), "\n")
}

func TestDiffTellsThePackagesAndChangesNothing(t *testing.T) {
	t.Parallel()
	v1 := product(t, nspawn.Trixie)
	v2 := lab.WithProduct(t, lab.Base(t, nspawn.Trixie, nspawn.Servers))
	m := lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	m.Pull(v2)
	before := factsOf(t, m)

	var want []string
	old := packagesOf(t, v1)
	for _, p := range packagesOf(t, v2) {
		if !slices.Contains(old, p) {
			want = append(want, p)
		}
	}
	var packages struct {
		Packages struct {
			Added    []struct{ Name, Version, Arch string } `json:"added"`
			Removed  []any                                  `json:"removed"`
			Upgraded []any                                  `json:"upgraded"`
		} `json:"packages"`
	}
	var diff foreseen
	unmarshal(t, m.Run("liveapplyctl", "diff", "--json", v2), &diff)
	unmarshal(t, string(diff.Impact), &packages)
	var got []string
	for _, p := range packages.Packages.Added {
		got = append(got, fmt.Sprint(p.Name, " ", p.Version, " ", p.Arch))
	}
	slices.Sort(want)
	slices.Sort(got)
	if d := cmp.Diff(want, got); d != "" || len(want) == 0 {
		t.Errorf("added packages (-dpkg-query +diff):\n%s", d)
	}
	equal(t, "packages removed or upgraded", len(packages.Packages.Removed)+len(packages.Packages.Upgraded), 0)
	requireSays(t, "liveapplyctl diff", m.Run("liveapplyctl", "diff", v2), []string{v1, v2, "nginx ", "nginx.service", "/etc/nginx"})

	var files struct {
		Files struct {
			Added, Changed int
			Bytes          int64
		} `json:"files"`
	}
	unmarshal(t, string(diff.Impact), &files)
	number, bytes := 0, int64(0)
	was := treeOf(t, v1)
	for name, entry := range treeOf(t, v2) {
		if before, isOld := was[name]; (!isOld || before != entry) && !entry.IsDir() {
			number, bytes = number+1, bytes+entry.Size
		}
	}
	equal(t, "files that are added or changed", files.Files.Added+files.Files.Changed, number)
	equal(t, "their content, in bytes", files.Files.Bytes, bytes)

	asNobody := []string{"--reuid=nobody", "--regid=nogroup", "--clear-groups", "liveapplyctl", "diff", "--json", v2}
	var unprivileged foreseen
	unmarshal(t, m.Run("setpriv", asNobody...), &unprivileged)
	equal(t, "impact for nobody", len(unprivileged.Impact) > 0, true)
	requireSame(t, m, before)

	t.Run("and a dry run is what is then done", func(t *testing.T) {
		m := m.For(t)
		var dry, plan foreseen
		unmarshal(t, m.Run("liveapplyctl", "apply", "--dry-run", "--json", "--transient", v2), &dry)
		requireSame(t, m, before)
		makeTransient(m)
		holdAfter(t, m, "prepare", v2)
		var changes struct {
			Etc struct {
				Changes []struct {
					Path string `json:"path"`
				} `json:"changes"`
			} `json:"etc"`
		}
		text := strings.ReplaceAll(m.Read("/run/liveapply/plan.json"), `"etc":`, `"full_etc":`)
		unmarshal(t, text, &plan)
		unmarshal(t, m.Read("/run/liveapply/plan.json"), &changes)
		m.Write("/run/go", "")
		awaitEnd(m)
		removeDropIns(m)
		requireLive(t, m, v2)
		var paths, foretold []string
		for _, c := range changes.Etc.Changes {
			paths = append(paths, c.Path)
		}
		for _, c := range dry.Etc {
			foretold = append(foretold, c.Path)
		}
		dry.Etc = nil
		if d := cmp.Diff(dry, plan); d != "" {
			t.Errorf("-dry run +plan:\n%s", d)
		}
		if d := cmp.Diff(foretold, paths); d != "" {
			t.Errorf("/etc: -dry run +plan:\n%s", d)
		}
		reset(t, m)
	})
}

func TestAdditivePolicyGoesByPackages(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	makeTransient(m)
	status := func(edit func(string) string) func(*nspawn.Tree) {
		return func(tree *nspawn.Tree) {
			tree.Write(dpkgDatabase+"/status", edit(tree.Read(dpkgDatabase+"/status")), 0o644)
			tree.Write("usr/etc/ld.so.cache", "changed by it", 0o644)
			tree.Write("usr/lib/tmpfiles.d/image.conf", fmt.Sprintf("# %d\n", len(edit(""))), 0o644)
		}
	}
	m.Write("/etc/liveapply/liveapply.conf", "[Apply]\nTransient=yes\nIndexes=/usr/lib/tmpfiles.d/image.conf\n")
	added := derived(t, m, v1, status(func(text string) string {
		return text + "\nPackage: lab\nStatus: install ok installed\nVersion: 1.0\nArchitecture: all\n"
	}))
	upgraded := derived(t, m, added, status(func(text string) string {
		return strings.Replace(text, "Package: lab\nStatus: install ok installed\nVersion: 1.0", "Package: lab\nStatus: install ok installed\nVersion: 1.1", 1)
	}))
	m.Run("liveapplyctl", "apply", "--allow=additive", added)
	requireLive(t, m, added)
	// What no package has changes beside one that comes.
	beside := derived(t, m, added, func(tree *nspawn.Tree) {
		status(func(text string) string {
			return strings.ReplaceAll(text, "Package: lab\n", "Package: other\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\nPackage: lab\n")
		})(tree)
		tree.Write("usr/share/dpkg/cputable", "changed", 0o644)
	})
	requireRefused(t, m, factsOf(t, m), refusal{beside, []string{"--allow=additive"}, []string{"changes or removes 1 files (/usr/share/dpkg/cputable)"}})
	requireRefused(t, m, factsOf(t, m), refusal{upgraded, []string{"--allow=additive"}, []string{"Allow=additive", "lab 1.0", "1.1", "--allow=replace"}})
	result := m.Try("liveapplyctl", "apply", "--dry-run", "--allow=additive", upgraded)
	equal(t, "exit status of a dry run", result.Code, 1)
	requireSays(t, "a dry run", result.Stderr, []string{"lab 1.0", "--allow=replace"})
	m.Run("liveapplyctl", "apply", "--allow=replace", upgraded)
	requireLive(t, m, upgraded)
}

// What systemd-tmpfiles writes or removes is not taken back, so it is told before.
func TestDiffShowsWhatTmpfilesWouldDoToWhatIsThere(t *testing.T) {
	t.Parallel()
	m, v1 := productMachine(t, nspawn.Trixie, nspawn.Options{})
	makeTransient(m)
	const changing = "f+ /run/there - - - - new"
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) {
		tree.Write("usr/lib/tmpfiles.d/more.conf", "d /run/more\nf /run/kept - - - - new\n"+changing+"\n"+
			"d /srv/more\nd /opt/more\nd /home/more\nd /root/more\nd /mnt/more\nd /tmp/more\nd! /srv/at-boot\n", 0o644)
		tree.Write("usr/share/containers/systemd/lab.container", "[Container]\n", 0o644)
		tree.Write("usr/lib/systemd/system-generators/lab", "#!/bin/sh\n[ ! -e /usr/share/containers/systemd/lab.container ] || printf '[Service]\\nExecStart=/bin/true\\n' >$1/lab-generated.service\n", 0o755)
	})
	m.Write("/run/there", "old")
	m.Write("/run/kept", "old")
	var diff struct {
		Changes []string `json:"tmpfiles_changes"`
	}
	unmarshal(t, m.Run("liveapplyctl", "diff", "--json", v2), &diff)
	equal(t, "tmpfiles_changes", fmt.Sprint(diff.Changes), "["+changing+"]")
	requireSays(t, "liveapplyctl diff", m.Run("liveapplyctl", "diff", v2), []string{changing})
	apply(t, m, v2)
	equal(t, "/run/there", m.Read("/run/there"), "new")
	equal(t, "/run/kept", m.Read("/run/kept"), "old")
	for _, place := range []string{"/srv", "/opt", "/home", "/root", "/mnt", "/tmp"} {
		equal(t, place+"/more is there", m.Exists(place+"/more"), true)
	}
	equal(t, "what is for a boot is there", m.Exists("/srv/at-boot"), false)
	equal(t, "what a generator makes of what came", m.Run("systemctl", "show", "--value", "--property=LoadState", "lab-generated.service"), "loaded")
}

// What a live application cannot bring is told before and while it is live: another directory beside /usr, and what is mounted over. A whiteout is refused.
func TestWhatOnlyARebootBringsIsTold(t *testing.T) {
	t.Parallel()
	v1 := lab.Derive(t, product(t, nspawn.Trixie), func(tree *nspawn.Tree) { tree.Write("usr/lib/opt/file", "1\n", 0o644) })
	m := lab.Machine(t, v1, nspawn.Options{})
	m.Boot()
	makeTransient(m)
	m.Run("mount", "-t", "tmpfs", "lab", "/usr/lib/opt")
	v2 := derived(t, m, v1, func(tree *nspawn.Tree) {
		tree.Write("usr/lib/opt/file", "2\n", 0o644)
		tree.Write("extra/file", "2\n", 0o644)
	})
	var diff struct {
		Impact struct {
			RebootRequired []string `json:"reboot_required"`
		} `json:"impact"`
	}
	unmarshal(t, m.Run("liveapplyctl", "diff", "--json", v2), &diff)
	equal(t, "reboot_required", fmt.Sprint(diff.Impact.RebootRequired), "[/extra /usr/lib/opt]")
	apply(t, m, v2)
	equal(t, "reboot_required while it is live", fmt.Sprint(status(t, m).RebootRequired), "[/extra /usr/lib/opt]")
	requireSays(t, "liveapplyctl status", m.Run("liveapplyctl", "status"), []string{"/extra, /usr/lib/opt"})
	reset(t, m)

	whiteout := derived(t, m, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/new/.ostree-wh.gone", "", 0o644) })
	requireRefused(t, m, factsOf(t, m), refusal{whiteout, nil, []string{"whiteout, /usr/share/new/.ostree-wh.gone", "reboot into it"}})
}
