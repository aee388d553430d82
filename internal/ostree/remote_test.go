package ostree

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
)

// repoWithRemotes has remotes that ostree configured, and a directory of more.
func repoWithRemotes(t *testing.T) (repo *Repo, more string) {
	t.Helper()
	path := ostreetest.Repo(t)
	add := func(name string, options ...string) {
		ostreetest.Run(t, "ostree", append([]string{"--repo=" + path, "remote", "add", name, "https://example.com/repo"}, options...)...)
	}
	add("plain")
	add("debian", "--set=gpg-verify=false", "--set=sign-verify=ed25519", "--set=verification-ed25519-key=AAAA", "--set=verification-ed25519-file=/etc/keys", "--set=gpgkeypath=/etc/a;/etc/b",
		"--set=gpg-verify-summary=true", "--collection-id=org.example")
	more = t.TempDir()
	for name, content := range map[string]string{
		"path/plain.trustedkeys.gpg":  "keys of plain",
		"more/plain.trustedkeys.gpg":  "not these",
		"more/vendor.trustedkeys.gpg": "keys of vendor",
		"more/vendor.conf":            "[remote \"vendor\"]\nurl=https://example.org\nsign-verify=true\n",
		"more/vendor.conf.old":        "[remote \"old\"]\nurl=https://example.org\n",
	} {
		dir, name := filepath.Split(name)
		if err := os.WriteFile(filepath.Join(map[string]string{"path/": path, "more/": more}[dir], name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	repo, err := OpenRepo(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { repo.Close() })
	return repo, more
}

func TestRemoteHasTheOptionsAboutSignaturesAndItsKeys(t *testing.T) {
	repo, more := repoWithRemotes(t)
	for _, want := range []*Remote{
		{"plain", map[string]string{}, []byte("keys of plain")},
		{"debian", map[string]string{
			"gpg-verify": "false", "gpgkeypath": "/etc/a;/etc/b", "sign-verify": "ed25519",
			"verification-ed25519-key": "AAAA", "verification-ed25519-file": "/etc/keys",
		}, nil},
		{"vendor", map[string]string{"sign-verify": "true"}, []byte("keys of vendor")},
	} {
		got, err := repo.Remote(want.Name, more)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", want.Name, diff)
		}
	}
	for _, unknown := range []string{"other", "old"} {
		if _, err := repo.Remote(unknown, more); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s, which is not configured: %v", unknown, err)
		}
	}
	for _, bad := range []string{"", "..", "a/b", "--url", "a\"]\nb"} {
		if got, err := repo.Remote(bad, more); err == nil {
			t.Errorf("%q is a remote: %v", bad, got)
		}
	}
}

func TestRemoteOfARevision(t *testing.T) {
	for rev, want := range map[string]string{
		"debian:stable/x86_64": "debian", "debian:stable^^": "debian",
		"stable": "", "debian/stable": "", "": "", ":": "", "debian:": "", "../a:b": "", "--url=x:y": "",
	} {
		if got := RemoteOf(rev); got != want {
			t.Errorf("RemoteOf(%q) is %q, want %q", rev, got, want)
		}
	}
}
