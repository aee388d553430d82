package pkgdb

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
)

// rpmSpec has two packages, one with an epoch, and files below /usr and /etc.
const rpmSpec = `
Name: alpha
Version: 1.0~rc1
Release: 2.fc42
Summary: a test
License: MIT
BuildArch: noarch
%description
%package -n beta
Epoch: 3
Summary: another
%description -n beta
%install
mkdir -p %{buildroot}/usr/bin %{buildroot}/etc/alpha %{buildroot}/usr/share/beta
touch %{buildroot}/usr/bin/alpha %{buildroot}/etc/alpha/conf %{buildroot}/usr/share/beta/file
%files
/usr/bin/alpha
/etc/alpha
%files -n beta
/usr/share/beta
`

// rpmDatabase makes a database of rpm's with the packages of rpmSpec, and returns its directory.
func rpmDatabase(t *testing.T) string {
	t.Helper()
	top, dir := t.TempDir(), t.TempDir()
	spec := filepath.Join(top, "alpha.spec")
	if err := os.WriteFile(spec, []byte(rpmSpec), 0o644); err != nil {
		t.Fatal(err)
	}
	ostreetest.Run(t, "rpmbuild", "-bb", "--quiet", "--define", "_topdir "+top, spec)
	rpms, err := filepath.Glob(top + "/RPMS/noarch/*.rpm")
	if err != nil || len(rpms) != 2 {
		t.Fatal("rpmbuild made ", rpms, err)
	}
	ostreetest.Run(t, "rpm", append(rpms, "--dbpath="+dir, "--install", "--justdb", "--nodeps", "--ignorearch")...)
	return dir
}

func TestFilesOfPackagesOfRPMAreThoseThatRPMLists(t *testing.T) {
	l := newLab(t)
	dir := rpmDatabase(t)
	content, err := os.ReadFile(dir + "/rpmdb.sqlite")
	if err != nil {
		t.Fatal(err)
	}
	tree := ostreetest.Spec{"usr/share/rpm/rpmdb.sqlite": ostreetest.File(string(content)), "usr/lib/sysimage/rpm": ostreetest.Link("../../share/rpm")}
	own := l.read(l.commit(tree))
	requireText(t, "packages", names(own.Packages), "alpha 1.0~rc1-2.fc42 noarch\nbeta 3:1.0~rc1-2.fc42 noarch")
	if own.Format != RPM || own.Source != "usr/share/rpm/rpmdb.sqlite" {
		t.Errorf("format %q from %q", own.Format, own.Source)
	}
	listed := l.read(l.commit(tree, pkglist("[('alpha','0','1.0~rc1','2.fc42','noarch'),('beta','3','1.0~rc1','2.fc42','noarch'),('gamma','0','1','1','noarch')]")))
	if d := Diff(own, listed); shown(d) != "+ gamma 1-1 (noarch)" {
		t.Errorf("rpm's database and the list of rpm-ostree differ:\n%s", shown(d))
	}
	for _, db := range []*Database{own, listed} {
		for _, p := range own.Packages {
			files, err := db.Files(p)
			if err != nil {
				t.Fatal(err)
			}
			want := strings.Fields(ostreetest.Run(t, "rpm", "--dbpath="+dir, "-ql", p.Name))
			for i, name := range want {
				want[i] = strings.Replace(strings.TrimPrefix(name, "/"), "etc/", "usr/etc/", 1)
			}
			slices.Sort(want)
			slices.Sort(files)
			requireText(t, "files of "+p.Name, strings.Join(files, "\n"), strings.Join(want, "\n"))
		}
	}
	_, err = listed.Files(Package{Name: "gamma", Version: "1-1", Arch: "noarch"})
	requireError(t, err, "gamma 1-1 (noarch)", "rpm's database does not have it")
}

func TestDamagedDatabaseOfRPMIsAnErrorThatNamesIt(t *testing.T) {
	l := newLab(t)
	whole, err := os.ReadFile(rpmDatabase(t) + "/rpmdb.sqlite")
	if err != nil {
		t.Fatal(err)
	}
	i := strings.Index(string(whole), "another") // the summary of a package, in its header
	if i < 0 {
		t.Fatal("the database has no header of the package")
	}
	header := slices.Concat(whole[:i-200], []byte(strings.Repeat("\xff", 300)), whole[i+100:])
	for _, c := range []struct {
		content []byte
		want    string
	}{
		{nil, "EOF"},
		{[]byte("other data, long enough"), "unexpected EOF"},
		{whole[:len(whole)/2], "database disk image is malformed"},
		{header, "header"},
	} {
		_, err := Read(l.repo, l.commit(ostreetest.Spec{"usr/lib/sysimage/rpm/rpmdb.sqlite": ostreetest.File(string(c.content))}), nil)
		requireError(t, err, "its package database usr/lib/sysimage/rpm/rpmdb.sqlite is damaged", c.want)
	}
}
