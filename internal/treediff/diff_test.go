package treediff_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
	"github.com/liveapply/liveapply/internal/treediff"
	"pgregory.net/rapid"
)

// store is a Source in memory that counts what is read from it.
type store struct {
	dirtrees map[ostree.Checksum]*ostree.Dirtree

	mu     sync.Mutex
	opened map[ostree.Checksum]int
}

func newStore() *store {
	return &store{dirtrees: map[ostree.Checksum]*ostree.Dirtree{}, opened: map[ostree.Checksum]int{}}
}

func (s *store) Dirtree(c ostree.Checksum) (*ostree.Dirtree, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened[c]++
	dirtree, ok := s.dirtrees[c]
	if !ok {
		return nil, fmt.Errorf("object %s: %w", c, fs.ErrNotExist)
	}
	return dirtree, nil
}

// counts returns how many dirtrees were read since the last call.
func (s *store) counts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, count := range s.opened {
		n += count
	}
	clear(s.opened)
	return n
}

// dir is a directory: name → content of a file (string) or another dir. The name "" is its dirmeta.
type dir map[string]any

func (s *store) add(d dir) ostree.Tree {
	dirtree := &ostree.Dirtree{}
	for _, name := range slices.Sorted(maps.Keys(d)) {
		switch child := d[name].(type) {
		case dir:
			dirtree.Dirs = append(dirtree.Dirs, ostree.DirEntry{Name: name, Tree: s.add(child)})
		case string:
			if name != "" {
				dirtree.Files = append(dirtree.Files, ostree.FileEntry{Name: name, Checksum: sha256.Sum256([]byte("file:" + child))})
			}
		}
	}
	c := ostree.Checksum(sha256.Sum256(fmt.Appendf(nil, "%q %q", dirtree.Files, dirtree.Dirs)))
	s.dirtrees[c] = dirtree
	meta, _ := d[""].(string)
	return ostree.Tree{Contents: c, Meta: sha256.Sum256([]byte("meta:" + meta))}
}

// walk lists everything in a tree, by path.
func walk(t testing.TB, src treediff.Source, tree ostree.Tree) map[string]ostree.Entry {
	t.Helper()
	entries := map[string]ostree.Entry{}
	if !tree.IsZero() {
		walkInto(t, entries, src, "", tree)
	}
	return entries
}

func walkInto(t testing.TB, entries map[string]ostree.Entry, src treediff.Source, path string, tree ostree.Tree) {
	t.Helper()
	entries[path] = ostree.Entry{Kind: ostree.KindDirectory, Checksum: tree.Contents, Meta: tree.Meta}
	dirtree, err := src.Dirtree(tree.Contents)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range dirtree.Files {
		entries[strings.TrimPrefix(path+"/"+file.Name, "/")] = ostree.Entry{Kind: ostree.KindFile, Checksum: file.Checksum}
	}
	for _, child := range dirtree.Dirs {
		walkInto(t, entries, src, strings.TrimPrefix(path+"/"+child.Name, "/"), child.Tree)
	}
}

// naive compares two whole trees path by path.
func naive(t testing.TB, src treediff.Source, old, new ostree.Tree) []treediff.Change {
	t.Helper()
	before, after := walk(t, src, old), walk(t, src, new)
	paths := maps.Clone(before)
	maps.Copy(paths, after)
	var changes []treediff.Change
	for path := range paths {
		if before[path] != after[path] {
			changes = append(changes, treediff.Change{Path: path, Old: before[path], New: after[path]})
		}
	}
	slices.SortFunc(changes, func(a, b treediff.Change) int {
		return slices.Compare(components(a.Path), components(b.Path))
	})
	return changes
}

func components(path string) []string {
	if path == "" {
		return nil
	}
	return strings.Split(path, "/")
}

func diff(t testing.TB, src treediff.Source, old, new ostree.Tree) []treediff.Change {
	t.Helper()
	changes, err := treediff.Diff(context.Background(), src, old, new)
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

func TestListsWhatDiffersInPreOrder(t *testing.T) {
	s := newStore()
	same := dir{"deep": dir{"x": "1"}}
	old := s.add(dir{
		"same": same, "a": dir{"f": "1"}, "a-b": "1", "gone": dir{"sub": dir{"f": "1"}},
		"to dir": "1", "to file": dir{"f": "1"}, "meta": dir{"f": "1"},
	})
	new := s.add(dir{
		"same": same, "a": dir{"f": "2"}, "a-b": "2", "new": dir{"sub": dir{"f": "1"}},
		"to dir": dir{"f": "1"}, "to file": "1", "meta": dir{"": "other", "f": "1"},
	})
	var got []string
	kinds := map[ostree.Kind]string{ostree.KindNone: "-", ostree.KindFile: "f", ostree.KindDirectory: "d"}
	for _, c := range diff(t, s, old, new) {
		got = append(got, kinds[c.Old.Kind]+kinds[c.New.Kind]+" "+c.Path)
	}
	want := []string{
		"dd ", "dd a", "ff a/f", "ff a-b", "d- gone", "d- gone/sub", "f- gone/sub/f", "dd meta", "-d new", "-d new/sub", "-f new/sub/f",
		"fd to dir", "-f to dir/f", "df to file", "f- to file/f",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestTreesThatDoNotExistAreEmpty(t *testing.T) {
	s := newStore()
	tree := s.add(dir{"a": dir{"f": "1"}})
	for _, pair := range [][2]ostree.Tree{{{}, tree}, {tree, {}}, {tree, tree}, {{}, {}}} {
		if d := cmp.Diff(naive(t, s, pair[0], pair[1]), diff(t, s, pair[0], pair[1])); d != "" {
			t.Errorf("(-naive +ours)\n%s", d)
		}
	}
}

// A diff opens exactly the directories on the way to what differs, on both sides, and no other.
func TestEqualSubtreesAreNeverOpened(t *testing.T) {
	s := newStore()
	build := func(changed string) ostree.Tree {
		root := dir{}
		for i := range 100 {
			sub := dir{}
			for j := range 100 {
				leaf := dir{}
				for k := range 10 {
					leaf[fmt.Sprint(k)] = fmt.Sprint(i, j, k)
				}
				sub[fmt.Sprint(j)] = leaf
			}
			root[fmt.Sprint(i)] = sub
		}
		root["50"].(dir)["50"].(dir)["5"] = changed
		return s.add(root)
	}
	old, new := build("old"), build("new")
	if changes := diff(t, s, old, new); len(changes) != 4 {
		t.Errorf("%d changes, want the file and the three directories above it", len(changes))
	}
	if n := s.counts(); n != 6 {
		t.Errorf("100,000 files of which one differs: %d dirtrees read, want 6", n)
	}
	diff(t, s, old, old)
	diff(t, s, old, ostree.Tree{Contents: old.Contents, Meta: new.Contents})
	if n := s.counts(); n != 0 {
		t.Errorf("equal content: %d dirtrees read, want none", n)
	}
}

// Any two trees: what a walk over all of both finds.
func TestEqualsANaiveDiff(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newStore()
		before := tree(rt, 4)
		after := tree(rt, 4)
		if rapid.Bool().Draw(rt, "related") {
			after = edit(rt, before)
		}
		old, new := s.add(before), s.add(after)
		want := naive(t, s, old, new)
		got := diff(t, s, old, new)
		if d := cmp.Diff(want, got); d != "" {
			rt.Fatalf("(-naive +ours)\n%s", d)
		}
	})
}

func names() *rapid.Generator[string] {
	return rapid.SampledFrom([]string{"a", "a-", "a.", "b", "c", "€"})
}

func tree(rt *rapid.T, depth int) dir {
	d := dir{"": rapid.SampledFrom([]string{"", "m"}).Draw(rt, "meta")}
	for _, name := range rapid.SliceOfNDistinct(names(), 0, 5, rapid.ID).Draw(rt, "names") {
		if depth > 0 && rapid.Bool().Draw(rt, "dir") {
			d[name] = tree(rt, depth-1)
		} else {
			d[name] = rapid.SampledFrom([]string{"1", "2", "3"}).Draw(rt, "content")
		}
	}
	return d
}

// edit returns a copy of a tree that differs in a few places.
func edit(rt *rapid.T, d dir) dir {
	copied := maps.Clone(d)
	for _, name := range slices.Sorted(maps.Keys(d)) {
		if child, ok := d[name].(dir); ok {
			copied[name] = edit(rt, child)
		}
	}
	if rapid.IntRange(0, 3).Draw(rt, "edit") == 0 {
		name := names().Draw(rt, "name")
		switch rapid.IntRange(0, 3).Draw(rt, "what") {
		case 0:
			delete(copied, name)
		case 1:
			copied[name] = "edited"
		case 2:
			copied[name] = tree(rt, 1)
		case 3:
			copied[""] = "edited"
		}
	}
	return copied
}

func TestIsTheSameWithAnyNumberOfProcessors(t *testing.T) {
	s := newStore()
	big := dir{}
	for i := range 2000 {
		big[fmt.Sprint("d", i)] = dir{"a": dir{"f": fmt.Sprint(i)}, "b": "x"}
	}
	added := s.add(big)
	want := naive(t, s, ostree.Tree{}, added)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, n := range []int{1, 2, 8} {
		runtime.GOMAXPROCS(n)
		if !slices.Equal(want, diff(t, s, ostree.Tree{}, added)) {
			t.Errorf("with %d processors the diff is another", n)
		}
	}
}

func TestErrorsNameTheDirectory(t *testing.T) {
	s := newStore()
	tree := s.add(dir{"usr": dir{"lib": dir{"f": "1"}}})
	lib := s.add(dir{"f": "1"})
	delete(s.dirtrees, lib.Contents)
	_, err := treediff.Diff(context.Background(), s, ostree.Tree{}, tree)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), `"/usr/lib"`) || !strings.Contains(err.Error(), lib.Contents.String()) {
		t.Errorf("a missing dirtree: %v", err)
	}
}

func TestEndsWhenItsContextDoes(t *testing.T) {
	s := newStore()
	tree := s.add(dir{"f": "1"})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := treediff.Diff(ctx, s, ostree.Tree{}, tree); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if n := s.counts(); n != 0 {
		t.Errorf("%d dirtrees read", n)
	}
}

// doubling is a chain of dirtrees, each of which names the next one under several names.
type doubling struct {
	names  []string
	levels byte
}

func (d doubling) Dirtree(c ostree.Checksum) (*ostree.Dirtree, error) {
	dirtree := &ostree.Dirtree{}
	if c[0] == d.levels {
		return dirtree, nil
	}
	c[0]++
	for _, name := range d.names {
		dirtree.Dirs = append(dirtree.Dirs, ostree.DirEntry{Name: name, Tree: ostree.Tree{Contents: c, Meta: c}})
	}
	return dirtree, nil
}

func TestHostileTreesEnd(t *testing.T) {
	for want, src := range map[string]doubling{
		"no Linux path can name it":      {[]string{strings.Repeat("d", 255)}, 17},
		"more than 2097152 paths differ": {[]string{"a", "b", "c", "d"}, 40},
	} {
		_, err := treediff.Diff(context.Background(), src, ostree.Tree{}, ostree.Tree{Contents: ostree.Checksum{0, 1}, Meta: ostree.Checksum{1}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

var lsLine = regexp.MustCompile(`(?m)^([-dl])\d{5} \d+ \d+ +\d+ ([0-9a-f]{64}) (?:([0-9a-f]{64}) )?/`)

// list reads a tree with libostree.
func list(t testing.TB, repo, commit string) map[string]ostree.Entry {
	t.Helper()
	out := ostreetest.Run(t, "ostree", "--repo="+repo, "ls", "-R", "-C", commit)
	entries := map[string]ostree.Entry{}
	matches := lsLine.FindAllStringSubmatchIndex(out, -1)
	for i, m := range matches {
		end := len(out)
		if i+1 < len(matches) {
			end = matches[i+1][0]
		}
		path := strings.TrimSuffix(out[m[1]:end], "\n")
		entry := ostree.Entry{Kind: ostree.KindFile, Checksum: checksum(t, out[m[4]:m[5]])}
		switch out[m[2]:m[3]] {
		case "d":
			entry.Kind, entry.Meta = ostree.KindDirectory, checksum(t, out[m[6]:m[7]])
		case "l":
			path, _, _ = strings.Cut(path, " -> ")
		}
		entries[path] = entry
	}
	return entries
}

func checksum(t testing.TB, s string) ostree.Checksum {
	t.Helper()
	c, err := ostree.ParseChecksum(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFindsWhatDiffersBetweenRealCommits(t *testing.T) {
	path := ostreetest.Repo(t)
	before, after := ostreetest.Written()
	first := ostreetest.Commit(t, path, "test/1", before.Write(t))
	second := ostreetest.Commit(t, path, "test/2", after.Write(t))
	repo, err := ostree.OpenRepo(path)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()

	for _, pair := range [][2]string{{first, second}, {second, first}} {
		old, new := list(t, path, pair[0]), list(t, path, pair[1])
		changes := diff(t, repo, old[""].Tree(), new[""].Tree())
		if len(changes) < 50 {
			t.Fatalf("only %d changes", len(changes))
		}
		seen := map[string]bool{}
		for _, c := range changes {
			if c.Old != old[c.Path] || c.New != new[c.Path] || c.Old == c.New || seen[c.Path] {
				t.Errorf("%q: %v → %v; libostree has %v → %v", c.Path, c.Old, c.New, old[c.Path], new[c.Path])
			}
			seen[c.Path] = true
		}
		maps.Copy(old, new)
		both := list(t, path, pair[0])
		for p := range old {
			if both[p] != new[p] && !seen[p] {
				t.Errorf("%q differs and is not in the diff", p)
			}
		}
	}
}
