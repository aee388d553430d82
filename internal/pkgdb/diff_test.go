package pkgdb

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// database makes one of lines "name version arch".
func database(t testing.TB, format Format, lines ...string) *Database {
	t.Helper()
	db := &Database{Format: format, Source: "a test"}
	for _, line := range lines {
		words := strings.Fields(line)
		db.Packages = append(db.Packages, Package{Name: words[0], Version: words[1], Arch: words[2]})
	}
	if err := db.sortPackages(); err != nil {
		t.Fatal(err)
	}
	return db
}

// shown returns a difference, one package to a line.
func shown(d Difference) string {
	var lines []string
	for _, p := range d.Added {
		lines = append(lines, fmt.Sprintf("+ %s", p))
	}
	for _, p := range d.Removed {
		lines = append(lines, fmt.Sprintf("- %s", p))
	}
	for _, c := range d.Upgraded {
		lines = append(lines, fmt.Sprintf("%s > %s", c.Old, c.New))
	}
	for _, c := range d.Downgraded {
		lines = append(lines, fmt.Sprintf("%s < %s", c.Old, c.New))
	}
	return strings.Join(lines, "\n")
}

func TestDifferenceShowsWhatHappensToEachPackage(t *testing.T) {
	for _, c := range []struct {
		name     string
		format   Format
		old, new []string
		want     string
	}{
		{"nothing", Dpkg, []string{"a 1 all"}, []string{"a 1 all"}, ""},
		{"all kinds", Dpkg, []string{"a 1 all", "b 1 all", "c 1.10 all"}, []string{"b 1.0 all", "c 1.9 all", "d 1 all"},
			"+ d 1 (all)\n- a 1 (all)\nb 1 (all) > b 1.0 (all)\nc 1.10 (all) < c 1.9 (all)"},
		{"a tilde is older", RPM, []string{"a 1-1 noarch"}, []string{"a 1~rc1-1 noarch"}, "a 1-1 (noarch) < a 1~rc1-1 (noarch)"},
		{"a caret is rpm's", RPM, []string{"a 1^-1 noarch"}, []string{"a 1-1 noarch"}, "a 1^-1 (noarch) < a 1-1 (noarch)"},
		{"an epoch wins", RPM, []string{"a 9-1 noarch"}, []string{"a 1:1-1 noarch"}, "a 9-1 (noarch) > a 1:1-1 (noarch)"},
		{"versions that are equal, and written differently", Dpkg, []string{"a 1.0 all"}, []string{"a 1.00 all"}, "a 1.0 (all) > a 1.00 (all)"},
		{"an only package changes its architecture", Dpkg, []string{"a 1 amd64"}, []string{"a 1 all"}, "a 1 (amd64) > a 1 (all)"},
		{"and is older", RPM, []string{"a 2-1 x86_64"}, []string{"a 1-1 noarch"}, "a 2-1 (x86_64) < a 1-1 (noarch)"},
		{"each architecture is a package", Dpkg, []string{"a 1 amd64", "a 1 i386"}, []string{"a 2 amd64", "a 2 i386"},
			"a 1 (amd64) > a 2 (amd64)\na 1 (i386) > a 2 (i386)"},
		{"one architecture more", Dpkg, []string{"a 1 amd64"}, []string{"a 1 amd64", "a 1 i386"}, "+ a 1 (i386)"},
		{"one architecture less", RPM, []string{"a 1-1 i686", "a 1-1 x86_64"}, []string{"a 2-1 x86_64"}, "- a 1-1 (i686)\na 1-1 (x86_64) > a 2-1 (x86_64)"},
		{"others of two", RPM, []string{"a 1-1 i686", "a 1-1 x86_64"}, []string{"a 1-1 noarch", "a 1-1 x86_64"}, "+ a 1-1 (noarch)\n- a 1-1 (i686)"},
		{"versions side by side", RPM, []string{"k 1-1 x", "k 2-1 x"}, []string{"k 2-1 x", "k 3-1 x"}, "k 1-1 (x) > k 3-1 (x)"},
		{"no successor", RPM, []string{"k 1-1 x", "k 2-1 x"}, []string{"k 3-1 x"}, "+ k 3-1 (x)\n- k 1-1 (x)\n- k 2-1 (x)"},
		{"no database", None, nil, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Diff(database(t, c.format, c.old...), database(t, c.format, c.new...))
			requireText(t, "difference", shown(d), c.want)
			if d.Format != c.format || d.Empty() != (c.want == "") {
				t.Errorf("format %q, empty %v", d.Format, d.Empty())
			}
		})
	}
}

func TestDifferenceOfOtherWorldsIsUnknown(t *testing.T) {
	for _, other := range []*Database{database(t, RPM, "a 1-1 noarch"), {}} {
		if d := Diff(database(t, Dpkg, "a 1 all"), other); d.Format != None || !d.Empty() {
			t.Errorf("dpkg and %q differ as %+v", other.Format, d)
		}
	}
}

func TestDifferenceInJSONIsWhatIsDocumented(t *testing.T) {
	d := Diff(database(t, Dpkg, "a 1 all", "b 1 all"), database(t, Dpkg, "b 2 all"))
	got, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	requireText(t, "JSON", string(got), `{"format":"dpkg","added":[],"removed":[{"name":"a","version":"1","arch":"all"}],`+
		`"upgraded":[{"old":{"name":"b","version":"1","arch":"all"},"new":{"name":"b","version":"2","arch":"all"}}],"downgraded":[]}`)
}

// Following a difference leads from one set of packages to the other.
func TestDifferenceLeadsFromOldToNew(t *testing.T) {
	packages := rapid.Custom(func(t *rapid.T) []Package {
		p := rapid.Custom(func(t *rapid.T) Package {
			pick := func(what string, from ...string) string { return rapid.SampledFrom(from).Draw(t, what) }
			return Package{Name: pick("name", "a", "aa", "b", "c"), Version: pick("version", "1", "1.0", "2"), Arch: pick("arch", "all", "amd64", "i386")}
		})
		return rapid.SliceOfNDistinct(p, 0, 12, func(p Package) Package { return p }).Draw(t, "packages")
	})
	rapid.Check(t, func(t *rapid.T) {
		old, new := &Database{Format: RPM, Packages: packages.Draw(t, "old")}, &Database{Format: RPM, Packages: packages.Draw(t, "new")}
		for _, db := range []*Database{old, new} {
			if err := db.sortPackages(); err != nil {
				t.Fatal(err)
			}
		}
		d := Diff(old, new)
		goes, comes := slices.Clone(d.Removed), slices.Clone(d.Added)
		for _, c := range slices.Concat(d.Upgraded, d.Downgraded) {
			goes, comes = append(goes, c.Old), append(comes, c.New)
		}
		got := slices.DeleteFunc(slices.Clone(old.Packages), func(p Package) bool { return slices.Contains(goes, p) })
		got = append(got, comes...)
		slices.SortFunc(got, Package.compare)
		if !slices.Equal(got, new.Packages) || len(goes)+len(comes) > 0 && slices.ContainsFunc(goes, func(p Package) bool { return slices.Contains(comes, p) }) {
			t.Fatalf("%v and %v differ as\n%s", old.Packages, new.Packages, shown(d))
		}
	})
}
