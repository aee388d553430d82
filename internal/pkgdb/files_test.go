package pkgdb

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
)

func TestFilesOfAPackageAreThePathsInTheTree(t *testing.T) {
	l := newLab(t)
	const admin = "usr/lib/dpkg/"
	tree := ostreetest.Spec{
		"bin": ostreetest.Link("usr/bin"), "lib": ostreetest.Link("/usr/lib"), "opt": ostreetest.Link("var/opt"),
		admin + "status":                  status("dash 1", "sh 1", "both 1;Multi-Arch: same", "bare 1"),
		admin + "diversions":              ostreetest.File("/bin/sh\n/bin/sh.distrib\ndash\n/etc/local\n/etc/local.old\n:\n"),
		admin + "info/dash.list":          ostreetest.File("/.\n/bin\n/bin/dash\n/bin/sh\n/etc\n/etc/local\n/usr/share/x y\n"),
		admin + "info/sh.list":            ostreetest.File("/.\n/bin/sh\n/lib/sh\n/opt/sh\n/etc/sh.conf"),
		admin + "info/both:amd64.list":    ostreetest.File("/.\n"),
		admin + "info/unrelated:all.list": ostreetest.File("/.\n"),
	}
	db := l.read(l.commit(tree))
	for name, want := range map[string]string{
		"dash": "bin\nusr/bin/dash\nusr/bin/sh\nusr/etc\nusr/etc/local.old\nusr/share/x y",
		"sh":   "usr/bin/sh.distrib\nusr/lib/sh\nvar/opt/sh\nusr/etc/sh.conf",
		"both": "",
	} {
		files, err := db.Files(Package{Name: name, Version: "1", Arch: "amd64"})
		if err != nil {
			t.Fatal(err)
		}
		requireText(t, "files of "+name, strings.Join(files, "\n"), want)
	}
	_, err := db.Files(Package{Name: "bare", Version: "1", Arch: "amd64"})
	requireError(t, err, "usr/lib/dpkg/status", "bare 1 (amd64)", "there is no usr/lib/dpkg/info/bare.list")

	tree[admin+"diversions"] = ostreetest.File("/bin/sh\n")
	_, err = l.read(l.commit(tree)).Files(db.Packages[1])
	requireError(t, err, "the diversions have 1 lines")

	rpm := l.read(l.commit(ostreetest.Spec{}, pkglist("[('a','0','1','1','noarch')]")))
	_, err = rpm.Files(rpm.Packages[0])
	requireError(t, err, "a 1-1 (noarch)", pkglistKey)
}

func TestFilesOfThePackagesOfThisMachineAreThoseThatDpkgLists(t *testing.T) {
	l := newLab(t)
	root := t.TempDir()
	const admin = "/var/lib/dpkg/"
	lists, err := filepath.Glob(admin + "info/*.list")
	if err != nil {
		t.Fatal(err)
	}
	ostreetest.Run(t, "cp", append(lists, admin+"status", admin+"diversions", admin+"info/format", "--parents", "--target-directory="+root)...)
	db := l.read(l.commitDir(root))
	args := []string{"--admindir=" + filepath.Join(root, admin), "--listfiles"} // something may be installed meanwhile
	for _, p := range db.Packages {
		args = append(args, p.Name+":"+p.Arch)
	}
	wants := strings.Split(ostreetest.Run(t, "dpkg-query", args...), "\n\n")
	if len(wants) != len(db.Packages) {
		t.Fatalf("dpkg lists the files of %d packages of %d", len(wants), len(db.Packages))
	}
	for i, p := range db.Packages {
		got, err := db.Files(p)
		if err != nil {
			t.Fatal(err)
		}
		want := listed(wants[i])
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", p, diff)
		}
	}
}

// listed returns the paths that dpkg-query lists, in a tree without links in its root.
func listed(list string) (files []string) {
	for line := range strings.SplitSeq(list, "\n") {
		name, isPath := strings.CutPrefix(line, "/")
		_, to, diverted := strings.Cut(line, "diverted by ")
		_, to, _ = strings.Cut(to, " to: /")
		switch {
		case diverted:
			files[len(files)-1] = to
		case !isPath || name == ".": // also "package diverts others to: …"
		case name == "etc" || strings.HasPrefix(name, "etc/"):
			files = append(files, "usr/"+name)
		default:
			files = append(files, name)
		}
	}
	return files
}
