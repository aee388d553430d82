package layer

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/nstest"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
	"github.com/liveapply/liveapply/internal/treediff"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// update is a repo with two commits.
type update struct {
	t        testing.TB
	repo     *ostree.Repo
	old, new string
	changes  []treediff.Change // of /usr
}

func newUpdate(t testing.TB, before, after ostreetest.Spec) *update {
	t.Helper()
	path := ostreetest.Repo(t)
	u := &update{t: t, old: ostreetest.Commit(t, path, "old", before.Write(t)), new: ostreetest.Commit(t, path, "new", after.Write(t))}
	repo, err := ostree.OpenRepo(path)
	u.check(err)
	t.Cleanup(func() { repo.Close() })
	u.repo, u.changes = repo, diff(t, repo, u.old, u.new)
	return u
}

func (u *update) check(err error) {
	u.t.Helper()
	if err != nil {
		u.t.Fatal(err)
	}
}

// beside names something beside the repo that belongs to a commit.
func (u *update) beside(name, commit string) string {
	return filepath.Join(filepath.Dir(u.repo.Path()), name+"-"+commit[:12])
}

// backwards is the update from the new commit to the old one.
func (u *update) backwards() *update {
	u.t.Helper()
	return &update{t: u.t, repo: u.repo, old: u.new, new: u.old, changes: diff(u.t, u.repo, u.new, u.old)}
}

// build makes the layer beside the repo and returns its path.
func (u *update) build() (string, Stats) {
	u.t.Helper()
	dir := u.beside("layer", u.new)
	stats, err := Build(u.t.Context(), u.repo, u.changes, dir, &Progress{})
	u.check(err)
	return dir, stats
}

// checkout has the ostree command check a commit's /usr out.
func (u *update) checkout(commit string) string {
	u.t.Helper()
	dir := u.beside("checkout", commit)
	if _, err := os.Lstat(dir); err == nil {
		return dir
	}
	ostreetest.Run(u.t, "ostree", "--repo="+u.repo.Path(), "checkout", "--subpath=/usr", commit, dir)
	return dir
}

// mount shows a layer above the old tree, as overlayfs does, and returns the path at which it does.
func (u *update) mount(layer string) string {
	u.t.Helper()
	target := u.beside("merged", u.new)
	u.check(os.Mkdir(target, 0o755))
	options := "lowerdir=" + layer + ":" + u.checkout(u.old) + ",redirect_dir=nofollow,metacopy=off,index=off"
	u.check(unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, options))
	u.t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	return target
}

// everything describes a directory and all that is below, by path, as far as stat, listxattr and the content tell.
func everything(t testing.TB, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		all[name], err = describe(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func describe(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", err
	}
	content := []byte{}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		content, err = os.ReadFile(path)
	case unix.S_IFLNK:
		var target string
		target, err = os.Readlink(path)
		content = []byte(target)
	}
	if err != nil {
		return "", err
	}
	modified := ""
	if st.Mode&unix.S_IFMT == unix.S_IFDIR { // the ostree command copies some files, and lets them have the time of that
		modified = fmt.Sprint(st.Mtim)
	}
	xattrs, err := xattrs(path)
	return fmt.Sprintf("%o %d:%d %s content %q xattrs %q", st.Mode, st.Uid, st.Gid, modified, content, xattrs), err
}

func xattrs(path string) ([]string, error) {
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return nil, fmt.Errorf("llistxattr %s: %w", path, err)
	}
	var all []string
	for _, name := range strings.FieldsFunc(string(names[:n]), func(r rune) bool { return r == 0 }) {
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("lgetxattr %s %s: %w", path, name, err)
		}
		all = append(all, fmt.Sprintf("%s=%q", name, value[:n]))
	}
	slices.Sort(all)
	return all, nil
}

// differences compares two trees.
func differences(t testing.TB, want, got map[string]string) string {
	t.Helper()
	var lines []string
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got[path] != want[path] {
			lines = append(lines, fmt.Sprintf("%.80q\n\tis     %.400s\n\tshould %.400s", path, got[path], want[path]))
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			lines = append(lines, fmt.Sprintf("%.80q should not be there", path))
		}
	}
	return strings.Join(lines[:min(10, len(lines))], "\n")
}

// merge merges Specs; later ones win.
func merge(specs ...ostreetest.Spec) ostreetest.Spec {
	all := ostreetest.Spec{}
	for _, spec := range specs {
		maps.Copy(all, spec)
	}
	return all
}

func diff(t testing.TB, repo *ostree.Repo, old, new string) []treediff.Change {
	t.Helper()
	changes, err := treediff.Diff(t.Context(), repo, usr(t, repo, old), usr(t, repo, new))
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

// usr returns a commit's /usr.
func usr(t testing.TB, repo *ostree.Repo, commit string) ostree.Tree {
	t.Helper()
	checksum, err := ostree.ParseChecksum(commit)
	if err != nil {
		t.Fatal(err)
	}
	c, err := repo.Commit(checksum)
	if err != nil {
		t.Fatal(err)
	}
	entry, err := repo.Lookup(c.Root, "usr")
	if err != nil {
		t.Fatal(err)
	}
	return entry.Tree()
}
