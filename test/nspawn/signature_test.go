//go:build nspawn

package nspawn_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
	"github.com/liveapply/liveapply/test/nspawn"
)

// gpgKey is a GPG key with a home directory of its own on the host.
type gpgKey struct{ home, keyring string }

// newGPGKey makes a key. Its gpg lives at a time, if one is given, and the key expires then after a month.
func newGPGKey(t *testing.T, time string) gpgKey {
	t.Helper()
	home := t.TempDir()
	t.Cleanup(func() { ostreetest.Run(t, "gpgconf", "--homedir="+home, "--kill", "all") })
	expires := "never"
	if time != "" {
		expires = "1m"
		if err := os.WriteFile(filepath.Join(home, "gpg.conf"), []byte("faked-system-time "+time+"!\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	gpg := func(args ...string) string {
		return ostreetest.Run(t, "gpg", append([]string{"--homedir=" + home, "--batch", "--quiet"}, args...)...)
	}
	gpg("--passphrase=", "--quick-generate-key", "lab@example.com", "ed25519", "sign", expires)
	return gpgKey{home, gpg("--export")}
}

// sign adds a signature to a commit in a repo.
func (k gpgKey) sign(t *testing.T, repo, commit string) {
	t.Helper()
	ostreetest.Run(t, "ostree", "--repo="+repo, "gpg-sign", "--gpg-homedir="+k.home, commit, "lab@example.com")
}

// signKey is a key of ostree sign. Debian's ostree is built without ed25519 and spki. What it has is dummy, the type of libostree's own
// tests, which an environment variable switches on: its signature is the key. Everything around it is as with the others.
type signKey string

const dummyEnabled = "OSTREE_DUMMY_SIGN_ENABLED=1"

// sign adds a signature to a commit in a repo.
func (k signKey) sign(t *testing.T, repo, commit string) {
	t.Helper()
	ostreetest.Run(t, "env", dummyEnabled, "ostree", "--repo="+repo, "sign", "--sign-type=dummy", commit, string(k))
}

// allowDummy has prepare know the type, too.
func allowDummy(m *nspawn.Machine) {
	m.Run("mkdir", "--parents", "/run/systemd/system/liveapply-prepare@.service.d")
	m.Write("/run/systemd/system/liveapply-prepare@.service.d/dummy.conf", "[Service]\nEnvironment="+dummyEnabled+"\n")
	m.Run("systemctl", "daemon-reload")
}

// remoteRepo is where a machine has the repo of its remotes; they differ in what is trusted.
const remoteRepo = "/var/lib/remote"

// makeRemoteRepo makes it. It is bare, so that its objects are hard links.
func makeRemoteRepo(m *nspawn.Machine) {
	m.Run("ostree", "--repo="+remoteRepo, "init", "--mode=bare")
	m.Run("ostree", "--repo="+remoteRepo, "config", "set", "core.fsync", "false")
}

// addRemote configures a remote, in the repo's config. The keyring may be empty.
func addRemote(t *testing.T, m *nspawn.Machine, name, keyring string, options ...string) {
	t.Helper()
	args := []string{"--repo=" + m.Repo(), "remote", "add", name, "file://" + remoteRepo}
	for _, option := range options {
		args = append(args, "--set="+option)
	}
	ostreetest.Run(t, "ostree", args...)
	if keyring != "" {
		if err := os.WriteFile(filepath.Join(m.Repo(), name+".trustedkeys.gpg"), []byte(keyring), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// publish puts a commit that the machine has into the remotes' repo, and signs it there.
func publish(t *testing.T, m *nspawn.Machine, commit string, key gpgKey) {
	t.Helper()
	remote := filepath.Join(m.Sysroot(), "ostree/deploy/debian", remoteRepo)
	ostreetest.Run(t, "ostree", "--repo="+remote, "pull-local", m.Repo(), commit)
	key.sign(t, remote, commit)
}

// track makes a ref of a remote that nobody pulled: what the remote does not vouch for cannot be pulled.
func track(t *testing.T, m *nspawn.Machine, refspec, commit string) {
	t.Helper()
	ostreetest.Run(t, "ostree", "--repo="+m.Repo(), "refs", "--force", "--create="+refspec, commit)
}

// follow makes the booted deployment follow a ref.
func follow(t *testing.T, m *nspawn.Machine, booted, refspec string) {
	t.Helper()
	path := filepath.Join(m.Sysroot(), "ostree/deploy/debian/deploy", booted+".0.origin")
	if err := os.WriteFile(path, []byte("[origin]\nrefspec="+refspec+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func requireSignature(m *nspawn.Machine, value string) {
	m.Run("mkdir", "--parents", "/etc/liveapply")
	m.Write("/etc/liveapply/liveapply.conf", "[Apply]\nRequireSignature="+value+"\n")
}

// added makes a commit that adds a file.
func added(t *testing.T, m *nspawn.Machine, parent, name string) string {
	t.Helper()
	return derived(t, m, parent, func(tree *nspawn.Tree) { tree.Write("usr/share/signed/"+name, name, 0o644) })
}

// signedMachine has a remote that the booted deployment follows, with one trusted key. Its name is that of the OS, because ostree admin
// status takes it for that until libostree 2022.7, and fails if it cannot verify what is booted.
func signedMachine(t *testing.T, suite nspawn.Suite) (m *nspawn.Machine, v1 string, trusted gpgKey) {
	t.Helper()
	v1 = product(t, suite)
	m = lab.Machine(t, v1, nspawn.Options{})
	trusted = newGPGKey(t, "")
	addRemote(t, m, "debian", trusted.keyring)
	trusted.sign(t, m.Repo(), v1)
	follow(t, m, v1, "debian:stable")
	m.Boot()
	makeRemoteRepo(m)
	requireSignature(m, "yes")
	return m, v1, trusted
}

func TestOnlyWhatIsSignedIsApplied(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m, v1, trusted := signedMachine(t, suite)
		good := added(t, m, v1, "good")
		requireRefused(t, m, factsOf(t, m), refusal{commit: good, says: []string{good, "remote debian", "no signatures found", "ostree pull"}})
		publish(t, m, good, trusted)
		m.Run("ostree", "pull", "debian", good)
		dryRunAsNobody(t, m, good, 0)
		apply(t, m, good)
		requireUsrIs(t, m, good)
		unsigned := added(t, m, good, "unsigned")
		requireRefused(t, m, factsOf(t, m), refusal{commit: unsigned, says: []string{unsigned, "remote debian", "no signatures found", "ostree pull"}})
		for _, force := range []string{"--allow=force", "--transient"} {
			requireRefused(t, m, factsOf(t, m), refusal{unsigned, []string{force}, []string{"RequireSignature="}})
		}
		requireSays(t, "a dry run", dryRunAsNobody(t, m, unsigned, 1), []string{"RequireSignature=", unsigned, "no signatures found"})
		requireUsrIs(t, m, good)
		requireSignature(m, "no")
		apply(t, m, unsigned)
		requireUsrIs(t, m, unsigned)
		reset(t, m)
	})
}

// dryRunAsNobody returns what is said about a commit to somebody without privilege.
func dryRunAsNobody(t *testing.T, m *nspawn.Machine, commit string, code int) (says string) {
	t.Helper()
	before := factsOf(t, m)
	result := m.Try("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "liveapplyctl", "apply", "--dry-run", commit)
	equal(t, "exit status of a dry run as nobody: "+result.Stderr, result.Code, code)
	requireSame(t, m, before)
	equal(t, "files that were left in /tmp", m.Run("find", "/tmp", "-name", "liveapply-*"), "")
	return result.Stderr
}

func TestSignaturesAreVerifiedAsTheRemoteIsConfigured(t *testing.T) {
	t.Parallel()
	m, v1, trusted := signedMachine(t, nspawn.Trixie)
	stranger, old := newGPGKey(t, ""), newGPGKey(t, "20200101T000000")
	const key, other = signKey("key"), signKey("other")
	allowDummy(m)
	sign := []string{"sign-verify=dummy", "verification-dummy-key=" + string(key)}
	addRemote(t, m, "sign", "", append(sign, "gpg-verify=false")...)
	// What is about summaries or about where to pull from is for pulling.
	addRemote(t, m, "both", trusted.keyring, append(sign, "gpg-verify-summary=true", "unconfigured-state=subscribe first", "collection-id=org.example")...)
	addRemote(t, m, "any", "", "gpg-verify=false", "sign-verify=true", "verification-dummy-key="+string(other))
	addRemote(t, m, "not-built-in", trusted.keyring, "sign-verify=ed25519", "verification-ed25519-key="+strings.Repeat("A", 43)+"=")
	addRemote(t, m, "old", old.keyring)
	addRemote(t, m, "nokeys", "")
	addRemote(t, m, "off", trusted.keyring, "gpg-verify=false")
	addRemote(t, m, "off-too", "", "gpg-verify=0", "sign-verify=false")
	m.Run("mkdir", "--parents", "/etc/ostree/remotes.d")
	m.Write("/etc/ostree/remotes.d/vendor.conf", "[remote \"vendor\"]\nurl=file://"+remoteRepo+"\n")
	if err := os.WriteFile(m.Path("/etc/ostree/remotes.d/vendor.trustedkeys.gpg"), []byte(trusted.keyring), 0o644); err != nil {
		t.Fatal(err)
	}

	unsigned := added(t, m, v1, "unsigned")
	byTrusted, byStranger, byOld := added(t, m, v1, "trusted"), added(t, m, v1, "stranger"), added(t, m, v1, "old")
	trusted.sign(t, m.Repo(), byTrusted)
	stranger.sign(t, m.Repo(), byStranger)
	old.sign(t, m.Repo(), byOld)
	byKey, byOther, byBoth := added(t, m, v1, "key"), added(t, m, v1, "other"), added(t, m, v1, "both")
	key.sign(t, m.Repo(), byKey)
	other.sign(t, m.Repo(), byOther)
	// One of several has to be good.
	stranger.sign(t, m.Repo(), byBoth)
	trusted.sign(t, m.Repo(), byBoth)
	other.sign(t, m.Repo(), byBoth)
	key.sign(t, m.Repo(), byBoth)
	forged := added(t, m, v1, "forged")
	copySignature(t, m, byTrusted, forged)

	for _, test := range []struct {
		remote, commit string
		says           []string
	}{
		{"debian", byStranger, []string{"public key not found", "ostree remote gpg-import debian"}},
		{"debian", forged, []string{"BAD signature"}},
		{"debian", byKey, []string{"no signatures found"}},
		{"old", byOld, []string{"expired"}},
		{"nokeys", byTrusted, []string{"public key not found", "ostree remote gpg-import nokeys"}},
		{"sign", unsigned, []string{"no signatures of my type", "ostree pull --commit-metadata-only sign"}},
		{"sign", byOther, []string{"incorrect signatures found"}},
		{"sign", byTrusted, []string{"no signatures of my type"}},
		{"any", byKey, []string{"incorrect signatures found"}},
		{"both", byTrusted, []string{"no signatures of my type"}},
		{"both", byKey, []string{"no signatures found"}},
		{"not-built-in", byTrusted, []string{"signature type is not implemented"}},
		{"off", byTrusted, []string{"takes commits without a signature", "gpg-verify=true", "sign-verify=true"}},
		{"off-too", byTrusted, []string{"takes commits without a signature", "gpg-verify=true", "sign-verify=true"}},
		{"vendor", byStranger, []string{"public key not found", "ostree remote gpg-import vendor"}},
	} {
		t.Run("refused: "+test.remote+" "+contentOf(m, test.commit), func(t *testing.T) {
			m := m.For(t)
			track(t, m, test.remote+":ref", test.commit)
			requireRefused(t, m, factsOf(t, m), refusal{commit: test.remote + ":ref",
				says: append(test.says, "RequireSignature=", test.commit, "remote "+test.remote)})
		})
	}
	for _, test := range []struct{ remote, commit string }{
		{"debian", byTrusted}, {"debian", byBoth}, {"sign", byKey}, {"sign", byBoth}, {"any", byOther}, {"both", byBoth}, {"vendor", byTrusted},
	} {
		t.Run("applied: "+test.remote+" "+contentOf(m, test.commit), func(t *testing.T) {
			m := m.For(t)
			before := factsOf(t, m)
			track(t, m, test.remote+":ref", test.commit)
			m.Run("liveapplyctl", "apply", "--transient", test.remote+":ref")
			requireUsrIs(t, m, test.commit)
			reset(t, m)
			ostreetest.Run(t, "ostree", "--repo="+m.Repo(), "refs", "--delete", test.remote+":ref")
			requireTree(t, "/etc", m.Snapshot("/etc"), before.etc)
		})
	}
	t.Run("the remote is that of the deployment", func(t *testing.T) {
		m := m.For(t)
		track(t, m, "sign:staged", byKey)
		m.Run("ostree", "admin", "deploy", "--stage", "--os=debian", "sign:staged")
		m.Run("liveapplyctl", "apply")
		requireUsrIs(t, m, byKey)
		reset(t, m)
		m.Run("ostree", "admin", "undeploy", "0")
		requireRefused(t, m, factsOf(t, m), refusal{commit: byKey, says: []string{"remote debian", "no signatures found"}})
	})
	t.Run("there is no remote", func(t *testing.T) {
		m := m.For(t)
		follow(t, m, v1, "a/local/ref")
		requireRefused(t, m, factsOf(t, m), refusal{commit: byTrusted, says: []string{byTrusted, "there is no remote", "REMOTE:REF", "ostree admin set-origin"}})
		follow(t, m, v1, "gone:stable")
		requireRefused(t, m, factsOf(t, m), refusal{commit: byTrusted, says: []string{byTrusted, "has no remote gone", "ostree remote add"}})
		follow(t, m, v1, "debian:stable")
		apply(t, m, byTrusted)
		requireUsrIs(t, m, byTrusted)
	})
}

// contentOf names a commit by the file that it adds.
func contentOf(m *nspawn.Machine, commit string) string {
	words := strings.Fields(m.Run("ostree", "ls", commit, "/usr/share/signed"))
	return filepath.Base(words[len(words)-1])
}

// copySignature gives a commit the signatures of another one.
func copySignature(t *testing.T, m *nspawn.Machine, from, to string) {
	t.Helper()
	path := func(commit string) string {
		return filepath.Join(m.Repo(), "objects", commit[:2], commit[2:]+".commitmeta")
	}
	if output, err := exec.Command("cp", path(from), path(to)).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
}

// The bus has a sandbox of its own.
func TestBusForeseesWhetherASignatureIsMissing(t *testing.T) {
	t.Parallel()
	m, v1 := busMachine(t)
	trusted := newGPGKey(t, "")
	addRemote(t, m, "debian", trusted.keyring)
	good, unsigned := added(t, m, v1, "good"), added(t, m, v1, "unsigned")
	trusted.sign(t, m.Repo(), good)
	track(t, m, "debian:good", good)
	track(t, m, "debian:unsigned", unsigned)
	requireSignature(m, "yes")
	for rev, want := range map[string]string{"debian:good": "done", "debian:unsigned": "refused"} {
		l := listen(t, m)
		_, result, message := l.finished(t, call(t, m, "Diff", "s", rev))
		equal(t, fmt.Sprintf("result of Diff for %s, which says %s", rev, message), result, want)
	}
	m.Run("liveapplyctl", "apply", "debian:good")
	requireUsrIs(t, m, good)
}
