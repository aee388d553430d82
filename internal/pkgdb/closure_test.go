package pkgdb

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// installed makes a database of lines as stanzas takes them.
func installed(t testing.TB, lines ...string) *Database {
	t.Helper()
	db := &Database{Format: Dpkg, Source: "a test"}
	if err := db.parseStatus(stanzas(lines...), false); err != nil {
		t.Fatal(err)
	}
	if err := db.sortPackages(); err != nil {
		t.Fatal(err)
	}
	return db
}

func TestClosureTakesWhatIsNeededAndNothingElse(t *testing.T) {
	for _, c := range []struct {
		name         string
		live, target []string
		names        string
		want         string // taken, in the order of their names; "-" before what is replaced
	}{
		{"nothing differs", []string{"a 1"}, []string{"a 1"}, "a", ""},
		{"a new package", nil, []string{"a 1", "b 1"}, "a", "a 1"},
		{"a newer one", []string{"a 1", "b 1"}, []string{"a 2", "b 2"}, "a", "a 2 -a 1"},
		{"what it needs", nil, []string{"a 1;Depends: b, c", "b 1;Pre-Depends: d", "c 1", "d 1", "e 1"}, "a", "a 1, b 1, c 1, d 1"},
		{"what live has will do", []string{"b 1"}, []string{"a 1;Depends: b (>= 1)", "b 2"}, "a", "a 1"},
		{"what live has is too old", []string{"b 1"}, []string{"a 1;Depends: b (>= 2)", "b 2"}, "a", "a 1, b 2 -b 1"},
		{"a circle", []string{"a 1;Depends: b (= 1)", "b 1;Depends: a (= 1)"}, []string{"a 2;Depends: b (= 2)", "b 2;Depends: a (= 2)"}, "a",
			"a 2, b 2 -a 1 -b 1"},
		{"the first alternative", nil, []string{"a 1;Depends: x | b | c", "b 1", "c 1"}, "a", "a 1, b 1"},
		{"the alternative that live has", []string{"c 1"}, []string{"a 1;Depends: b | c", "b 1", "c 2"}, "a", "a 1"},
		{"one that provides it", nil, []string{"a 1;Depends: mta", "b 1;Provides: mta"}, "a", "a 1, b 1"},
		{"one of live that provides it", []string{"c 1;Provides: mta (= 3)"}, []string{"a 1;Depends: mta (>= 2)", "b 1;Provides: mta", "c 1;Provides: mta (= 3)"}, "a", "a 1"},
		{"no version provided is no version", []string{"c 1;Provides: mta"}, []string{"a 1;Depends: mta (>= 2)", "b 1;Provides: mta (= 2)", "c 1;Provides: mta"}, "a", "a 1, b 1"},
		{"replaced by what is needed later", []string{"b 1;Provides: api-1", "z 1"},
			[]string{"a 1;Depends: b, z (>= 2)", "b 2;Provides: api-2", "z 2;Depends: api-2"}, "a", "a 1, b 2, z 2 -b 1 -z 1"},
		{"needs of a package that is taken change with it", []string{"b 1", "c 1;Provides: api-1"},
			[]string{"a 1;Depends: api-1, d", "b 1", "c 2", "d 1;Depends: c (= 2)", "e 1;Provides: api-1"}, "a", "a 1, c 2, d 1, e 1 -c 1"},
		{"of all architectures", []string{"a 1;Multi-Arch: same", "a 1;Multi-Arch: same;Architecture: i386"},
			[]string{"a 2;Multi-Arch: same", "a 2;Multi-Arch: same;Architecture: i386"}, "a:amd64", "a 2, a 2:i386 -a 1 -a 1:i386"},
		{"an architecture that is new", []string{"a 1;Multi-Arch: same", "x 1"}, []string{"a 1;Multi-Arch: same", "a 1;Multi-Arch: same;Architecture: i386", "x 1"}, "a", "a 1:i386"},
		{"another architecture", []string{"a 1", "x 1"}, []string{"a 2;Architecture: all", "x 1"}, "a", "a 2:all -a 1"},
		{"for the same architecture", []string{"x 1", "b 1;Architecture: i386"}, []string{"x 1", "a 1;Depends: b", "b 2"}, "a", "a 1, b 2 -b 1:i386"},
		{"foreign", []string{"x 1", "b 1;Architecture: i386;Multi-Arch: foreign"}, []string{"x 1", "a 1;Depends: b", "b 2;Multi-Arch: foreign"}, "a", "a 1"},
		{"allowed", []string{"x 1", "b 1;Architecture: i386;Multi-Arch: allowed"}, []string{"x 1", "a 1;Depends: b:any", "b 2"}, "a", "a 1"},
		{"of an architecture that is named", []string{"x 1", "b 1"}, []string{"x 1", "a 1;Depends: b:i386, x:amd64, x:native", "b 2;Architecture: i386"}, "a", "a 1, b 2:i386 -b 1"},
		{"all is for the native one", []string{"x 1", "b 1;Architecture: all"}, []string{"x 1", "a 1;Depends: b, c", "b 2", "c 1;Architecture: all;Depends: x"}, "a", "a 1, c 1:all"},
		{"on several lines", nil, []string{"a 1;Depends: b\n (>=\n\t1),\n c", "b 1", "c 1"}, "a", "a 1, b 1, c 1"},
		{"built anew, and needs something else", []string{"b 1"}, []string{"a 1", "b 1;Depends: a"}, "b", "a 1, b 1 -b 1"},
		{"several names", []string{"a 1", "b 1", "c 1"}, []string{"a 2", "b 2", "c 2"}, "a c", "a 2, c 2 -a 1 -c 1"},
		{"one that goes", []string{"a 1", "b 1"}, []string{"b 2"}, "a", "-a 1"},
		{"what is broken stays broken", []string{"x 1;Depends: nothing", "y 1;Conflicts: z", "z 1"}, []string{"a 1"}, "a", "a 1"},
		{"refused in an older version only", []string{"b 2"}, []string{"a 1;Breaks: b (<< 2)", "b 2"}, "a", "a 1"},
		{"refuses its own name", []string{"a 1"}, []string{"a 2;Conflicts: a, v;Provides: v"}, "a", "a 2 -a 1"},
		{"refuses what goes with it", []string{"b 1"}, []string{"a 1;Conflicts: b"}, "a b", "a 1 -b 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := Closure(installed(t, c.target...), installed(t, c.live...), strings.Fields(c.names))
			if err != nil {
				t.Fatal(err)
			}
			requireText(t, "selection", shortly(s), c.want)
		})
	}
}

// shortly returns a selection as the tables of tests have it.
func shortly(s Selection) string {
	short := func(p Package) string {
		return strings.TrimSuffix(p.Name+" "+p.Version+":"+p.Arch, ":amd64")
	}
	var taken, all []string
	for _, p := range s.Taken {
		taken = append(taken, short(p))
	}
	if len(taken) > 0 {
		all = append(all, strings.Join(taken, ", "))
	}
	for _, p := range s.Replaced {
		all = append(all, "-"+short(p))
	}
	return strings.Join(all, " ")
}

func TestSelectionThatCannotStandAloneIsRefusedWithTheReason(t *testing.T) {
	for _, c := range []struct {
		name         string
		live, target []string
		want         string
	}{
		{"unknown", []string{"b 1"}, []string{"b 1"}, `package "a" cannot be selected: neither the booted commit nor the target has it`},
		{"not there", nil, []string{"a 1;Depends: b (>= 2) | c", "b 1"}, "a 1 (amd64) cannot be selected: it needs b (>= 2) | c, which the target does not have"},
		{"needed by what is needed", nil, []string{"a 1;Depends: b", "b 1;Depends: c"}, "b 1 (amd64) cannot be selected: it needs c"},
		{"what stays needs the old one", []string{"a 1", "b 1;Depends: a (= 1)"}, []string{"a 2", "b 2;Depends: a (= 2)"},
			"b 1 (amd64) stays, and needs a (= 1): select b as well"},
		{"what stays needs what goes", []string{"a 1", "b 1;Depends: a"}, []string{"b 1"}, "b 1 (amd64) stays, and needs a"},
		{"what stays needs what was provided", []string{"a 1;Provides: api-1", "b 1;Depends: api-1"}, []string{"a 2;Provides: api-2", "b 2"}, "b 1 (amd64) stays, and needs api-1"},
		{"it breaks what stays", []string{"b 1"}, []string{"a 1;Breaks: b (<< 2)", "b 2"},
			"a 1 (amd64) and b 1 (amd64) must not be together (Breaks or Conflicts: b (<< 2) of a): select b as well"},
		{"what stays conflicts with it", []string{"b 1;Conflicts: mta"}, []string{"a 1;Provides: mta"}, "b 1 (amd64) and a 1 (amd64) must not be together"},
		{"what it needs conflicts with what stays", []string{"b 1"}, []string{"a 1;Depends: c", "c 1;Conflicts: b"}, "c 1 (amd64) and b 1 (amd64) must not be together"},
		{"an architecture that the target has no more", []string{"a 1;Multi-Arch: same", "a 1;Multi-Arch: same;Architecture: i386", "x 1"},
			[]string{"a 2;Multi-Arch: same", "x 1"}, "one version for all architectures"},
		{"damaged", nil, []string{"a 1;Depends: b ="}, `package a 1 (amd64): "b =" is no relation to a package`},
	} {
		t.Run(c.name, func(t *testing.T) {
			names := []string{"a"}
			if c.name == "an architecture that the target has no more" {
				names = []string{"a:amd64"}
			}
			_, err := Closure(installed(t, c.target...), installed(t, c.live...), names)
			requireError(t, err, c.want)
		})
	}
	for want, db := range map[string]*Database{"no package database": {}, "one commit has packages of dpkg, and the other one of rpm": database(t, RPM, "a 1-1 noarch")} {
		_, err := Closure(installed(t, "a 1"), db, []string{"a"})
		requireError(t, err, want)
	}
}

func TestExceptKeepsWhatTheKeptPackagesNeed(t *testing.T) {
	live := installed(t, "linux-image 1;Depends: linux-image-1 (= 1)", "linux-image-1 1", "nginx 1", "libc 1")
	target := installed(t, "linux-image 2;Depends: linux-image-2 (= 2)", "linux-image-2 2", "nginx 2", "libc 2", "new 1")
	for names, want := range map[string]string{
		"linux-image":               "linux-image 1, linux-image-1 1 -linux-image 2",
		"linux-image linux-image-2": "linux-image 1, linux-image-1 1 -linux-image 2 -linux-image-2 2",
		"new":                       "-new 1",
	} {
		kept, err := Except(target, live, strings.Fields(names))
		if err != nil {
			t.Fatal(err)
		}
		requireText(t, "without "+names, shortly(kept), want)
	}
	_, err := Except(target, live, []string{"linux-image-2"})
	requireError(t, err, "linux-image 2 (amd64) stays, and needs linux-image-2 (= 2): select linux-image as well")
}

// world draws a database of packages that need and refuse each other, of which only what holds is kept.
func world(t *rapid.T, label string) *Database {
	const ops = "= >= <= << >>"
	db := &Database{Format: Dpkg, Source: label}
	relation := func(t *rapid.T, what string) string {
		text := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "v"}).Draw(t, what)
		if op := rapid.SampledFrom(append(strings.Fields(ops), "", "", "")).Draw(t, "operator"); op != "" {
			text += fmt.Sprintf(" (%s %d)", op, rapid.IntRange(1, 3).Draw(t, "version"))
		}
		return text
	}
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		if !rapid.Bool().Draw(t, "has "+name) {
			continue
		}
		var c control
		var needs []string
		for range rapid.IntRange(0, 3).Draw(t, "needs") {
			need := relation(t, "needed")
			if rapid.Bool().Draw(t, "or") {
				need += " | " + relation(t, "alternative")
			}
			needs = append(needs, need)
		}
		c.depends = strings.Join(needs, ", ")
		if rapid.IntRange(0, 3).Draw(t, "refuses") == 0 {
			c.breaks = relation(t, "refused")
		}
		c.provides = rapid.SampledFrom([]string{"", "", "v", "v (= 2)"}).Draw(t, "provides")
		db.Packages = append(db.Packages, Package{Name: name, Version: fmt.Sprint(rapid.IntRange(1, 3).Draw(t, "version of "+name)), Arch: "amd64"})
		db.controls = append(db.controls, c)
	}
	return db
}

// sound takes out of a database what does not hold in it, for which the packages of a world never ask.
func sound(t *rapid.T, db *Database) *Database {
	g, err := newGraph(&Database{Format: Dpkg}, db)
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range g.nodes {
		var needs []string
		for _, d := range n.needs {
			if g.holds(n, d, inWanted) {
				needs = append(needs, d.String())
			}
		}
		db.controls[i].depends = strings.Join(needs, ", ")
		for _, r := range n.refuses {
			for m := range g.matches(r.need) {
				if m != n {
					db.controls[i].breaks = ""
				}
			}
		}
	}
	return db
}

// apt checks a database as dpkg's own, and returns what it says is wrong with it.
func apt(t *rapid.T, dir string, db *Database) string {
	for _, name := range []string{"lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	status := filepath.Join(dir, "status")
	if err := os.WriteFile(status, []byte(written(db)), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("apt-get", "check", "-qq", "-o", "Dir::State="+dir, "-o", "Dir::State::status="+status, "-o", "Dir::Cache="+dir+"/cache",
		"-o", "Dir::Etc="+dir+"/etc", "-o", "APT::Architecture=amd64", "-o", "APT::Architectures=amd64", "-o", "Debug::NoLocking=true").CombinedOutput()
	if err != nil {
		return string(out)
	}
	return ""
}

// What a selection makes of live is what apt takes for sound, if live and target are.
func TestMixtureIsOneThatAptFindsNothingWrongWith(t *testing.T) {
	dir, mixtures := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		live, target := sound(t, world(t, "live")), sound(t, world(t, "target"))
		if len(target.Packages) == 0 {
			return
		}
		selected := rapid.SampledFrom(target.Packages).Draw(t, "selected")
		s, err := Closure(target, live, []string{selected.Name})
		if err != nil || len(s.Taken) == 0 {
			return
		}
		mixtures++
		mix := mixed(live, target, s)
		if !slices.Contains(mix.Packages, selected) {
			t.Fatalf("the selection of %s is %s of\n%s\n%s", selected, shortly(s), written(live), written(target))
		}
		if wrong := apt(t, dir, mix); wrong != "" {
			t.Fatalf("%s makes of\n%s and\n%s a mixture that apt does not like: %s", selected, written(live), written(target), wrong)
		}
	})
	if mixtures < 20 {
		t.Errorf("only %d mixtures were checked", mixtures)
	}
}

// mixed returns the database of a base with a selection.
func mixed(base, other *Database, s Selection) *Database {
	controls := map[Package]control{}
	for i, p := range base.Packages {
		if !slices.Contains(s.Replaced, p) {
			controls[p] = base.controls[i]
		}
	}
	for i, p := range other.Packages {
		if slices.Contains(s.Taken, p) {
			controls[p] = other.controls[i]
		}
	}
	mix := &Database{Format: Dpkg, Source: "a mixture"}
	for _, p := range slices.SortedFunc(maps.Keys(controls), Package.compare) {
		mix.Packages, mix.controls = append(mix.Packages, p), append(mix.controls, controls[p])
	}
	return mix
}

func TestClosureOfAPackageOfThisMachineIsSound(t *testing.T) {
	content, err := os.ReadFile("/var/lib/dpkg/status")
	if err != nil {
		t.Fatal(err)
	}
	target := &Database{Format: Dpkg, Source: "this machine"}
	if err := target.parseStatus(string(content), false); err != nil {
		t.Fatal(err)
	}
	if err := target.sortPackages(); err != nil {
		t.Fatal(err)
	}
	nothing := &Database{Format: Dpkg, Source: "nothing"}
	s, err := Closure(target, nothing, []string{"ostree"})
	if err != nil {
		t.Fatal(err)
	}
	taken := map[string]bool{}
	for _, p := range s.Taken {
		taken[p.Name] = true
	}
	if !taken["ostree"] || !taken["libostree-1-1"] || !taken["libc6"] || len(taken) >= len(target.Packages)/2 {
		t.Errorf("ostree is taken with %d packages: %v", len(taken), s.Taken)
	}
	// Without any of them, what is left of the target lacks them: the same packages are named.
	again, err := Closure(target, mixed(nothing, target, s), []string{"ostree"})
	if err != nil || len(again.Taken)+len(again.Replaced) > 0 {
		t.Errorf("a closure is not closed: %v %v", again, err)
	}
}
