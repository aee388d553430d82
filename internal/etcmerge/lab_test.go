package etcmerge

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/ostree"
)

// tester is what *testing.T and *rapid.T have in common.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
}

// lab is a sysroot made by the ostree command, with one deployment of v1, and v2 and v3 in its repo.
type lab struct {
	t    tester
	root string // of everything
	sys  string
	repo *ostree.Repo
	dirs Dirs // of the deployment of v1
}

// newLab commits what the shell scripts make of usr/etc, each starting from what the one before made, and deploys the first.
func newLab(t tester, root string, versions ...string) *lab {
	t.Helper()
	var makes []func(string)
	for _, script := range versions {
		makes = append(makes, func(etc string) { t.Helper(); sh(t, etc, script) })
	}
	return newLabWith(t, root, makes)
}

// newLabWith does it with functions.
func newLabWith(t tester, root string, versions []func(etc string)) *lab {
	t.Helper()
	l := &lab{t: t, root: root, sys: filepath.Join(root, "sys")}
	sh(t, root, `mkdir -p sys tree/usr/lib/modules/6.0 tree/usr/etc tree/boot tree/sysroot tree/var
		cd tree/usr/lib; echo ID=lab > os-release; echo k > modules/6.0/vmlinuz; echo i > modules/6.0/initramfs.img`)
	sh(t, root, `ostree admin init-fs --modern sys
		ostree --repo=sys/ostree/repo config set sysroot.bootloader none; ostree --repo=sys/ostree/repo config set core.fsync false
		ostree admin --sysroot=sys os-init lab`)
	for i, makeVersion := range versions {
		makeVersion(filepath.Join(root, "tree/usr/etc"))
		sh(t, root, fmt.Sprintf("ostree --repo=sys/ostree/repo commit -b v%d --tree=dir=tree", i+1))
	}
	l.deploy("v1")
	l.open()
	return l
}

func (l *lab) open() {
	l.t.Helper()
	repo, err := ostree.OpenRepo(filepath.Join(l.sys, "ostree/repo"))
	if err != nil {
		l.t.Fatal(err)
	}
	l.repo = repo
	l.dirs = Dirs{Etc: l.etcOf("v1"), Store: filepath.Join(l.sys, "ostree/store")}
}

func (l *lab) close() { l.repo.Close() }

func newTestLab(t *testing.T, versions ...string) *lab {
	t.Helper()
	l := newLab(t, t.TempDir(), versions...)
	t.Cleanup(l.close)
	return l
}

func (l *lab) deploy(rev string) {
	l.t.Helper()
	sh(l.t, l.root, "ostree admin --sysroot=sys deploy --os=lab "+rev)
}

func (l *lab) commit(rev string) ostree.Checksum {
	l.t.Helper()
	out := sh(l.t, l.root, "ostree --repo=sys/ostree/repo rev-parse "+rev)
	c, err := ostree.ParseChecksum(strings.TrimSpace(out))
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

func (l *lab) etcOf(rev string) string {
	l.t.Helper()
	return filepath.Join(l.sys, "ostree/deploy/lab/deploy", l.commit(rev).String()+".0", "etc")
}

// etcTree returns usr/etc of a commit.
func (l *lab) etcTree(rev string) ostree.Tree {
	l.t.Helper()
	commit, err := l.repo.Commit(l.commit(rev))
	if err != nil {
		l.t.Fatal(err)
	}
	entry, err := l.repo.Lookup(commit.Root, "usr/etc")
	if err != nil {
		l.t.Fatal(err)
	}
	return entry.Tree()
}

// local runs a shell script in /etc.
func (l *lab) local(script string) { l.t.Helper(); sh(l.t, l.dirs.Etc, script) }

func (l *lab) plan(old, new string) *Plan {
	l.t.Helper()
	plan, err := l.tryPlan(old, new)
	if err != nil {
		l.t.Fatal(err)
	}
	return plan
}

func (l *lab) tryPlan(old, new string) (*Plan, error) {
	l.t.Helper()
	return MakePlan(context.Background(), l.repo, l.etcTree(old), l.etcTree(new), l.dirs)
}

func (l *lab) apply(plan *Plan) *Result {
	l.t.Helper()
	result, err := Apply(context.Background(), l.repo, plan, l.dirs, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	return result
}

func (l *lab) rollback() *Result {
	l.t.Helper()
	result, err := Rollback(context.Background(), l.dirs)
	if err != nil {
		l.t.Fatal(err)
	}
	return result
}

func (l *lab) reset() *Result {
	l.t.Helper()
	result, err := Reset(context.Background(), l.dirs)
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := os.Lstat(l.dirs.Store); !os.IsNotExist(err) {
		l.t.Errorf("the Store is still there after Reset: %v", err)
	}
	return result
}

func (l *lab) commitJournal() {
	l.t.Helper()
	if err := Fold(l.dirs); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) etc() map[string]thing { l.t.Helper(); return scan(l.t, l.dirs.Etc) }

func (l *lab) read(path string) string {
	l.t.Helper()
	content, err := os.ReadFile(filepath.Join(l.dirs.Etc, path))
	if err != nil {
		l.t.Fatal(err)
	}
	return string(content)
}

// sh runs a shell script and returns what it says.
func sh(t tester, dir, script string) string {
	t.Helper()
	out, err := trySh(dir, script)
	if err != nil {
		t.Fatalf("%s\n%v: %s", script, err, out)
	}
	return out
}

func trySh(dir, script string) (string, error) {
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = dir
	// Deployments are not made immutable: they have to be deleted after the test.
	cmd.Env = append(os.Environ(), "OSTREE_SYSROOT_DEBUG=mutable-deployments", "LC_ALL=C")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// thing is all there is to know about a path. It is read by code that has nothing in common with the package's.
type thing struct {
	What    string // mode, owner and content
	Xattrs  string
	Inode   uint64 // of all but directories
	MTime   int64
	SubDirs bool
}

// scan reads a tree, without going into what is mounted in it.
func scan(t tester, root string) map[string]thing {
	t.Helper()
	things := map[string]thing{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		x, err := scanOne(path)
		if os.IsNotExist(err) { // overlayfs lists a whiteout in a directory that only one layer has
			return nil
		}
		things[rel] = x
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return things
}

func scanOne(path string) (thing, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return thing{}, err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return thing{}, err
	}
	x := thing{What: fmt.Sprintf("%v %d:%d", info.Mode(), st.Uid, st.Gid), MTime: info.ModTime().UnixNano()}
	switch {
	case info.Mode().IsRegular():
		content, err := os.ReadFile(path)
		if err != nil {
			return thing{}, err
		}
		x.What += fmt.Sprintf(" %q", content)
	case info.Mode()&os.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return thing{}, err
		}
		x.What += " -> " + target
	}
	if !info.IsDir() {
		x.Inode = st.Ino
	}
	x.SubDirs = info.IsDir()
	list := make([]byte, 65536)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return x, err
	}
	names := strings.Split(strings.Trim(string(list[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if name == "" {
			continue
		}
		value := make([]byte, 65536)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return x, err
		}
		x.Xattrs += fmt.Sprintf("%s=%q ", name, value[:n])
	}
	return x, nil
}

// without returns things without the given paths.
func without(things map[string]thing, paths ...string) map[string]thing {
	rest := map[string]thing{}
	for path, x := range things {
		rest[path] = x
	}
	for _, path := range paths {
		delete(rest, path)
	}
	return rest
}

// contentOnly leaves out what only a tree that was restored has in common with what it was.
func contentOnly(things map[string]thing) map[string]thing {
	rest := map[string]thing{}
	for path, x := range things {
		rest[path] = thing{What: x.What, Xattrs: x.Xattrs}
	}
	return rest
}

func wantSame(t tester, what string, want, got map[string]thing) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func wantPaths(t tester, what string, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}
