// Package rpmtest makes real packages of rpm, and databases of them, for tests.
package rpmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
)

// Package is one without an architecture.
type Package struct {
	Name  string
	EVR   string            // "[epoch:]version-release"
	Head  []string          // lines for the head of its spec file, such as "Requires: b"
	Files map[string]string // their contents, by absolute path
}

// Build makes packages, and returns their files in the same order.
func Build(t testing.TB, packages ...Package) []string {
	t.Helper()
	top := t.TempDir()
	var text, install strings.Builder
	text.WriteString("Name: world\nVersion: 1\nRelease: 1\nSummary: a test\nLicense: none\n%description\n")
	install.WriteString("%install\n")
	var files []string
	for _, p := range packages {
		epoch, full, _ := strings.Cut(p.EVR, ":")
		if full == "" {
			epoch, full = "0", p.EVR
		}
		version, release, _ := strings.Cut(full, "-")
		fmt.Fprintf(&text, "%%package -n %s\nEpoch: %s\nVersion: %s\nRelease: %s\nSummary: a test\nBuildArch: noarch\nAutoReqProv: no\n", p.Name, epoch, version, release)
		fmt.Fprintf(&text, "%s\n%%description -n %s\n%%files -n %s\n", strings.Join(p.Head, "\n"), p.Name, p.Name)
		for path, content := range p.Files {
			fmt.Fprintf(&text, "%q\n", path)
			fmt.Fprintf(&install, "mkdir -p \"$(dirname \"%%{buildroot}%[1]s\")\"; printf %%%%s '%[2]s' >\"%%{buildroot}%[1]s\"\n", path, content)
		}
		files = append(files, fmt.Sprintf("%s/RPMS/noarch/%s-%s-%s.noarch.rpm", top, p.Name, version, release))
	}
	spec := filepath.Join(top, "world.spec")
	if err := os.WriteFile(spec, []byte(text.String()+install.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	ostreetest.Run(t, "rpmbuild", "-bb", "--quiet", "--define=_topdir "+top, "--define=_binary_payload w0.gzdio", spec)
	return files
}

// Database makes the database of a system that has packages, and returns its directory.
func Database(t testing.TB, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	ostreetest.Run(t, "rpm", "--dbpath="+dir, "--initdb")
	if len(files) > 0 {
		ostreetest.Run(t, "rpm", append([]string{"--dbpath=" + dir, "--force-debian", "--ignorearch", "--justdb", "--nodeps", "--install"}, files...)...)
	}
	return dir
}

// List returns the argument with which ostree commit writes what rpm-ostree writes into a commit's metadata.
func List(t testing.TB, dir string) string {
	t.Helper()
	list := ostreetest.Run(t, "rpm", "--dbpath="+dir, "-qa", "--queryformat=('%{NAME}','%{EPOCHNUM}','%{VERSION}','%{RELEASE}','%{ARCH}'),")
	return "--add-metadata=rpmostree.rpmdb.pkglist=@a(sssss) [" + strings.TrimSuffix(list, ",") + "]"
}

// Tree returns what a tree has of a database.
func Tree(t testing.TB, dir string) ostreetest.Spec {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "rpmdb.sqlite"))
	if err != nil {
		t.Fatal(err)
	}
	return ostreetest.Spec{"usr/share/rpm/rpmdb.sqlite": ostreetest.File(string(content)), "usr/lib/sysimage/rpm": ostreetest.Link("../../share/rpm")}
}
