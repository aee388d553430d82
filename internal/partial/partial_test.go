package partial_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
	"github.com/liveapply/liveapply/internal/partial"
	"github.com/liveapply/liveapply/internal/rpmtest"
)

const database = "usr/lib/dpkg/"

// system is a tree with packages.
type system struct{ ostreetest.Spec }

// newSystem has, of each package, what its words name: "web 2 +lib files…" is version 2 of web, which depends on lib.
func newSystem(packages ...string) system {
	s := system{ostreetest.Spec{
		"bin": ostreetest.Link("usr/bin"), "lib": ostreetest.Link("usr/lib"),
		"usr/etc/passwd": ostreetest.File("root:x:0:0::/:/bin/sh\n"), "usr/etc/group": ostreetest.File("root:x:0:\n"),
	}}
	var status strings.Builder
	for _, line := range packages {
		words := strings.Fields(line)
		name, version := words[0], words[1]
		var depends, list []string
		for _, word := range words[2:] {
			if needed, ok := strings.CutPrefix(word, "+"); ok {
				depends = append(depends, needed)
				continue
			}
			list = append(list, "/"+strings.TrimSuffix(word, "/"))
			if !strings.HasSuffix(word, "/") {
				s.Spec[inTree(word)] = ostreetest.File(name + " " + version)
			}
		}
		fmt.Fprintf(&status, "Package: %s\nStatus: install ok installed\nArchitecture: all\nVersion: %s\n", name, version)
		if len(depends) > 0 {
			fmt.Fprintf(&status, "Depends: %s\n", strings.Join(depends, ", "))
		}
		status.WriteString("\n")
		s.Spec[database+"info/"+name+".list"] = ostreetest.File("/.\n" + strings.Join(list, "\n") + "\n")
	}
	s.Spec[database+"status"] = ostreetest.File(status.String())
	return s
}

func inTree(path string) string {
	if rest, ok := strings.CutPrefix(path, "etc/"); ok {
		return "usr/etc/" + rest
	}
	if strings.HasPrefix(path, "lib/") || strings.HasPrefix(path, "bin/") {
		return "usr/" + path
	}
	return path
}

// with adds what no package has.
func (s system) with(nodes ostreetest.Spec) system {
	maps.Copy(s.Spec, nodes)
	return s
}

// commit commits a tree to a repo.
func (s system) commit(t *testing.T, repo *ostree.Repo, branch string) *ostree.Commit {
	t.Helper()
	c, err := ostree.ParseChecksum(ostreetest.Commit(t, repo.Path(), branch, s.Write(t)))
	if err != nil {
		t.Fatal(err)
	}
	return read(t, repo, c)
}

func read(t *testing.T, repo *ostree.Repo, c ostree.Checksum) *ostree.Commit {
	t.Helper()
	commit, err := repo.Commit(c)
	if err != nil {
		t.Fatal(err)
	}
	return commit
}

func openRepo(t *testing.T) *ostree.Repo {
	t.Helper()
	repo, err := ostree.OpenRepo(ostreetest.Repo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { repo.Close() })
	return repo
}

// contents lists the files of a commit, which ostree reads, with what is in them.
func contents(t *testing.T, repo *ostree.Repo, c ostree.Checksum) map[string]string {
	t.Helper()
	if err := repo.WriteDrafts(); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for line := range strings.Lines(ostreetest.Run(t, "ostree", "--repo="+repo.Path(), "ls", "-R", c.String())) {
		words := strings.SplitN(strings.TrimSpace(line), "/", 2)
		switch path := words[1]; line[0] {
		case '-':
			files[path] = ostreetest.Run(t, "ostree", "--repo="+repo.Path(), "cat", c.String(), "/"+path)
		case 'd':
			files[path+"/"] = ""
		default:
			path, target, _ := strings.Cut(path, " -> ")
			files[path] = "-> " + target
		}
	}
	return files
}

var (
	booted = newSystem(
		"base 1 usr/bin/base etc/base.conf",
		"lib 1 usr/lib/lib.so usr/share/lib/ usr/share/lib/old",
		"web 1 +lib usr/bin/web usr/share/web/ usr/share/web/page lib/python/web.py",
		"gone 1 usr/share/gone/ usr/share/gone/file",
	).with(ostreetest.Spec{
		"usr/lib/python/__pycache__/web.cpython-313.pyc": ostreetest.File("compiled 1"),
		"usr/share/web/index.cache":                      ostreetest.File("index 1"), "usr/share/mime.cache": ostreetest.File("all 1"),
		"usr/share/gone/made": ostreetest.File("made"), "usr/lib/tmpfiles.d/image.conf": ostreetest.File("d /var/1"),
	})
	target = newSystem(
		"base 2 usr/bin/base etc/base.conf",
		"lib 2 usr/lib/lib.so usr/share/lib/ usr/share/lib/new",
		"web 2 +lib +extra usr/bin/web usr/share/web/ usr/share/web/page lib/python/web.py",
		"extra 1 usr/lib/extra/ usr/lib/extra/a etc/extra.conf usr/lib/systemd/system/extra.service",
		"other 1 usr/share/other/ usr/share/other/file",
	).with(ostreetest.Spec{
		"usr/lib/python/__pycache__/web.cpython-313.pyc": ostreetest.File("compiled 2"),
		"usr/share/web/index.cache":                      ostreetest.File("index 2"), "usr/share/mime.cache": ostreetest.File("all 2"),
		"usr/lib/extra/made": ostreetest.File("made"), "usr/share/other/made": ostreetest.File("made"),
		"usr/etc/systemd/system/multi-user.target.wants/extra.service": ostreetest.Link("/lib/systemd/system/extra.service"),
		"usr/etc/alternatives/x":        ostreetest.Link("../../usr/bin/web"),
		"usr/bin/x":                     ostreetest.Link("/etc/alternatives/x"),
		"usr/bin/y":                     ostreetest.Link("base"),
		"usr/lib/tmpfiles.d/image.conf": ostreetest.File("d /var/2"),
		"usr/etc/passwd":                ostreetest.File("root:x:0:0::/:/bin/sh\nextra:x:900:900::/:/bin/false\n"),
	})
)

func TestPackagesComeWithWhatTheyNeed(t *testing.T) {
	repo := openRepo(t)
	b, c := booted.commit(t, repo, "booted"), target.commit(t, repo, "target")
	for _, test := range []struct {
		name   string
		wanted partial.Wanted
		// as in the target, or in neither; all else is as booted
		target  []string
		changed map[string]string
		about   partial.About
	}{
		{
			"a package with a new dependency", partial.Wanted{Packages: []string{"web"}},
			[]string{
				"usr/bin/web", "usr/share/web/page", "usr/lib/python/web.py", "usr/lib/python/__pycache__/web.cpython-313.pyc",
				"usr/lib/extra/", "usr/lib/extra/a", "usr/lib/extra/made", "usr/etc/extra.conf", "usr/lib/systemd/", "usr/lib/systemd/system/",
				"usr/lib/systemd/system/extra.service", "usr/etc/systemd/", "usr/etc/systemd/system/", "usr/etc/systemd/system/multi-user.target.wants/",
				"usr/etc/systemd/system/multi-user.target.wants/extra.service", "usr/etc/alternatives/", "usr/etc/alternatives/x", "usr/bin/x",
				"usr/lib/tmpfiles.d/image.conf", "usr/etc/passwd", database + "info/web.list", database + "info/extra.list",
			},
			map[string]string{"web": "2", "extra": "1"},
			partial.About{Of: c.Checksum, Packages: []string{"extra 1 (all)", "web 2 (all)"}, Without: []string{}},
		},
		{
			"a package that is gone, by a pattern", partial.Wanted{Packages: []string{"g*"}},
			[]string{
				"usr/share/gone/", "usr/share/gone/file", "usr/share/gone/made", "usr/lib/tmpfiles.d/image.conf", "usr/etc/passwd", database + "info/gone.list",
			},
			map[string]string{"gone": ""},
			partial.About{Of: c.Checksum, Packages: []string{"the removal of gone 1 (all)"}, Without: []string{}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			drafted, err := partial.Draft(repo, b, c, []string{database}, test.wanted)
			if err != nil {
				t.Fatal(err)
			}
			again, err := partial.Draft(repo, b, c, []string{database}, test.wanted)
			if err != nil || again != drafted {
				t.Errorf("the same gives another commit: %v", err)
			}
			want, new := contents(t, repo, b.Checksum), contents(t, repo, c.Checksum)
			for _, path := range test.target {
				delete(want, path)
				if content, ok := new[path]; ok {
					want[path] = content
				}
			}
			got := contents(t, repo, drafted)
			checkStatus(t, got[database+"status"], want[database+"status"], test.changed)
			delete(got, database+"status")
			delete(want, database+"status")
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			about, err := partial.Of(read(t, repo, drafted))
			if err != nil || about == nil {
				t.Fatalf("it does not tell what it is: %v, %v", about, err)
			}
			if d := cmp.Diff(test.about, *about); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// checkStatus asks for a database that has other versions of the given packages; "" is none.
func checkStatus(t *testing.T, got, base string, changed map[string]string) {
	t.Helper()
	want := versions(base)
	for name, version := range changed {
		if want[name] = version; version == "" {
			delete(want, name)
		}
	}
	if d := cmp.Diff(want, versions(got)); d != "" {
		t.Errorf("packages, -want +got:\n%s", d)
	}
}

func versions(status string) map[string]string {
	found := map[string]string{}
	for stanza := range strings.SplitSeq(strings.TrimSpace(status), "\n\n") {
		lines := strings.Split(stanza, "\n")
		version := lines[slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, "Version: ") })]
		found[strings.TrimPrefix(lines[0], "Package: ")] = strings.TrimPrefix(version, "Version: ")
	}
	return found
}

// What is left out of the target is what would otherwise come out of it: leaving out all of the others is the same as taking what remains, but for what no
// package has.
func TestPackagesAreLeftOut(t *testing.T) {
	repo := openRepo(t)
	b, c := booted.commit(t, repo, "booted"), target.commit(t, repo, "target")
	drafted, err := partial.Draft(repo, b, c, []string{database}, partial.Wanted{Exclude: []string{"web", "gone", "other"}})
	if err != nil {
		t.Fatal(err)
	}
	old := contents(t, repo, b.Checksum)
	want := contents(t, repo, c.Checksum)
	for _, path := range []string{
		"usr/bin/web", "usr/share/web/page", "usr/lib/python/web.py", "usr/lib/python/__pycache__/web.cpython-313.pyc",
		"usr/share/gone/", "usr/share/gone/file", "usr/share/gone/made", database + "info/gone.list", database + "info/web.list",
		"usr/share/other/", "usr/share/other/file", "usr/share/other/made", database + "info/other.list", "usr/bin/x", "usr/etc/alternatives/x",
	} {
		delete(want, path)
		if content, ok := old[path]; ok {
			want[path] = content
		}
	}
	got := contents(t, repo, drafted)
	checkStatus(t, got[database+"status"], want[database+"status"], map[string]string{"web": "1", "gone": "1", "other": ""})
	delete(got, database+"status")
	delete(want, database+"status")
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	about, err := partial.Of(read(t, repo, drafted))
	if err != nil || about == nil || about.String() != "without other 1 (all), web 2 (all), the removal of gone 1 (all)" {
		t.Errorf("it is %v (%v)", about, err)
	}
}

func TestWholeCommitIsNotPartial(t *testing.T) {
	repo := openRepo(t)
	b, c := booted.commit(t, repo, "booted"), target.commit(t, repo, "target")
	if about, err := partial.Of(c); about != nil || err != nil {
		t.Errorf("it is %v (%v)", about, err)
	}
	left, err := partial.Draft(repo, b, b, nil, partial.Wanted{Exclude: []string{"web"}})
	if err != nil || left != b.Checksum {
		t.Errorf("what does not differ is left out of %v (%v)", left, err)
	}
	if _, err := partial.Draft(repo, b, b, nil, partial.Wanted{Packages: []string{"web"}}); err == nil || !strings.Contains(err.Error(), "nothing to apply") {
		t.Errorf("what does not differ is applied: %v", err)
	}
}

func TestAccountsThatClashAreRefused(t *testing.T) {
	repo := openRepo(t)
	mine := newSystem("base 1 usr/bin/base").with(ostreetest.Spec{"usr/etc/passwd": ostreetest.File("mine:x:900:900::/:/bin/sh\n")})
	b, c := mine.commit(t, repo, "booted"), target.commit(t, repo, "target")
	_, err := partial.Draft(repo, b, c, []string{database}, partial.Wanted{Packages: []string{"other"}})
	if err == nil || !strings.Contains(err.Error(), "900") {
		t.Errorf("error is %v", err)
	}
}

func TestFileInThePlaceOfADirectoryThatIsNeededIsRefused(t *testing.T) {
	repo := openRepo(t)
	b := newSystem("a 1 usr/share/x/ usr/share/x/a", "b 1 usr/share/x/ usr/share/x/b").commit(t, repo, "booted")
	c := newSystem("a 2 usr/share/x", "b 2 usr/share/b").commit(t, repo, "target")
	_, err := partial.Draft(repo, b, c, []string{database}, partial.Wanted{Packages: []string{"a"}})
	if err == nil || !strings.Contains(err.Error(), "/usr/share/x is a directory in one commit and a file in the other") {
		t.Errorf("error is %v", err)
	}
	both, err := partial.Draft(repo, b, c, []string{database}, partial.Wanted{Packages: []string{"a", "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := contents(t, repo, both); got["usr/share/x"] != "a 2" {
		t.Errorf("it has %v", got)
	}
}

// rpmSystem has the packages in its tree and in rpm's database.
func rpmSystem(t *testing.T, repo *ostree.Repo, branch string, nodes ostreetest.Spec, packages ...rpmtest.Package) *ostree.Commit {
	t.Helper()
	dir := rpmtest.Database(t, rpmtest.Build(t, packages...)...)
	tree := rpmtest.Tree(t, dir)
	maps.Copy(tree, nodes)
	tree["bin"] = ostreetest.Link("usr/bin")
	for _, p := range packages {
		for path, content := range p.Files {
			if name := inTree(strings.TrimPrefix(path, "/")); path != "/usr/share/rpm/rpmdb.sqlite" { // that is there
				tree[name] = ostreetest.File(content)
			}
		}
	}
	out := ostreetest.Run(t, "ostree", "--repo="+repo.Path(), "commit", "-b", branch, "--tree=dir="+tree.Write(t), rpmtest.List(t, dir))
	c, err := ostree.ParseChecksum(strings.TrimSpace(out))
	if err != nil {
		t.Fatal(err)
	}
	return read(t, repo, c)
}

// Of two systems of rpm-ostree, packages come with what they need by their relations and by paths of files. The list of packages is that of the
// mixture; rpm's own database is the booted one's, even if the package of rpm is taken, whose files it is one of.
func TestPackagesOfRPMComeWithWhatTheyNeed(t *testing.T) {
	repo := openRepo(t)
	accounts := func(more string) ostreetest.Spec {
		return ostreetest.Spec{
			"usr/etc/passwd": ostreetest.File("root:x:0:0::/:/bin/sh\n"), "usr/lib/passwd": ostreetest.File("bin:x:1:1::/:/bin/false\n" + more),
			"usr/share/indexed": ostreetest.File("all" + more),
		}
	}
	b := rpmSystem(t, repo, "booted", accounts(""),
		rpmtest.Package{Name: "base", EVR: "1-1", Files: map[string]string{"/usr/bin/base": "base 1"}},
		rpmtest.Package{Name: "web", EVR: "1:1-1", Head: []string{"Requires: base"}, Files: map[string]string{"/usr/bin/web": "web 1", "/etc/web.conf": "web 1"}},
		rpmtest.Package{Name: "rpm", EVR: "1-1", Head: []string{"Provides: rpm(api) = 1"}, Files: map[string]string{"/usr/bin/rpm": "rpm 1", "/usr/share/rpm/rpmdb.sqlite": ""}})
	c := rpmSystem(t, repo, "target", accounts("web:x:900:900::/:/bin/false\n"),
		rpmtest.Package{Name: "base", EVR: "2-1", Files: map[string]string{"/usr/bin/base": "base 2"}},
		rpmtest.Package{
			Name: "web", EVR: "1:2-1", Head: []string{"Requires: base", "Requires: /bin/tool", "Requires: (rpm(api) >= 2 with rpm(api) < 3)"},
			Files: map[string]string{"/usr/bin/web": "web 2", "/etc/web.conf": "web 2"},
		},
		rpmtest.Package{Name: "tool", EVR: "1-1", Files: map[string]string{"/usr/bin/tool": "tool 1"}},
		rpmtest.Package{Name: "rpm", EVR: "2-1", Head: []string{"Provides: rpm(api) = 2"}, Files: map[string]string{"/usr/bin/rpm": "rpm 2", "/usr/share/rpm/rpmdb.sqlite": ""}},
		rpmtest.Package{Name: "other", EVR: "1-1", Files: map[string]string{"/usr/bin/other": "other 1"}})
	for _, test := range []struct {
		name   string
		wanted partial.Wanted
		base   *ostree.Commit
		change map[string]string
		list   string
		about  partial.About
	}{
		{
			"one of them", partial.Wanted{Packages: []string{"web"}}, b,
			map[string]string{
				"usr/bin/web": "web 2", "usr/etc/web.conf": "web 2", "usr/bin/tool": "tool 1", "usr/bin/rpm": "rpm 2",
				"usr/lib/passwd": "bin:x:1:1::/:/bin/false\nweb:x:900:900::/:/bin/false\n",
			},
			"[('base', '0', '1', '1', 'noarch'), ('rpm', '0', '2', '1', 'noarch'), ('tool', '0', '1', '1', 'noarch'), ('web', '1', '2', '1', 'noarch')]",
			partial.About{Packages: []string{"rpm 2-1 (noarch)", "tool 1-1 (noarch)", "web 1:2-1 (noarch)"}, Without: []string{}},
		},
		{
			"all but one", partial.Wanted{Exclude: []string{"base"}}, c, map[string]string{"usr/bin/base": "base 1"},
			"[('base', '0', '1', '1', 'noarch'), ('other', '0', '1', '1', 'noarch'), ('rpm', '0', '2', '1', 'noarch'), ('tool', '0', '1', '1', 'noarch'), ('web', '1', '2', '1', 'noarch')]",
			partial.About{Packages: []string{}, Without: []string{"base 2-1 (noarch)"}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			drafted, err := partial.Draft(repo, b, c, nil, test.wanted)
			if err != nil {
				t.Fatal(err)
			}
			want := contents(t, repo, test.base.Checksum)
			maps.Copy(want, test.change)
			if d := cmp.Diff(want, contents(t, repo, drafted)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			list := ostreetest.Run(t, "ostree", "--repo="+repo.Path(), "show", "--print-metadata-key=rpmostree.rpmdb.pkglist", drafted.String())
			if d := cmp.Diff(test.list, strings.TrimSpace(list)); d != "" {
				t.Errorf("packages, -want +got:\n%s", d)
			}
			test.about.Of = c.Checksum
			about, err := partial.Of(read(t, repo, drafted))
			if err != nil || about == nil || !cmp.Equal(test.about, *about) {
				t.Errorf("it is %+v (%v)", about, err)
			}
		})
	}
}
