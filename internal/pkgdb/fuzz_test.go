package pkgdb

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/liveapply/liveapply/internal/fuzztest"
	"github.com/liveapply/liveapply/internal/gvariant"
	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
)

// perByte is how much memory reading may take for a byte of input.
const perByte = 32

var compareControls = cmp.Options{cmp.AllowUnexported(control{}, need{}, relation{}), cmpopts.EquateEmpty()}

// What is read from a status file is what is read from one that has only that.
func FuzzStatus(f *testing.F) {
	content, err := os.ReadFile("/var/lib/dpkg/status")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(content), false)
	for _, stanza := range strings.SplitAfter(string(content), "\n\n")[:50] {
		f.Add(stanza, true)
	}
	f.Add("Package: a\nVersion: 1\nArchitecture: all\nDepends: b"+strings.Repeat(",\n c", 10000)+"\n", true)
	f.Fuzz(func(t *testing.T, text string, part bool) {
		var db, again Database
		var err error
		fuzztest.Bounded(t, len(text), perByte, func() {
			if err = db.parseStatus(text, part); err == nil {
				err = db.sortPackages()
			}
		})
		if err != nil {
			return
		}
		if err := again.parseStatus(written(&db), false); err != nil {
			t.Fatalf("%q is read, but what is in it is not: %v", text, err)
		}
		if diff := cmp.Diff([]any{db.Packages, db.controls}, []any{again.Packages, again.controls}, compareControls); diff != "" {
			t.Errorf("%q (-read +read from what was read):\n%s", text, diff)
		}
	})
}

// written returns a status file with what is known of the packages.
func written(db *Database) string {
	var text strings.Builder
	for i, p := range db.Packages {
		fmt.Fprintf(&text, "Package: %s\nStatus: install ok installed\nVersion: %s\nArchitecture: %s\n", p.Name, p.Version, p.Arch)
		c := db.controls[i]
		for _, field := range [][2]string{
			{"Multi-Arch", c.multiArch}, {"Pre-Depends", c.preDepends}, {"Depends", c.depends}, {"Provides", c.provides}, {"Breaks", c.breaks}, {"Conflicts", c.conflictsWith},
		} {
			if field[1] != "" {
				fmt.Fprintf(&text, "%s: %s\n", field[0], field[1])
			}
		}
		text.WriteString("Maintainer: a test\nDescription: a test\n\n")
	}
	return text.String()
}

// A relation is what it is written as.
func FuzzRelations(f *testing.F) {
	for _, seed := range []string{
		"libc6 (>= 2.36), libssl3t64 (>= 3.0.0) | libssl3:any (<< 4~), perl:native", "a(=1),b ( >> 1:2-3 )|c,", "a (=> 1)", "a (= 1) x", "a b", ":any", "a, ,b", "|",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		var needs []need
		var err error
		fuzztest.Bounded(t, len(value), 256, func() { needs, err = parseNeeds(value) })
		if err != nil {
			return
		}
		var texts []string
		for _, d := range needs {
			texts = append(texts, d.String())
		}
		again, err := parseNeeds(strings.Join(texts, ", "))
		if err != nil {
			t.Fatalf("%q is read as %q, which is not: %v", value, texts, err)
		}
		if diff := cmp.Diff(needs, again, compareControls); diff != "" {
			t.Errorf("%q (-read +read from what was read):\n%s", value, diff)
		}
	})
}

// A relation of rpm's is what it is written as, or refused.
func FuzzRPMRelations(f *testing.F) {
	for _, seed := range []string{
		"libc.so.6(GLIBC_2.38)(64bit)", "a >= 1:2-3\n/bin/sh\nrpmlib(FileDigests) <= 4.6.0-1", "((a or b >= 2) and (c if d else (e with f with g)))", "(a without (b or c))",
		"(a and b or c)", "(a if b else c else d)", "(a", "a)", "a =", "a => 1", strings.Repeat("(", 1000), "(a unless b)", "(a else b)", "((a))",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, lines string) {
		var needs []need
		var err error
		fuzztest.Bounded(t, len(lines), 512, func() { needs, err = parseRPMNeeds(lines) })
		if err != nil {
			return
		}
		var texts []string
		for _, d := range needs {
			texts = append(texts, d.String())
		}
		again, err := parseRPMNeeds(strings.Join(texts, "\n"))
		if err != nil {
			t.Fatalf("%q is read as %q, which is not: %v", lines, texts, err)
		}
		if diff := cmp.Diff(needs, again, compareControls); diff != "" {
			t.Errorf("%q (-read +read from what was read):\n%s", lines, diff)
		}
	})
}

// Packages of rpm-ostree are shown on terminals, and compared.
func FuzzPkglist(f *testing.F) {
	l := newLab(f)
	commit := l.commit(ostreetest.Spec{}, pkglist(`[('zlib','0','1.3','1.fc42','x86_64'),('bind','32','9.18','2.fc42','i686')]`))
	seed, _, err := commit.Metadata.Lookup(pkglistKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed.Data())
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := gvariant.New(pkglistType, data)
		if err != nil {
			t.Fatal(err)
		}
		var db Database
		fuzztest.Bounded(t, len(data), perByte, func() {
			if err = db.readPkglist(v); err == nil {
				err = db.sortPackages()
			}
		})
		if err != nil {
			return
		}
		for _, p := range db.Packages {
			if strings.IndexFunc(p.String(), func(r rune) bool { return r < ' ' || r > '~' }) >= 0 {
				t.Errorf("%q is shown", p)
			}
			if c := CompareRPM(p.Version, p.Version); c != 0 {
				t.Errorf("%q differs from itself: %d", p.Version, c)
			}
		}
	})
}
