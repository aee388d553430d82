package ostree_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
)

// refRepo makes a repo with two commits.
func refRepo(t *testing.T) (path string, first, second ostree.Checksum) {
	t.Helper()
	path = ostreetest.Repo(t)
	commit := func(content string) ostree.Checksum {
		dir := ostreetest.Spec{"f": ostreetest.File(content)}.Write(t)
		return checksum(t, ostreetest.Commit(t, path, "base", dir))
	}
	return path, commit("1"), commit("2")
}

// refFiles is what is below refs and tmp: modes, contents and targets.
func refFiles(t *testing.T, repo string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, top := range []string{"refs", "tmp"} {
		err := filepath.WalkDir(filepath.Join(repo, top), func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			var content []byte
			target := ""
			if info.Mode().IsRegular() {
				content, err = os.ReadFile(path)
			} else if info.Mode()&fs.ModeSymlink != 0 {
				target, err = os.Readlink(path)
			}
			files[strings.TrimPrefix(path, repo)] = fmt.Sprintf("%s %s%s", info.Mode(), content, target)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func TestSetsAndRemovesRefsAsLibostreeDoes(t *testing.T) {
	ours, first, second := refRepo(t)
	theirs := filepath.Join(t.TempDir(), "repo")
	ostreetest.Run(t, "cp", "-a", ours, theirs)
	repo := open(t, ours)
	set := func(name string, c ostree.Checksum) {
		t.Helper()
		if err := repo.SetRef(name, c); err != nil {
			t.Fatal(err)
		}
		ostreetest.Run(t, "ostree", "--repo="+theirs, "refs", "--create="+name, "--force", c.String())
		if got := revParse(t, ours, name); got != c.String() {
			t.Errorf("%s is %s, want %s", name, got, c)
		}
	}
	remove := func(name string) {
		t.Helper()
		if err := repo.RemoveRef(name); err != nil {
			t.Fatal(err)
		}
		ostreetest.Run(t, "ostree", "--repo="+theirs, "refs", "--delete", name)
	}
	same := func(step string) {
		t.Helper()
		if diff := cmp.Diff(refFiles(t, theirs), refFiles(t, ours)); diff != "" {
			t.Errorf("%s (-libostree +ours):\n%s", step, diff)
		}
		ostreetest.Run(t, "ostree", "--repo="+ours, "fsck", "-q")
	}
	for _, dir := range []string{ours, theirs} {
		ostreetest.Run(t, "ostree", "--repo="+dir, "refs", "--create=an/alias", "--alias", "base")
	}
	set("liveapply/live", first)
	set("top", first)
	set("a/b/c/d", second)
	set("ünï_1.x-y", second)
	same("new")
	set("liveapply/live", second)
	set("liveapply/live", second)
	set("base", first)
	set("an/alias", second)
	same("replaced")
	remove("liveapply/live")
	remove("a/b/c/d")
	remove("an/alias")
	remove("none/such") // also no error of ostree refs --delete
	same("removed")
	set("liveapply/live", first)
	same("again")
}

// What libostree refuses for a name is refused, and nothing is written or removed.
func TestRefusesRefNamesAsLibostreeDoes(t *testing.T) {
	path, first, _ := refRepo(t)
	repo := open(t, path)
	if err := repo.SetRef("taken/by/this", first); err != nil {
		t.Fatal(err)
	}
	before := refFiles(t, path)
	for _, name := range []string{
		"", "..", "../heads/x", "a/../x", "/x", "x/", "a//x", ".hidden", "a/.hidden", "-x", "a b", "x^", "\xff", "*", strings.Repeat("a", 64),
		"taken/by", "taken/by/this/below", strings.Repeat("n", 256),
	} {
		if err := repo.SetRef(name, first); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("set ref %q", name)) {
			t.Errorf("%q: %v", name, err)
		}
		if out, err := exec.Command("ostree", "--repo="+path, "refs", "--create="+name, first.String()).CombinedOutput(); err == nil {
			t.Errorf("%q: libostree takes it: %s", name, out)
		}
	}
	for _, name := range []string{"", "..", "base/../base", "/base", "remote:base", "taken/by"} {
		if err := repo.RemoveRef(name); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("remove ref %q", name)) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := repo.SetRef("remote:base", first); err == nil { // libostree takes it, for a remote's
		t.Error("a remote's ref was set")
	}
	if err := repo.SetRef("zero", ostree.Checksum{}); err == nil {
		t.Error("a ref was set to no commit")
	}
	if diff := cmp.Diff(before, refFiles(t, path)); diff != "" {
		t.Errorf("changed (-before +after):\n%s", diff)
	}
}

func TestRefsAreSetInPlaceOfNoLinkThatLeadsOut(t *testing.T) {
	path, first, _ := refRepo(t)
	out := t.TempDir()
	if err := os.Symlink(out, filepath.Join(path, "refs/heads/link")); err != nil {
		t.Fatal(err)
	}
	repo := open(t, path)
	if err := repo.SetRef("link/x", first); err == nil {
		t.Error("a ref was set through a symbolic link")
	}
	if err := repo.RemoveRef("link/x"); err == nil {
		t.Error("a ref was removed through a symbolic link")
	}
	if entries, err := os.ReadDir(out); err != nil || len(entries) != 0 {
		t.Errorf("the link's target has %v, %v", entries, err)
	}
}

func TestSettingARefTellsByTheMtimeOfTheRepo(t *testing.T) {
	path, first, _ := refRepo(t)
	repo := open(t, path)
	old := time.Unix(1000, 0)
	for name, change := range map[string]func() error{
		"set":    func() error { return repo.SetRef("x", first) },
		"remove": func() error { return repo.RemoveRef("base") },
	} {
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.ModTime().Equal(old) {
			t.Errorf("%s: mtime %v, %v", name, info.ModTime(), err)
		}
	}
}

// A kill leaves at worst a file in tmp: libostree does not take it for a ref, and the next SetRef clears it away.
func TestWhatAKilledSetRefLeavesIsNoRef(t *testing.T) {
	path, first, second := refRepo(t)
	repo := open(t, path)
	want := ostreetest.Run(t, "ostree", "--repo="+path, "refs", "--list")
	litter := filepath.Join(path, "tmp/liveapply-ref")
	if err := os.WriteFile(litter, []byte(second.String()+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := ostreetest.Run(t, "ostree", "--repo="+path, "refs", "--list"); got != want {
		t.Errorf("refs with what is left in tmp: %q, want %q", got, want)
	}
	ostreetest.Run(t, "ostree", "--repo="+path, "fsck", "-q")
	if err := repo.SetRef("base", first); err != nil {
		t.Fatal(err)
	}
	if got := revParse(t, path, "base"); got != first.String() {
		t.Errorf("base is %s, want %s", got, first)
	}
	if _, err := os.Lstat(litter); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still in tmp: %v", err)
	}
}

// At every instant a ref that is replaced is whole.
func TestReadersSeeTheOldOrTheNewRef(t *testing.T) {
	path, first, second := refRepo(t)
	repo := open(t, path)
	done := make(chan error)
	go func() {
		for range 200 {
			if err := errors.Join(repo.SetRef("base", first), repo.SetRef("base", second)); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
			if got, err := repo.Resolve("base"); err != nil || got != first && got != second {
				t.Fatalf("base is %s, %v", got, err)
			}
		}
	}
}
