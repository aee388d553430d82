package nspawn

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// WithProduct returns a commit that has the project on top of the given one, installed by meson as a
// package would be.
func (l *Lab) WithProduct(t TB, base string) string {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if commit, ok := l.products[base]; ok {
		return commit
	}
	if l.destdir == "" {
		l.destdir = l.install(t, l.source, "product")
	}
	l.products[base] = l.commit(t, base, 0, "--tree=ref="+base, "--tree=dir="+l.destdir)
	return l.products[base]
}

// install builds the project and installs it below a directory, which it returns.
func (l *Lab) install(t TB, source, name string) string {
	t.Helper()
	build, destdir := filepath.Join(l.run, "build-of-"+name), filepath.Join(l.run, name)
	must(t, "meson", "setup", "--prefix=/usr", "--sysconfdir=/etc", "--localstatedir=/var", build, source)
	must(t, "meson", "install", "-C", build, "--destdir="+destdir)
	// In a commit, the default of /etc is /usr/etc.
	etc := filepath.Join(destdir, "etc")
	if _, err := os.Lstat(etc); err == nil {
		if err := os.Rename(etc, filepath.Join(destdir, "usr", "etc")); err != nil {
			t.Fatalf("%v", err)
		}
	}
	if _, err := os.Lstat(filepath.Join(destdir, "var")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("meson install puts files into /var, which no commit can carry (%v)", err)
	}
	return destdir
}

// WithEarlierProduct is WithProduct for the project as it was in a commit of its git history, which the checkout has to have.
func (l *Lab) WithEarlierProduct(t TB, base, revision string) string {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	key := base + " " + revision
	if l.products[key] == "" {
		source := filepath.Join(l.run, "source-"+revision)
		must(t, "mkdir", source)
		must(t, "sh", "-c", "git -c safe.directory='*' -C \"$1\" archive \"$2\" | tar -x -C \"$3\"", "sh", l.source, revision, source)
		l.products[key] = l.commit(t, base, 0, "--tree=ref="+base, "--tree=dir="+l.install(t, source, "product-"+revision))
	}
	return l.products[key]
}

// Derive returns a new commit: the given one, edited. It is a minute younger.
func (l *Lab) Derive(t TB, parent string, edit func(*Tree)) string {
	t.Helper()
	dir := l.tempDir(t, "derive")
	tree := &Tree{t: t, dir: filepath.Join(dir, "tree")}
	must(t, "ostree", "--repo="+l.repo(), "checkout", "--require-hardlinks", parent, tree.dir)
	edit(tree)
	commit := l.commit(t, parent, time.Minute, "--parent="+parent, "--link-checkout-speedup", "--tree=dir="+tree.dir)
	tree.check(os.RemoveAll(dir)) // now: all trees link to the same files, of which a filesystem allows so many
	return commit
}

// WithInitramfs returns a commit that has an initramfs beside the given one, of [Bootable], with what the project puts into one if it is installed there.
func (l *Lab) WithInitramfs(t TB, base string) string {
	t.Helper()
	return l.Derive(t, base, func(tree *Tree) { tree.check(l.buildTree("initramfs", tree.dir)) })
}

// commit makes a commit that is younger than another by age, and returns its checksum. It may be pulled by any ref.
func (l *Lab) commit(t TB, base string, age time.Duration, args ...string) string {
	t.Helper()
	parent, ok := l.times.Load(base)
	if !ok {
		t.Fatalf("commit %s is not one of this Lab's", base)
	}
	made := parent.(time.Time).Add(age)
	commit := must(t, "ostree", append([]string{"--repo=" + l.repo(), "commit", "--orphan", "--no-bindings", timestamp(made)}, args...)...)
	l.times.Store(commit, made)
	return commit
}

// Release makes a commit the newest one of a branch in the repo that machines pull from, and returns that repo's directory. It is an archive, which
// can be served over HTTP, and is shared by all tests.
func (l *Lab) Release(t TB, branch, commit string) (dir string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	dir = filepath.Join(l.run, "remote")
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		must(t, "ostree", "--repo="+dir, "init", "--mode=archive")
		must(t, "ostree", "--repo="+dir, "config", "set", "core.fsync", "false")
		must(t, "ostree", "--repo="+dir, "config", "set", "archive.zlib-level", "1")
	}
	must(t, "ostree", "--repo="+dir, "pull-local", l.repo(), commit)
	must(t, "ostree", "--repo="+dir, "refs", "--force", "--create="+branch, commit)
	return dir
}

// Checkout returns a directory with the files of a commit as ostree checkout makes them, to compare with.
// It shares its files with the repo: only read it.
func (l *Lab) Checkout(t TB, commit string) string {
	t.Helper()
	dir := filepath.Join(l.tempDir(t, "checkout"), "tree")
	must(t, "ostree", "--repo="+l.repo(), "checkout", "--require-hardlinks", commit, dir)
	return dir
}

// tempDir makes a directory that lasts as long as the test, on the filesystem of the repo.
func (l *Lab) tempDir(t TB, name string) string {
	t.Helper()
	dir, err := os.MkdirTemp(l.run, name+"-")
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatalf("%v", err)
		}
	})
	return dir
}

// Tree is the content of a commit that is being made. Paths are relative to its root ("usr/etc/passwd").
// Its files are shared with the repo until a method gives them an inode of their own; change them only
// through these methods.
type Tree struct {
	t   TB
	dir string
}

// Path returns the path on the host, for reading.
func (tr *Tree) Path(path string) string { return filepath.Join(tr.dir, path) }

// Read returns a file's content.
func (tr *Tree) Read(path string) string {
	tr.t.Helper()
	data, err := os.ReadFile(tr.Path(path))
	tr.check(err)
	return string(data)
}

// Write makes or replaces a regular file, owned by root, and the directories above it. Mode is the
// permission bits as in chmod(2), also the setuid bit.
func (tr *Tree) Write(path, content string, mode uint32) {
	tr.t.Helper()
	tr.clear(path)
	tr.check(os.WriteFile(tr.Path(path), []byte(content), 0o600))
	tr.check(unix.Chmod(tr.Path(path), mode))
}

// Symlink makes or replaces a symbolic link.
func (tr *Tree) Symlink(target, path string) {
	tr.t.Helper()
	tr.clear(path)
	tr.check(os.Symlink(target, tr.Path(path)))
}

// Mkdir makes a directory, and those above it; what was at the path is replaced.
func (tr *Tree) Mkdir(path string, mode uint32) {
	tr.t.Helper()
	tr.clear(path)
	tr.check(os.Mkdir(tr.Path(path), 0o700))
	tr.check(unix.Chmod(tr.Path(path), mode))
}

// Remove removes a file, or a directory with all that is in it.
func (tr *Tree) Remove(path string) {
	tr.t.Helper()
	_, err := os.Lstat(tr.Path(path))
	tr.check(err)
	tr.check(os.RemoveAll(tr.Path(path)))
}

// Rename moves a file or directory.
func (tr *Tree) Rename(from, to string) {
	tr.t.Helper()
	tr.check(os.MkdirAll(filepath.Dir(tr.Path(to)), 0o755))
	tr.check(os.Rename(tr.Path(from), tr.Path(to)))
}

// Chmod sets the permission bits, as in chmod(2), of a file or directory.
func (tr *Tree) Chmod(path string, mode uint32) {
	tr.t.Helper()
	tr.unshare(path)
	tr.check(unix.Chmod(tr.Path(path), mode))
}

// Chown sets the owner of a file, directory or link.
func (tr *Tree) Chown(path string, uid, gid int) {
	tr.t.Helper()
	tr.unshare(path)
	tr.check(os.Lchown(tr.Path(path), uid, gid))
}

// Setxattr sets an extended attribute of a file or directory.
func (tr *Tree) Setxattr(path, name string, value []byte) {
	tr.t.Helper()
	tr.unshare(path)
	tr.check(unix.Lsetxattr(tr.Path(path), name, value, 0))
}

// clear makes way for a new file.
func (tr *Tree) clear(path string) {
	tr.t.Helper()
	tr.check(os.RemoveAll(tr.Path(path)))
	tr.check(os.MkdirAll(filepath.Dir(tr.Path(path)), 0o755))
}

// unshare gives a file an inode of its own.
func (tr *Tree) unshare(path string) {
	tr.t.Helper()
	info, err := os.Lstat(tr.Path(path))
	tr.check(err)
	if info.IsDir() {
		return
	}
	must(tr.t, "cp", "-a", tr.Path(path), tr.Path(path)+".unshared")
	tr.check(os.Rename(tr.Path(path)+".unshared", tr.Path(path)))
}

func (tr *Tree) check(err error) {
	tr.t.Helper()
	if err != nil {
		tr.t.Fatalf("edit the tree: %v", err)
	}
}
