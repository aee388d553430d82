package pkgdb

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
)

// lab is a repo for tests.
type lab struct {
	testing.TB
	path string
	repo *ostree.Repo
}

func newLab(t testing.TB) *lab {
	t.Helper()
	path := ostreetest.Repo(t)
	repo, err := ostree.OpenRepo(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { repo.Close() })
	return &lab{TB: t, path: path, repo: repo}
}

// commit commits a tree, with arguments for ostree commit.
func (l *lab) commit(tree ostreetest.Spec, args ...string) *ostree.Commit {
	l.Helper()
	return l.commitDir(tree.Write(l), args...)
}

func (l *lab) commitDir(dir string, args ...string) *ostree.Commit {
	l.Helper()
	args = append([]string{"--repo=" + l.path, "commit", "-b", "test", "--tree=dir=" + dir}, args...)
	c, err := ostree.ParseChecksum(strings.TrimSpace(ostreetest.Run(l, "ostree", args...)))
	if err != nil {
		l.Fatal(err)
	}
	commit, err := l.repo.Commit(c)
	if err != nil {
		l.Fatal(err)
	}
	return commit
}

// packages is the argument for what rpm-ostree writes into a commit.
func pkglist(text string) string { return "--add-metadata=" + pkglistKey + "=" + text }

func (l *lab) read(commit *ostree.Commit, places ...string) *Database {
	l.Helper()
	db, err := Read(l.repo, commit, places)
	if err != nil {
		l.Fatal(err)
	}
	return db
}

// stanzas returns a status file with packages that are installed: "name version [field: value]…", one to a line, amd64 unless a field says else.
func stanzas(lines ...string) string {
	var status strings.Builder
	for _, line := range lines {
		head, fields, _ := strings.Cut(line, ";")
		words := strings.Fields(head)
		fmt.Fprintf(&status, "Package: %s\nStatus: install ok installed\nVersion: %s\n", words[0], words[1])
		if !strings.Contains(fields, "Architecture:") {
			status.WriteString("Architecture: amd64\n")
		}
		for field := range strings.SplitSeq(fields, ";") {
			if field != "" {
				fmt.Fprintln(&status, strings.TrimSpace(field))
			}
		}
		status.WriteString("Description: a test\n with a longer text\n .\n and: no field\n\n")
	}
	return status.String()
}

func status(lines ...string) ostreetest.Node { return ostreetest.File(stanzas(lines...)) }

// names returns "name version arch" of packages, one to a line.
func names(packages []Package) string {
	var text strings.Builder
	for _, p := range packages {
		fmt.Fprintln(&text, p.Name, p.Version, p.Arch)
	}
	return strings.TrimSpace(text.String())
}

func requireText(t testing.TB, what, got, want string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestPackagesOfThisMachineAreThoseThatDpkgQueryLists(t *testing.T) {
	l := newLab(t)
	content, err := os.ReadFile("/var/lib/dpkg/status")
	if err != nil {
		t.Fatal(err)
	}
	tree := ostreetest.Spec{"usr/lib/sysimage/dpkg/status": ostreetest.File(string(content))}
	db := l.read(l.commit(tree))
	var want []string
	admin := filepath.Join(tree.Write(t), "usr/lib/sysimage/dpkg") // something may be installed meanwhile
	out := ostreetest.Run(t, "dpkg-query", "--admindir="+admin, "-W", "-f", "${db:Status-Status} ${Package} ${Version} ${Architecture}\n")
	for line := range strings.Lines(out) {
		state, p, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !slices.Contains([]string{"not-installed", "config-files", "half-installed"}, state) { // of these, no files are there, or not all
			want = append(want, p)
		}
	}
	got := strings.Split(names(db.Packages), "\n")
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" || len(got) < 100 {
		t.Errorf("%d packages (-want +got):\n%s", len(got), diff)
	}
}

func TestDatabaseIsFoundWhereBuildersLeaveIt(t *testing.T) {
	l := newLab(t)
	for _, c := range []struct {
		name   string
		tree   ostreetest.Spec
		places []string
		source string
		want   string
	}{
		{name: "none", tree: ostreetest.Spec{"usr/lib/dpkg/methods/x": ostreetest.File("")}},
		{
			name: "in /var", source: "var/lib/dpkg/status", want: "v 1 amd64",
			tree: ostreetest.Spec{"var/lib/dpkg/status": status("v 1")},
		},
		{
			name: "moved to /usr, with a link in its place", source: "usr/share/dpkg/database/status", want: "u 1 amd64",
			tree: ostreetest.Spec{"usr/share/dpkg/database/status": status("u 1"), "var/lib/dpkg": ostreetest.Link("../../usr/share/dpkg/database")},
		},
		{
			name: "in /usr, and the one that was in the image before in /var", source: "usr/lib/sysimage/dpkg/status", want: "u 2 amd64",
			tree: ostreetest.Spec{"usr/lib/sysimage/dpkg/status": status("u 2"), "var/lib/dpkg/status": status("u 1")},
		},
		{
			name: "a link where the status file should be", source: "usr/share/dpkg/status", want: "u 1 amd64",
			tree: ostreetest.Spec{"usr/share/dpkg/status": status("u 1"), "usr/lib/dpkg/status": ostreetest.Link("../../share/dpkg/status")},
		},
		{
			name: "a directory that is configured", places: []string{"/nowhere", "/usr/db/"}, source: "usr/db/status", want: "c 1 amd64",
			tree: ostreetest.Spec{"usr/db/status": status("c 1"), "usr/lib/dpkg/status": status("u 1")},
		},
		{
			name: "a file that is configured", places: []string{"usr/db/../packages"}, source: "usr/packages", want: "c 1 amd64",
			tree: ostreetest.Spec{"usr/packages": status("c 1"), "usr/lib/dpkg/status": status("u 1")},
		},
		{
			name: "a file for each package", source: "var/lib/dpkg/status.d", want: "base 1 all\nlibc 2 amd64",
			tree: ostreetest.Spec{
				"var/lib/dpkg/status.d/base":         ostreetest.File("Package: base\nVersion: 1\nArchitecture: all\n"),
				"var/lib/dpkg/status.d/libc":         ostreetest.File("Package: libc\nVersion: 2\nArchitecture: amd64"),
				"var/lib/dpkg/status.d/libc.md5sums": ostreetest.File("0123  usr/lib/libc.so\n"),
			},
		},
		{
			name: "a file for each package, and later dpkg's own", source: "usr/lib/dpkg/status", want: "base 1 amd64\nlibc 3 amd64",
			tree: ostreetest.Spec{
				"usr/lib/dpkg/status":        status("libc 3"),
				"usr/lib/dpkg/status.d/base": ostreetest.File("Package: base\nVersion: 1\nArchitecture: amd64\n"),
				"usr/lib/dpkg/status.d/libc": ostreetest.File("Package: libc\nVersion: 2\nArchitecture: amd64\n"),
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			db := l.read(l.commit(c.tree), c.places...)
			requireText(t, "packages", names(db.Packages), c.want)
			requireText(t, "source", db.Source, c.source)
			if wantFormat := map[bool]Format{true: Dpkg, false: None}[c.source != ""]; db.Format != wantFormat {
				t.Errorf("format is %q, want %q", db.Format, wantFormat)
			}
		})
	}
}

func TestPackagesWhoseFilesAreInTheTreeAreThere(t *testing.T) {
	l := newLab(t)
	var text strings.Builder
	for _, state := range []string{
		"not-installed", "config-files", "half-installed", "unpacked", "half-configured", "triggers-awaited", "triggers-pending", "installed",
	} {
		fmt.Fprintf(&text, "Package: p-%s\nStatus: hold ok %s\nVersion: 1\nArchitecture: all\n\n", state, state)
	}
	text.WriteString("Package: never\nStatus: purge ok not-installed\n\n")
	db := l.read(l.commit(ostreetest.Spec{"usr/lib/dpkg/status": ostreetest.File(text.String())}))
	requireText(t, "packages", names(db.Packages),
		"p-half-configured 1 all\np-installed 1 all\np-triggers-awaited 1 all\np-triggers-pending 1 all\np-unpacked 1 all")
}

func TestPackagesOfRPMOSTreeComeFromTheMetadata(t *testing.T) {
	l := newLab(t)
	tree := ostreetest.Spec{"usr/lib/dpkg/status": status("dpkg 1")}
	db := l.read(l.commit(tree, pkglist(`[('zlib','0','1.3','1.fc42','x86_64'),('bind','32','9.18','2.fc42','x86_64'),('bind','32','9.18','2.fc42','i686'),
		('kernel','0','6.1','1','x86_64'),('kernel','0','6.2','1','x86_64')]`), "--add-metadata=rpmostree.packages=['bind']", "--add-metadata=rpmostree.clientlayer=true"))
	requireText(t, "packages", names(db.Packages),
		"bind 32:9.18-2.fc42 i686\nbind 32:9.18-2.fc42 x86_64\nkernel 6.1-1 x86_64\nkernel 6.2-1 x86_64\nzlib 1.3-1.fc42 x86_64")
	if db.Format != RPM || db.Source != pkglistKey {
		t.Errorf("format %q from %q", db.Format, db.Source)
	}
}

func TestDamagedDatabaseIsAnErrorThatNamesIt(t *testing.T) {
	l := newLab(t)
	for text, want := range map[string]string{
		"no field\n": `line 1: "no field" is no field`,
		"Package: a\nStatus: install ok installed\nArchitecture: all\n": "line 3: a package is named \"a\" and has version \"\"",
		"Package: a\nStatus: install ok installed\nVersion: 1\n":        `package "a" has no architecture`,
		"Package: a\nStatus: installed\nVersion: 1\n":                   `the status "installed", which is not three words`,
		"Package: a\nStatus: install ok here\nVersion: 1\n":             `the state "here", which is unknown`,
		"Package: a\nVersion: 1\nVersion: 2\n":                          "line 3: a second field Version",
		"Status: install ok installed\nVersion: 1\n":                    "names no package",
		" continued\n":                      "continues no field",
		"Package: a\n b\n":                  "continues a field of one line",
		stanzas("a 1", "a 2", "a\x1b[2J 1"): "not only of ASCII characters that show",
		stanzas("b 1", "a 2", "b 1"):        "it has the package b 1 (amd64) twice",
		stanzas("a 1")[:20]:                 "which is not three words",
	} {
		_, err := Read(l.repo, l.commit(ostreetest.Spec{"usr/lib/dpkg/status": ostreetest.File(text)}), nil)
		requireError(t, err, "usr/lib/dpkg/status is damaged", want)
	}
	for text, want := range map[string]string{
		"['a','b']":                      `it has type "as"`,
		"[('a','0','','1','noarch')]":    `version "" and release "1"`,
		"[('a b','0','1','1','noarch')]": "not only of ASCII characters",
	} {
		_, err := Read(l.repo, l.commit(ostreetest.Spec{}, pkglist(text)), nil)
		requireError(t, err, pkglistKey+" is damaged", want)
	}
}

func requireError(t testing.TB, err error, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %q, want %q", err, want)
		}
	}
}

func TestDatabaseWhoseObjectsAreMissingIsNotNone(t *testing.T) {
	l := newLab(t)
	commit := l.commit(ostreetest.Spec{"usr/lib/dpkg/status": status("a 1")})
	for _, name := range []string{"usr/lib/dpkg/status", "usr/lib/dpkg", "usr"} {
		entry, err := l.repo.Lookup(commit.Root, name)
		if err != nil {
			t.Fatal(err)
		}
		hex := entry.Checksum.String()
		suffix := map[ostree.Kind]string{ostree.KindFile: ".file", ostree.KindDirectory: ".dirtree"}[entry.Kind]
		if err := os.Remove(l.path + "/objects/" + hex[:2] + "/" + hex[2:] + suffix); err != nil {
			t.Fatal(err)
		}
		_, err = Read(l.repo, commit, nil)
		requireError(t, err, hex)
	}
}

func TestDatabaseThatTwoCommitsShareIsReadOnce(t *testing.T) {
	l := newLab(t)
	old := l.commit(ostreetest.Spec{"usr/lib/dpkg/status": status("a 1"), "usr/x": ostreetest.File("1")})
	new := l.commit(ostreetest.Spec{"usr/lib/sysimage/dpkg/status": status("a 1"), "usr/x": ostreetest.File("2")})
	oldDB, newDB, err := ReadBoth(l.repo, old, new, nil)
	if err != nil {
		t.Fatal(err)
	}
	if &oldDB.Packages[0] != &newDB.Packages[0] {
		t.Error("two lists were read")
	}
	requireText(t, "the other's place", newDB.Source, "usr/lib/sysimage/dpkg/status")
	if d := Diff(oldDB, newDB); d.Format != Dpkg || !d.Empty() {
		t.Errorf("they differ: %+v", d)
	}
	other := l.commit(ostreetest.Spec{"usr/lib/dpkg/status": status("a 2")})
	if oldDB, newDB, err = ReadBoth(l.repo, old, other, nil); err != nil {
		t.Fatal(err)
	}
	if d := Diff(oldDB, newDB); len(d.Upgraded) != 1 {
		t.Errorf("they do not differ: %+v", d)
	}
}

func BenchmarkReadStatusOfThisMachine(b *testing.B) {
	content, err := os.ReadFile("/var/lib/dpkg/status")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		db := &Database{}
		if err := db.parseStatus(string(content), false); err != nil {
			b.Fatal(err)
		}
	}
}
