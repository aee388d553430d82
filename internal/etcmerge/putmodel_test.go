package etcmerge

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/liveapply/liveapply/internal/treediff"
)

// A generated tree: by path, "mask", "dir", "opaque", "link …" or a file's content. Names that begin with d are directories wherever they are, unless
// masked; those with f are files or links; x is a file in /etc and may be a directory in a tree.
type putTree map[string]string

func drawPutTree(t *rapid.T, dir string, depth int, isEtc bool, tree putTree) {
	for _, name := range []string{"d1", "d2", "f1", "f2", "x"} {
		path := filepath.Join(dir, name)
		isDir := name[0] == 'd' || name == "x" && !isEtc && rapid.Bool().Draw(t, "dir")
		kinds := []string{"", "", "1", "2", "link 1", "mask"}
		if isDir {
			kinds = []string{"", "dir", "dir", "opaque", "mask"}
		}
		if isEtc {
			isForTrees := func(kind string) bool { return kind == "mask" || kind == "opaque" || kind == "link 1" && name == "x" }
			kinds = slices.DeleteFunc(kinds, isForTrees)
		}
		kind := rapid.SampledFrom(kinds).Draw(t, path)
		if kind == "" || isDir && depth == 0 {
			continue
		}
		tree[path] = kind
		if kind == "dir" || kind == "opaque" {
			drawPutTree(t, path, depth-1, isEtc, tree)
		}
	}
}

// write makes the tree on disk.
func (tree putTree) write(t *rapid.T, root string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(root, 0o755))
	for _, path := range slices.SortedFunc(maps.Keys(tree), comparePaths) {
		full := filepath.Join(root, path)
		switch kind, target, _ := strings.Cut(tree[path], " "); kind {
		case "mask":
			must(unix.Mknod(full, unix.S_IFCHR, 0))
		case "opaque":
			must(os.Mkdir(full, 0o755))
			must(unix.Setxattr(full, opaqueXattr, []byte("y"), 0))
		case "dir":
			must(os.Mkdir(full, 0o755))
		case "link":
			must(os.Symlink(target, full))
		default:
			must(os.WriteFile(full, []byte(kind), 0o644))
		}
	}
}

// speaksOf tells whether trees, topmost first, decide what is at a path that is no directory.
func speaksOf(trees []putTree, path string) bool {
	for _, tree := range trees {
		for dir, _ := split(path); dir != ""; dir, _ = split(dir) {
			if kind := tree[dir]; kind != "" && kind != "dir" {
				return true
			}
		}
		if tree[path] != "" {
			return true
		}
	}
	return false
}

// has tells whether trees, topmost first, have something of their own at a path that is no directory.
func has(trees []putTree, path string) bool {
	for _, tree := range trees {
		if tree[path] != "" {
			return true
		}
		if speaksOf([]putTree{tree}, path) {
			return false
		}
	}
	return false
}

// putModel is what /etc has to be, by overlayfs: own is a second /etc to which nobody puts anything, except what the administrator does there.
type putModel struct {
	t      *rapid.T
	lab    *lab
	own    string
	trees  []putTree
	theirs map[string]thing // what was changed after it was put, or hidden: what was put
	later  map[string]bool  // those of them that came into an opaque directory, where no tree had anything
	edits  int
}

// TestPutIsWhatOverlayfsShows puts and takes back at random, while the administrator changes this and that.
func TestPutIsWhatOverlayfsShows(t *testing.T) {
	checkSome(t, func(t *rapid.T) {
		root, err := os.MkdirTemp("", "etcmerge-put-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(root)
		checkPutModel(t, root)
	})
}

func checkPutModel(t *rapid.T, root string) {
	etc := putTree{}
	drawPutTree(t, "", 2, true, etc)
	m := &putModel{t: t, lab: newPutLab(t, root, "true"), own: filepath.Join(root, "own"), theirs: map[string]thing{}, later: map[string]bool{}}
	etc.write(t, m.lab.dirs.Etc)
	etc.write(t, m.own)
	sh(t, root, "find sys/etc -exec touch -h -d '2020-01-02 03:04:05.678' {} +")
	start := m.lab.etc()
	for i := range rapid.IntRange(1, 5).Draw(t, "Puts") {
		m.put(i)
		for range rapid.IntRange(0, 3).Draw(t, "edits") {
			m.edit()
		}
	}
	m.put(-1)
	if m.edits == 0 {
		wantSame(t, "/etc in the end", start, m.lab.etc())
	}
	if _, err := os.Lstat(m.lab.dirs.Store); !os.IsNotExist(err) {
		t.Errorf("the Store is left: %v", err)
	}
}

// put puts other trees, none if i is negative.
func (m *putModel) put(i int) {
	m.t.Helper()
	var trees []putTree
	var paths []string
	for n := range rapid.IntRange(1, 3).Draw(m.t, "trees") {
		if i < 0 {
			break
		}
		tree := putTree{}
		drawPutTree(m.t, "", 2, false, tree)
		m.spareTheirs(tree)
		trees, paths = append(trees, tree), append(paths, filepath.Join(m.lab.root, fmt.Sprintf("t%d-%d", i, n)))
		tree.write(m.t, paths[n])
	}
	before := m.lab.etc()
	m.release(trees)
	if _, err := Put(context.Background(), m.lab.dirs, paths); err != nil {
		m.t.Fatal(err)
	}
	after := m.lab.etc()
	want := m.shown(paths)
	for path := range m.theirs {
		delete(want, path)
		if x, ok := before[path]; ok {
			want[path] = x
		}
	}
	wantSame(m.t, fmt.Sprintf("/etc with %v below %v", m.trees, trees), contentOnly(want), contentOnly(after))
	m.trees = trees
	_, err := Put(context.Background(), m.lab.dirs, paths)
	if err != nil {
		m.t.Fatal(err)
	}
	wantSame(m.t, "/etc after another Put of the same", after, m.lab.etc())
}

// spareTheirs takes out of a tree what would put something else in place of a directory in which something is the administrator's.
func (m *putModel) spareTheirs(tree putTree) {
	for path := range m.theirs {
		for dir, _ := split(path); dir != ""; dir, _ = split(dir) {
			if kind := tree[dir]; kind != "" && kind != "dir" {
				delete(tree, dir)
				maps.DeleteFunc(tree, func(p, _ string) bool { return treediff.Below(p, dir) })
			}
		}
	}
}

// release gives to the administrator what they changed and no tree has any more.
func (m *putModel) release(trees []putTree) {
	m.t.Helper()
	for path := range m.theirs {
		if !speaksOf(trees, path) || m.later[path] && has(trees, path) {
			delete(m.theirs, path)
			m.copyToOwn(path)
		}
	}
}

// copyToOwn makes a path in the second /etc what it is in the first.
func (m *putModel) copyToOwn(path string) {
	m.t.Helper()
	sh(m.t, m.lab.root, fmt.Sprintf(`rm -rf own/%[1]s; if [ -e sys/etc/%[1]s ] || [ -L sys/etc/%[1]s ]; then cd sys/etc; cp -a --parents %[1]s ../../own; fi`, path))
}

// shown is the second /etc below the trees, as overlayfs shows it.
func (m *putModel) shown(trees []string) map[string]thing {
	m.t.Helper()
	if len(trees) == 0 {
		return scan(m.t, m.own)
	}
	view := filepath.Join(m.lab.root, "view")
	sh(m.t, m.lab.root, "mkdir -p view; mount -t overlay -o ro,lowerdir="+strings.Join(append(trees, m.own), ":")+" overlay view")
	defer sh(m.t, m.lab.root, "umount view")
	return scan(m.t, view)
}

// edit changes a file, removes it, or adds one; only where a directory is without the trees, too.
func (m *putModel) edit() {
	m.t.Helper()
	var dirs []string
	for path, x := range m.lab.etc() {
		if x.SubDirs {
			dirs = append(dirs, strings.TrimPrefix(path, "."))
		}
	}
	slices.Sort(dirs)
	path := filepath.Join(rapid.SampledFrom(dirs).Draw(m.t, "where"), rapid.SampledFrom([]string{"f1", "f2", "f3"}).Draw(m.t, "what"))
	parent, err := os.Lstat(filepath.Join(m.own, filepath.Dir(path)))
	if err != nil || !parent.IsDir() || slices.Contains(strings.Split(path, "/"), "x") {
		return
	}
	m.edits++
	full := filepath.Join(m.lab.dirs.Etc, path)
	was := m.lab.etc()[path]
	if was.What != "" {
		err = os.Remove(full)
	}
	if was.What == "" || !rapid.Bool().Draw(m.t, "remove") {
		err = os.WriteFile(full, fmt.Appendf(nil, "edit %d", m.edits), 0o644)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	if !speaksOf(m.trees, path) {
		m.copyToOwn(path)
		return
	}
	if _, ok := m.theirs[path]; !ok {
		m.theirs[path] = was
		_, err := os.Lstat(filepath.Join(m.own, path))
		m.later[path] = err != nil && !has(m.trees, path)
	}
	if m.theirs[path].What == m.lab.etc()[path].What {
		delete(m.theirs, path)
	}
}
