package pkgdb

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
	"github.com/liveapply/liveapply/internal/rpmtest"
)

// rpms reads a commit of a system with packages.
func (l *lab) rpms(rpms []string) *Database {
	l.Helper()
	dir := rpmtest.Database(l, rpms...)
	return l.read(l.commit(rpmtest.Tree(l, dir), rpmtest.List(l, dir)))
}

func TestFilesOfPackagesOfRPMAreThoseThatRPMLists(t *testing.T) {
	l := newLab(t)
	dir := rpmtest.Database(t, rpmtest.Build(t,
		rpmtest.Package{Name: "alpha", EVR: "1.0~rc1-2.fc42", Files: map[string]string{"/usr/bin/alpha": "", "/etc/alpha/conf": "", "/bin/linked": "", "/usr/share/al pha/a": ""}},
		rpmtest.Package{Name: "beta", EVR: "3:1-1", Head: []string{"Requires: alpha"}})...)
	tree := rpmtest.Tree(t, dir)
	tree["bin"] = ostreetest.Link("usr/bin")
	db := l.read(l.commit(tree, rpmtest.List(t, dir)))
	requireText(t, "packages", names(db.Packages), "alpha 1.0~rc1-2.fc42 noarch\nbeta 3:1-1 noarch")
	for _, p := range db.Packages {
		files, err := db.Files(p)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Split(strings.TrimSpace(ostreetest.Run(t, "rpm", "--dbpath="+dir, "-ql", p.Name)), "\n")
		for i, name := range want {
			name = strings.Replace(strings.TrimPrefix(name, "/"), "etc/", "usr/etc/", 1)
			want[i] = strings.Replace(name, "bin/linked", "usr/bin/linked", 1)
		}
		slices.Sort(want)
		slices.Sort(files)
		if p.Name == "beta" {
			want = nil
		}
		requireText(t, "files of "+p.Name, strings.Join(files, "\n"), strings.Join(want, "\n"))
	}
}

// Where the database is not needed, it is not read: neither it nor rpm has to be there.
func TestDatabaseOfRPMIsReadOnlyWhenPackagesAreSelected(t *testing.T) {
	l := newLab(t)
	tree := ostreetest.Spec{"usr/lib/sysimage/rpm/rpmdb.sqlite": ostreetest.File("no database")}
	a := l.read(l.commit(tree, pkglist("[('a','0','1','1','noarch')]")))
	b := l.read(l.commit(tree, pkglist("[('a','0','2','1','noarch')]")))
	requireText(t, "the difference", fmt.Sprint(Diff(a, b).Upgraded), "[{a 1-1 (noarch) a 2-1 (noarch)}]")
	_, err := Closure(b, a, []string{"a"})
	requireError(t, err, "rpm's database usr/lib/sysimage/rpm/rpmdb.sqlite", "rpm says")
	t.Setenv("PATH", t.TempDir())
	again := l.read(b.origin.commit)
	_, err = Closure(again, again, []string{"a"})
	requireError(t, err, b.origin.commit.Checksum.String(), "the program rpm, which reads it, is not there")
	none := l.read(l.noRPMDB())
	_, err = Closure(none, none, []string{"a"})
	requireError(t, err, "its tree has no rpmdb.sqlite in usr/share/rpm or usr/lib/sysimage/rpm")
}

// noRPMDB commits a list of packages without a database in the tree, without a program that PATH would name.
func (l *lab) noRPMDB() *ostree.Commit {
	l.Helper()
	l.Setenv("PATH", "/usr/bin:/bin")
	return l.commit(ostreetest.Spec{}, pkglist("[('a','0','1','1','noarch')]"))
}

func TestDamagedDatabaseOfRPMIsAnErrorThatNamesIt(t *testing.T) {
	l := newLab(t)
	dir := rpmtest.Database(t, rpmtest.Build(t,
		rpmtest.Package{Name: "a", EVR: "1-1", Files: map[string]string{"/usr/bin/a": ""}}, rpmtest.Package{Name: "b", EVR: "1-1", Head: []string{"Requires: a >= 1"}})...)
	tree, list := rpmtest.Tree(t, dir), rpmtest.List(t, dir)
	whole := tree["usr/share/rpm/rpmdb.sqlite"].Content
	i := strings.Index(whole, "/usr/bin/") // in the header of a package
	if i < 0 {
		t.Fatal("the database has no header of the package")
	}
	const other = "('c','0','1','1','noarch')"
	for _, c := range []struct{ name, content, list, want string }{
		{"empty", "", list, "rpm says"},
		{"no database", "other data, long enough", list, "rpm says"},
		{"its first half", whole[:len(whole)/2], list, "rpm says"},
		{"a damaged header", whole[:i-200] + strings.Repeat("\xff", 300) + whole[i+100:], list, "rpm says"},
		{"a package more in the list", whole, strings.TrimSuffix(list, "]") + "," + other + "]", "it does not have c 1-1 (noarch), which rpmostree.rpmdb.pkglist has"},
		{"a package less in the list", whole, pkglist("[('a','0','1','1','noarch')]"), "it has b 1-1 (noarch), which rpmostree.rpmdb.pkglist does not have"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree["usr/share/rpm/rpmdb.sqlite"] = ostreetest.File(c.content)
			db := l.read(l.commit(tree, c.list))
			_, err := Closure(db, db, []string{"a"})
			requireError(t, err, "rpm's database usr/share/rpm/rpmdb.sqlite", c.want)
		})
	}
}

func TestDatabaseOfRPMThatIsTooLargeIsRefused(t *testing.T) {
	l := newLab(t)
	root := t.TempDir()
	name := filepath.Join(root, rpmdbs[0], rpmdbFile)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("much"), 0o644); err != nil {
		t.Fatal(err)
	}
	commit := l.commitDir(root, pkglist("[('a','0','1','1','noarch')]"))
	entry, err := l.repo.Lookup(commit.Root, rpmdbs[0]+"/"+rpmdbFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(l.path, l.repo.FilePath(entry.Checksum)), maxRPMDB+1); err != nil {
		t.Fatal(err)
	}
	db := l.read(commit)
	_, err = Closure(db, db, []string{"a"})
	requireError(t, err, "536870913 bytes, more than the 536870912 that can be read")

	_, err = readRPMs(strings.NewReader(strings.Repeat("F\t/usr\n", 10) + "x"))
	requireError(t, err, `rpm prints "F\t/usr"`)
	endless := &repeated{line: "F\t" + strings.Repeat("long", 1000) + "\n", next: "P\ta\t0\t1\t1\tnoarch\n"}
	_, err = readRPMs(endless)
	requireError(t, err, "more than the 268435456 bytes that can be read are printed of it")
}

// repeated reads as one line, and then another one for ever.
type repeated struct{ line, next string }

func (r *repeated) Read(p []byte) (int, error) {
	if r.next == "" {
		r.next = r.line
	}
	n := copy(p, r.next)
	r.next = r.next[n:]
	return n, nil
}

// installedRPMs makes a database of "name version-release [arch];tag: relation;…", where tags are those of spec files, and "file: path".
func installedRPMs(t testing.TB, lines ...string) *Database {
	t.Helper()
	db := &Database{Format: RPM, Source: "a test", origin: &origin{}}
	known := map[Package]control{}
	db.origin.rpm = func() (map[Package]control, error) { return known, nil }
	db.origin.renames = func() (renames, error) { return renames{links: map[string]string{"bin": "usr/bin"}}, nil }
	for _, line := range lines {
		fields := strings.Split(line, ";")
		words := append(strings.Fields(fields[0]), "x86_64")
		db.Packages = append(db.Packages, Package{Name: words[0], Version: words[1], Arch: words[2]})
		var c control
		for _, field := range fields[1:] {
			tag, value, _ := strings.Cut(field, ": ")
			into := map[string]*string{"Requires": &c.depends, "Provides": &c.provides, "Conflicts": &c.conflictsWith, "Obsoletes": &c.obsoletes, "file": &c.files}[tag]
			*into += value + "\n"
		}
		known[db.Packages[len(db.Packages)-1]] = c
	}
	if err := db.sortPackages(); err != nil {
		t.Fatal(err)
	}
	return db
}

func TestClosureOfPackagesOfRPM(t *testing.T) {
	for _, c := range []struct {
		name         string
		live, target []string
		names        string
		want         string // as shortly has it, or the error
	}{
		{"what it needs", nil, []string{"a 1-1;Requires: b;Requires: c >= 1", "b 1-1 noarch;Requires: d", "c 1-1", "d 1-1", "e 1-1"}, "a",
			"a 1-1:x86_64, b 1-1:noarch, c 1-1:x86_64, d 1-1:x86_64"},
		{"features of rpm", nil, []string{"a 1-1;Requires: rpmlib(PayloadIsZstd) <= 5.4.18-1"}, "a", "a 1-1:x86_64"},
		{"a library", []string{"c 1-1;Provides: libc.so.6()(64bit)"}, []string{"a 1-1;Requires: libc.so.6(GLIBC_2.38)(64bit)", "c 2-1;Provides: libc.so.6()(64bit);Provides: libc.so.6(GLIBC_2.38)(64bit)"},
			"a", "a 1-1:x86_64, c 2-1:x86_64 -c 1-1:x86_64"},
		{"any release will do", []string{"b 2-5"}, []string{"a 1-1;Requires: b = 2", "b 2-6"}, "a", "a 1-1:x86_64"},
		{"a file", []string{"x 1-1"}, []string{"a 1-1;Requires: /bin/sh", "sh 1-1;file: /usr/bin/bash;file: /usr/bin/sh", "x 1-1"}, "a", "a 1-1:x86_64, sh 1-1:x86_64"},
		{"a file that live has", []string{"sh 1-1;file: /bin/sh"}, []string{"a 1-1;Requires: /usr/bin/sh", "sh 2-1;file: /usr/bin/sh"}, "a", "a 1-1:x86_64"},
		{"a file that goes", []string{"b 1-1;Requires: /usr/bin/x", "a 1-1;file: /usr/bin/x"}, []string{"a 2-1", "b 2-1"}, "a",
			"b 1-1 (x86_64) stays, and needs /usr/bin/x: select b as well"},
		{"either", nil, []string{"a 1-1;Requires: (x or b)", "b 1-1"}, "a", "a 1-1:x86_64, b 1-1:x86_64"},
		{"both", []string{"b 1-1"}, []string{"a 1-1;Requires: (b and c >= 2)", "b 2-1", "c 2-1"}, "a", "a 1-1:x86_64, c 2-1:x86_64"},
		{"one in a range", []string{"b 1-1;Provides: crate(x) = 0.9"}, []string{"a 1-1;Requires: (crate(x) >= 1 with crate(x) < 2~)", "b 2-1;Provides: crate(x) = 2.1", "b1 1-1;Provides: crate(x) = 1.5"}, "a",
			"a 1-1:x86_64, b1 1-1:x86_64"},
		{"one of two sets", nil, []string{"a 1-1;Requires: (v with (b or c))", "b 1-1", "c 1-1;Provides: v"}, "a", "a 1-1:x86_64, c 1-1:x86_64"},
		{"but not that", nil, []string{"a 1-1;Requires: (v without b)", "b 1-1;Provides: v", "c 1-1;Provides: v"}, "a", "a 1-1:x86_64, c 1-1:x86_64"},
		{"if that is there, which it is not", nil, []string{"a 1-1;Requires: (b if c)", "b 1-1"}, "a", "a 1-1:x86_64"},
		{"if that is there", []string{"c 1-1"}, []string{"a 1-1;Requires: (b if c)", "b 1-1", "c 1-1"}, "a", "a 1-1:x86_64, b 1-1:x86_64"},
		{"if that comes", nil, []string{"a 1-1;Requires: (b if c);Requires: d", "b 1-1", "c 1-1", "d 1-1;Requires: c"}, "a",
			"a 1-1:x86_64, b 1-1:x86_64, c 1-1:x86_64, d 1-1:x86_64"},
		{"else something", nil, []string{"a 1-1;Requires: (b if c else (d or e))", "b 1-1", "e 1-1"}, "a", "a 1-1:x86_64, e 1-1:x86_64"},
		{"what stays needs more if it comes", []string{"b 1-1;Requires: (c if a)"}, []string{"a 1-1", "b 1-1;Requires: (c if a)", "c 1-1"}, "a",
			"b 1-1 (x86_64) stays, and needs (c if a)"},
		{"what is obsolete goes", []string{"old 1-1", "x 1-1"}, []string{"a 1-1;Obsoletes: old < 2;Provides: old = 2", "x 1-1"}, "a", "a 1-1:x86_64 -old 1-1:x86_64"},
		{"and is needed", []string{"old 1-1", "x 1-1;Requires: old"}, []string{"a 1-1;Obsoletes: old < 2", "x 2-1"}, "a", "x 1-1 (x86_64) stays, and needs old: select x as well"},
		{"not obsolete in that version", []string{"old 2-1"}, []string{"a 1-1;Obsoletes: old < 2", "old 2-1"}, "a", "a 1-1:x86_64"},
		{"obsolete for what stays", []string{"new 1-1;Obsoletes: a"}, []string{"a 1-1"}, "a", "new 1-1 (x86_64) and a 1-1 (x86_64) must not be together (Obsoletes: a of new)"},
		{"what provides it is not obsolete", []string{"new 1-1;Obsoletes: v"}, []string{"a 1-1;Provides: v", "new 1-1;Obsoletes: v"}, "a", "a 1-1:x86_64"},
		{"a conflict", []string{"b 1-1"}, []string{"a 1-1;Conflicts: b < 2", "b 2-1"}, "a", "a 1-1 (x86_64) and b 1-1 (x86_64) must not be together (Conflicts: b < 2 of a): select b as well"},
		{"a conflict with any version", []string{"b 1-1;Provides: v"}, []string{"a 1-1;Conflicts: v < 2"}, "a", "must not be together (Conflicts: v < 2 of a)"},
		{"a conflict with a file", []string{"b 1-1;file: /usr/bin/x"}, []string{"a 1-1;Conflicts: /bin/x", "b 2-1"}, "a", "must not be together (Conflicts: /bin/x of a)"},
		{"a conflict unless", []string{"b 1-1"}, []string{"a 1-1;Conflicts: (b unless c)", "c 1-1"}, "a", "a 1-1 (x86_64) must not be beside what it makes (Conflicts: (b unless c) of a)"},
		{"no conflict unless", []string{"b 1-1", "c 1-1"}, []string{"a 1-1;Conflicts: (b unless c)"}, "a", "a 1-1:x86_64"},
		{"for two architectures", []string{"a 1-1", "a 1-1 i686"}, []string{"a 2-1", "a 2-1 i686"}, "a:x86_64", "a 2-1:i686, a 2-1:x86_64 -a 1-1:i686 -a 1-1:x86_64"},
		{"for one of two architectures", []string{"a 1-1"}, []string{"a 1-1", "a 1-1 i686"}, "a", "a 1-1:i686"},
		{"for another architecture", []string{"a 1-1"}, []string{"a 2-1 noarch"}, "a", "a 2-1:noarch -a 1-1:x86_64"},
		{"several versions", []string{"kernel 6.1-1", "kernel 6.2-1"}, []string{"kernel 6.2-1", "kernel 6.3-1"}, "kernel", "kernel 6.3-1:x86_64 -kernel 6.1-1:x86_64"},
		{"not there", nil, []string{"a 1-1;Requires: (b or c)"}, "a", "a 1-1 (x86_64) cannot be selected: it needs (b or c), which the target does not have"},
		{"nothing that is known", nil, []string{"a 1-1;Requires: (b xor c)"}, "a", `package a 1-1 (x86_64): "(b xor c)" is no relation to a package`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := Closure(installedRPMs(t, c.target...), installedRPMs(t, c.live...), strings.Fields(c.names))
			if err != nil {
				requireError(t, err, c.want)
				return
			}
			requireText(t, "selection", shortly(s), c.want)
		})
	}
}

// rpmWorld draws packages that need each other in all of the ways that rpm has.
func rpmWorld(t *rapid.T) []rpmtest.Package {
	pick := func(from ...string) string { return rapid.SampledFrom(from).Draw(t, "one") }
	version := func() string { return pick("1", "2", "3", "2-1", "2-2", "1:1", "0:2") }
	relation := func() string {
		name := pick("a", "b", "c", "d", "e", "f", "a", "b", "c", "v", "u", "/usr/share/a", "/usr/share/w")
		if name == "u" || name[0] == '/' {
			return name // no package says which version of it that is
		}
		return strings.TrimSpace(name + pick("", "", " = "+version(), " < "+version(), " <= "+version(), " > "+version(), " >= "+version()))
	}
	one := func() string { return pick(relation(), "("+relation()+" or "+relation()+")") }
	needed := func() string {
		return pick(relation(), relation(), "("+relation()+" or "+relation()+")", "("+one()+" and "+one()+")", "("+one()+" if "+one()+")",
			"("+relation()+" if "+relation()+" else "+relation()+")", "("+one()+" with "+one()+")", "("+one()+" without "+relation()+")")
	}
	refused := func() string {
		return pick(relation(), relation(), "("+relation()+" and "+relation()+")", "("+relation()+" with "+relation()+")", "("+relation()+" unless "+relation()+")",
			"("+relation()+" unless "+relation()+" else "+relation()+")")
	}
	var specs []rpmtest.Package
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		if rapid.IntRange(0, 4).Draw(t, "missing") == 0 {
			continue
		}
		s := rpmtest.Package{Name: name, EVR: pick("1-1", "2-1", "2-2", "3-1", "1:1-1"), Files: map[string]string{"/usr/share/" + name: ""}}
		for range rapid.IntRange(0, 3).Draw(t, "needs") {
			s.Head = append(s.Head, "Requires: "+needed())
		}
		s.Head = append(s.Head, pick("", "", "Conflicts: "+refused()), pick("", "", "", "Obsoletes: "+pick("a", "b < 2", "c <= 1:1", "v", "x")),
			pick("", "", "Provides: v = "+version(), "Provides: v < 2", "Provides: u"))
		if pick("", "", "w") != "" {
			s.Files["/usr/share/w"] = "" // packages may share it, as it is the same
		}
		specs = append(specs, s)
	}
	return specs
}

// complaints is what rpm says to the installation of all packages at once on a system without any.
func complaints(t testing.TB, rpms []string) string {
	t.Helper()
	args := append([]string{"--dbpath=" + t.TempDir(), "--force-debian", "--ignorearch", "--nosignature", "--test", "--install"}, rpms...)
	out, err := exec.Command("rpm", args...).CombinedOutput()
	if err == nil {
		return ""
	}
	return string(out)
}

// What is missing for packages is what rpm says that is missing.
func TestNeedsHoldWhereTheyDoForRPM(t *testing.T) {
	l := newLab(t)
	checked, missing := 0, 0
	for seed := range 12 {
		world := rapid.Custom(rpmWorld).Example(seed)
		for i := range world {
			world[i].Head = slices.DeleteFunc(world[i].Head, func(line string) bool {
				return strings.HasPrefix(line, "Conflicts") || strings.HasPrefix(line, "Obsoletes")
			})
		}
		rpms := rpmtest.Build(t, world...)
		if len(rpms) == 0 {
			continue
		}
		var want, got []string
		for line := range strings.Lines(complaints(t, rpms)) {
			if need, by, ok := strings.Cut(strings.TrimSpace(line), " is needed by "); ok {
				want = append(want, need+" is needed by "+by)
			}
		}
		g, err := newGraph(l.rpms(nil), l.rpms(rpms))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range g.nodes {
			for _, d := range n.needs {
				checked++
				if !g.holds(n, d, inWanted) {
					p := n.nevra()
					got = append(got, fmt.Sprintf("%s is needed by %s-%s:%s-%s.%s", d, p[0], p[1], p[2], p[3], p[4]))
				}
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		missing += len(want)
		if diff := cmp.Diff(slices.Compact(want), slices.Compact(got)); diff != "" {
			t.Errorf("%+v (-rpm +here):\n%s", world, diff)
		}
	}
	if checked < 50 || missing < 10 || missing == checked {
		t.Errorf("%d needs were checked, of which %d do not hold", checked, missing)
	}
}

// soundRPMs takes out of packages what does not hold among them.
func (l *lab) soundRPMs(world []rpmtest.Package) []rpmtest.Package {
	l.Helper()
	lines := make([]string, len(world))
	for i, s := range world {
		fields := slices.DeleteFunc(slices.Clone(s.Head), func(line string) bool { return line == "" })
		for file := range s.Files {
			fields = append(fields, "file: "+file)
		}
		lines[i] = s.Name + " " + s.EVR + " noarch;" + strings.Join(fields, ";")
	}
	g, err := newGraph(installedRPMs(l), installedRPMs(l, lines...))
	if err != nil {
		l.Fatal(err)
	}
	for i, n := range g.nodes {
		var head []string
		for _, d := range n.needs {
			if g.holds(n, d, inWanted) {
				head = append(head, "Requires: "+d.String())
			}
		}
		for _, r := range n.refuses {
			hit := (r.op == opAnd || r.op == opUnless) && g.holds(n, r.need, inWanted)
			if r.op == opNone || r.op == opWith {
				for m := range g.concerned(r) {
					hit = hit || m != n
				}
			}
			if !hit {
				head = append(head, r.field+": "+r.String())
			}
		}
		for _, line := range world[i].Head {
			if strings.HasPrefix(line, "Provides") {
				head = append(head, line)
			}
		}
		world[i].Head = head
	}
	return world
}

// What a selection makes of live is what rpm would install as it is, if live and target are.
func TestMixtureIsOneThatRPMFindsNothingWrongWith(t *testing.T) {
	l := newLab(t)
	mixtures, refused := 0, 0
	for seed := range 24 {
		live, target := l.soundRPMs(rapid.Custom(rpmWorld).Example(2*seed)), l.soundRPMs(rapid.Custom(rpmWorld).Example(2*seed+1))
		if len(live) == 0 || len(target) == 0 {
			continue
		}
		liveRPMs, targetRPMs := rpmtest.Build(t, live...), rpmtest.Build(t, target...)
		for world, rpms := range map[string][]string{fmt.Sprintf("%+v", live): liveRPMs, fmt.Sprintf("%+v", target): targetRPMs} {
			if wrong := complaints(t, rpms); wrong != "" {
				t.Fatalf("%s is not sound: %s", world, wrong)
			}
		}
		liveDB, targetDB := l.rpms(liveRPMs), l.rpms(targetRPMs)
		for i, p := range targetDB.Packages {
			s, err := Closure(targetDB, liveDB, []string{p.Name})
			if err != nil {
				refused++
				continue
			}
			if len(s.Taken) == 0 {
				continue
			}
			mixtures++
			var mix []string
			for i, p := range liveDB.Packages {
				if !slices.Contains(s.Replaced, p) {
					mix = append(mix, liveRPMs[i])
				}
			}
			for i, p := range targetDB.Packages {
				if slices.Contains(s.Taken, p) {
					mix = append(mix, targetRPMs[i])
				}
			}
			if !slices.Contains(mix, targetRPMs[i]) && !slices.Contains(liveDB.Packages, p) {
				t.Errorf("%s is not in its selection: %s", p, shortly(s))
			}
			if wrong := complaints(t, mix); wrong != "" {
				t.Errorf("%s makes of\n%+v and\n%+v\n a mixture that rpm does not like: %s", p, live, target, wrong)
			}
		}
	}
	t.Logf("%d mixtures, %d refused", mixtures, refused)
	if mixtures < 40 || refused < 10 {
		t.Errorf("only %d mixtures were checked, and %d refused", mixtures, refused)
	}
}
