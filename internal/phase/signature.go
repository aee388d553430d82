package phase

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/report"
)

// remotesDir is where the remotes of a booted system may be configured, beside its repo's config.
const remotesDir = "/etc/ostree/remotes.d"

// refuseUnsigned makes sure, if the configuration asks for it, that a commit is signed as its remote's configuration asks for; rev is
// what was asked for. The signature covers the commit object, and through the checksums in it all that the commit consists of.
func (p *preparation) refuseUnsigned(ctx context.Context, commit ostree.Checksum, rev string) error {
	if !p.config.RequireSignature {
		return nil
	}
	report.Status("verifying the signature")
	name, err := p.remoteOf(commit, rev)
	if err != nil {
		return err
	}
	remote, err := p.storage.Repo.Remote(name, remotesDir)
	if err != nil {
		return fmt.Errorf("verifying the signature of commit %s, which RequireSignature= asks for: %w", commit, err)
	}
	problem, err := p.verifySignature(ctx, remote, commit)
	if err != nil {
		return fmt.Errorf("verifying the signature of commit %s, which RequireSignature= asks for: %w", commit, err)
	}
	if problem != "" {
		return fmt.Errorf("RequireSignature= forbids commit %s, for which the configuration of the remote %s does not vouch: %s", commit, name, problem)
	}
	return nil
}

// remoteOf finds the remote that a commit is to be from: that of the ref that was asked for, else the one that a deployment of the commit
// follows, else the one that the booted deployment follows, from which an upgrade would come.
func (p *preparation) remoteOf(commit ostree.Checksum, rev string) (string, error) {
	deployments, err := p.machine.Sysroot.Deployments()
	if err != nil {
		return "", err
	}
	refspecs := []string{rev, p.config.Revision}
	for _, deployment := range deployments {
		if deployment.Commit == commit {
			refspecs = append(refspecs, deployment.Origin)
		}
	}
	for _, refspec := range append(refspecs, p.machine.Booted.Origin) {
		if remote := ostree.RemoteOf(refspec); remote != "" {
			return remote, nil
		}
	}
	return "", fmt.Errorf("RequireSignature= forbids commit %s, because there is no remote that would say by which keys it is to be signed: "+
		"ask for a ref of one (REMOTE:REF), or have the booted deployment follow one (ostree admin set-origin)", commit)
}

// verifySignature has ostree verify a commit as when it pulls it from a remote, and returns what is wrong and what to do, "" if it is signed
// as the remote's configuration asks for. Only a pull has an exit status that follows all of that configuration: ostree show exits with 0 for a
// bad signature, ostree sign knows of no remote. It goes from a repo that has nothing but this commit into another one.
//
// A pull also goes well where nothing is verified, because the configuration says so or because ostree was built without. So the same
// commit without its signatures must have been refused before.
func (p *preparation) verifySignature(ctx context.Context, remote *ostree.Remote, commit ostree.Checksum) (problem string, err error) {
	parent, prefix := p.machine.State.Run, machine.ScratchPrefix
	if p.onlyLooks {
		parent, prefix = os.TempDir(), "liveapply-"
	}
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	t := trial{p.storage.Repo, remote, commit}
	refused, err := t.pull(ctx, filepath.Join(dir, "unsigned"), ".commit")
	if err != nil {
		return "", err
	}
	if refused == "" {
		return "it takes commits without a signature, too: set gpg-verify=true or sign-verify=true for it (ostree.repo-config(5))", nil
	}
	refused, err = t.pull(ctx, filepath.Join(dir, "signed"), ".commit", ".commitmeta")
	if err != nil || refused == "" {
		return "", err
	}
	return fmt.Sprintf("%s: pull its signature (ostree pull --commit-metadata-only %s %s), or, if you trust who signed it, add the key to those of the remote "+
		"(ostree remote gpg-import %s, or verification-TYPE-key= for sign-verify=)", refused, remote.Name, commit, remote.Name), nil
}

// trial is a commit that is pulled to see whether that goes.
type trial struct {
	repo   *ostree.Repo
	remote *ostree.Remote
	commit ostree.Checksum
}

// pull pulls the given objects of the commit: itself, and its signatures. If that is refused, it returns why, in ostree's
// words. It works in a new directory dir.
func (t trial) pull(ctx context.Context, dir string, objects ...string) (refused string, err error) {
	from, into := filepath.Join(dir, "from"), filepath.Join(dir, "into")
	for _, repo := range []string{from, into} {
		if err := os.MkdirAll(repo, 0o700); err != nil {
			return "", err
		}
		if err := machine.RunOSTree(ctx, "--repo="+repo, "init", "--mode=archive"); err != nil {
			return "", err
		}
	}
	for _, suffix := range objects {
		if err := t.copyObject(from, suffix); err != nil {
			return "", err
		}
	}
	if err := t.configure(into, (&url.URL{Scheme: "file", Path: from}).String()); err != nil {
		return "", err
	}
	// --untrusted compares the commit with its checksum.
	pull := exec.CommandContext(ctx, "ostree", "--repo="+into, "pull", "--commit-metadata-only", "--untrusted", t.remote.Name, t.commit.String())
	// gpg gets a home directory below TMPDIR. The reason goes into the history, which is in English.
	pull.Env = append(os.Environ(), "TMPDIR="+dir, "LC_ALL=C.UTF-8")
	output, err := pull.CombinedOutput()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() && ctx.Err() == nil {
		return strings.TrimPrefix(strings.Join(strings.Fields(string(output)), " "), "error: "), nil
	}
	return "", err
}

// copyObject copies an object of the commit, if there is one, into a repo.
func (t trial) copyObject(repo, suffix string) error {
	digits := t.commit.String()
	object := filepath.Join("objects", digits[:2], digits[2:]+suffix)
	content, err := os.ReadFile(filepath.Join(t.repo.Path(), object))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(repo, filepath.Dir(object)), 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(repo, object), content, 0o600)
}

// configure gives a repo the remote, at another address and with no more options than those about signatures of commits.
func (t trial) configure(repo, url string) error {
	lines := []string{"", `[remote "` + t.remote.Name + `"]`, "url=" + url}
	for _, key := range slices.Sorted(maps.Keys(t.remote.Options)) {
		lines = append(lines, key+"="+t.remote.Options[key])
	}
	config, err := os.OpenFile(filepath.Join(repo, "config"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = config.WriteString(strings.Join(lines, "\n") + "\n")
	if err := errors.Join(err, config.Close()); err != nil || t.remote.Keyring == nil {
		return err
	}
	return os.WriteFile(filepath.Join(repo, ostree.KeyringName(t.remote.Name)), t.remote.Keyring, 0o600)
}
