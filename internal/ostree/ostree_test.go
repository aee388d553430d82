package ostree_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
	"pgregory.net/rapid"
)

func open(t testing.TB, path string) *ostree.Repo {
	t.Helper()
	repo, err := ostree.OpenRepo(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { repo.Close() })
	return repo
}

func revParse(t testing.TB, repo, rev string) string {
	t.Helper()
	return strings.TrimSpace(ostreetest.Run(t, "ostree", "--repo="+repo, "rev-parse", rev))
}

func checksum(t testing.TB, s string) ostree.Checksum {
	t.Helper()
	c, err := ostree.ParseChecksum(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// item is what a tree has at a path: the fields that ostree ls -C -X prints.
type item struct {
	Type           string // "d", "-" or "l"
	Mode, UID, GID uint32
	Size           int64 // of a regular file
	Checksum, Meta string
	Xattrs         map[string]string
	Target         string
}

var (
	lsLine  = regexp.MustCompile(`(?m)^([-dl])(\d{5}) (\d+) (\d+) +(\d+) ([0-9a-f]{64}) (?:([0-9a-f]{64}) )?\{ (.*?) \} (/)`)
	lsXattr = regexp.MustCompile(`\(b'([^']+)', (?:\[(?:byte )?([^\]]*)\]|b'([^']*)')\)`)
)

// list reads a tree with libostree.
func list(t testing.TB, repo, commit string) map[string]item {
	t.Helper()
	out := ostreetest.Run(t, "ostree", "--repo="+repo, "ls", "-R", "-C", "-X", commit)
	items := map[string]item{}
	matches := lsLine.FindAllStringSubmatchIndex(out, -1)
	for i, m := range matches {
		field := func(n int) string {
			if m[2*n] < 0 {
				return ""
			}
			return out[m[2*n]:m[2*n+1]]
		}
		number := func(n, base int) uint32 {
			v, err := strconv.ParseUint(field(n), base, 32)
			if err != nil {
				t.Fatal(err)
			}
			return uint32(v)
		}
		end := len(out)
		if i+1 < len(matches) {
			end = matches[i+1][0]
		}
		path := strings.TrimSuffix(out[m[18]+1:end], "\n")
		it := item{
			Type: field(1), Mode: number(2, 8), UID: number(3, 10), GID: number(4, 10),
			Checksum: field(6), Meta: field(7), Xattrs: lsXattrs(t, field(8)),
		}
		switch it.Type {
		case "-":
			it.Size = int64(number(5, 10))
		case "l":
			path, it.Target, _ = strings.Cut(path, " -> ")
		}
		items[path] = it
	}
	return items
}

func lsXattrs(t testing.TB, text string) map[string]string {
	t.Helper()
	xattrs := map[string]string{}
	for _, m := range lsXattr.FindAllStringSubmatch(text, -1) {
		value := m[3] + "\x00"
		if m[2] != "" {
			data, err := hex.DecodeString(strings.NewReplacer("0x", "", ", ", "").Replace(m[2]))
			if err != nil {
				t.Fatal(err)
			}
			value = string(data)
		}
		xattrs[m[1]] = value
	}
	return xattrs
}

// read reads a tree with this package.
func read(t testing.TB, repo *ostree.Repo, tree ostree.Tree) map[string]item {
	t.Helper()
	items := map[string]item{}
	readInto(t, items, repo, "", tree)
	return items
}

func readInto(t testing.TB, items map[string]item, repo *ostree.Repo, path string, tree ostree.Tree) {
	t.Helper()
	meta, err := repo.Dirmeta(tree.Meta)
	if err != nil {
		t.Fatal(err)
	}
	items[strings.TrimPrefix(path, "/")] = item{
		Type: "d", Mode: meta.Mode & 0o7777, UID: meta.UID, GID: meta.GID,
		Checksum: tree.Contents.String(), Meta: tree.Meta.String(), Xattrs: xattrMap(meta.Xattrs),
	}
	dirtree, err := repo.Dirtree(tree.Contents)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range dirtree.Files {
		items[strings.TrimPrefix(path+"/"+entry.Name, "/")] = readFile(t, repo, entry.Checksum)
	}
	for _, entry := range dirtree.Dirs {
		readInto(t, items, repo, path+"/"+entry.Name, entry.Tree)
	}
}

func readFile(t testing.TB, repo *ostree.Repo, c ostree.Checksum) item {
	t.Helper()
	if err := repo.VerifyFile(c); err != nil {
		t.Fatal(err)
	}
	file, err := repo.File(c)
	if err != nil {
		t.Fatal(err)
	}
	it := item{
		Type: "-", Mode: file.Mode & 0o7777, UID: file.UID, GID: file.GID, Size: file.Size,
		Checksum: c.String(), Xattrs: xattrMap(file.Xattrs), Target: file.Target,
	}
	if file.Target != "" {
		it.Type, it.Size = "l", 0
	}
	return it
}

func xattrMap(xattrs []ostree.Xattr) map[string]string {
	m := map[string]string{}
	for _, xattr := range xattrs {
		m[xattr.Name] = string(xattr.Value)
	}
	return m
}

func TestReadsTreesAsLibostreeDoes(t *testing.T) {
	path := ostreetest.Repo(t)
	before, after := ostreetest.Written()
	repo := open(t, path)
	for i, spec := range []ostreetest.Spec{before, after} {
		c := ostreetest.Commit(t, path, "test/"+strconv.Itoa(i), spec.Write(t))
		commit, err := repo.Commit(checksum(t, c))
		if err != nil {
			t.Fatal(err)
		}
		want := list(t, path, c)
		if len(want) < len(spec) {
			t.Fatalf("the oracle shows %d of at least %d paths", len(want), len(spec))
		}
		if diff := cmp.Diff(want, read(t, repo, commit.Root)); diff != "" {
			t.Errorf("differs (-libostree +ours):\n%s", diff)
		}
	}
}

func TestReadsContentAsLibostreeDoes(t *testing.T) {
	path := ostreetest.Repo(t)
	big := strings.Repeat("0123456789abcdef", 1<<16)
	spec := ostreetest.Spec{
		"empty": ostreetest.File(""), "text": ostreetest.File("text\n"), "big": ostreetest.File(big),
		"xattrs": {Mode: 0o4755, UID: 7, GID: 8, Content: "x", Xattrs: map[string]string{"user.b": "", "user.a": strings.Repeat("v", 3000)}},
		"link":   ostreetest.Link("text"),
	}
	c := ostreetest.Commit(t, path, "test", spec.Write(t))
	repo := open(t, path)
	commit, err := repo.Commit(checksum(t, c))
	if err != nil {
		t.Fatal(err)
	}
	for name, node := range spec {
		entry, err := repo.Lookup(commit.Root, name)
		if err != nil {
			t.Fatal(err)
		}
		content, err := repo.ReadFile(entry.Checksum, int64(len(big)))
		if name == "link" {
			if err == nil || !strings.Contains(err.Error(), `symbolic link to "text"`) {
				t.Errorf("content of a symbolic link: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if want := ostreetest.Run(t, "ostree", "--repo="+path, "cat", c, "/"+name); string(content) != want || want != node.Content {
			t.Errorf("%s: %d bytes, libostree has %d", name, len(content), len(want))
		}
		if len(node.Content) > 0 {
			if _, err := repo.ReadFile(entry.Checksum, int64(len(node.Content)-1)); err == nil || !strings.Contains(err.Error(), "more than the") {
				t.Errorf("%s: beyond the limit: %v", name, err)
			}
		}
	}
}

func TestReadsCommitsAsLibostreeDoes(t *testing.T) {
	path := ostreetest.Repo(t)
	dir := ostreetest.Spec{"usr/file": ostreetest.File("1")}.Write(t)
	first := strings.TrimSpace(ostreetest.Run(t, "ostree", "--repo="+path, "commit", "-b", "test",
		"-s", "first — ü", "-m", "a body\n\nof lines\n", "--timestamp=2001-02-03T04:05:06Z", "--add-metadata-string=version=1.2", "--add-metadata-string=x=y", "--tree=dir="+dir))
	second := ostreetest.Commit(t, path, "test", ostreetest.Spec{"usr/file": ostreetest.File("2")}.Write(t))
	repo := open(t, path)

	got, err := repo.Commit(checksum(t, first))
	if err != nil {
		t.Fatal(err)
	}
	version, ok, err := got.Metadata.Lookup("version")
	if err != nil || !ok {
		t.Fatalf("version: %t, %v", ok, err)
	}
	if text, err := version.Text(); err != nil || text != "1.2" {
		t.Errorf("version is %q, %v", text, err)
	}
	root := list(t, path, first)[""]
	want := &ostree.Commit{
		Checksum: checksum(t, first), Subject: "first — ü", Body: "a body\n\nof lines\n",
		Timestamp: time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC), Metadata: got.Metadata,
		Root: ostree.Tree{Contents: checksum(t, root.Checksum), Meta: checksum(t, root.Meta)},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if c, err := repo.Commit(checksum(t, second)); err != nil || c.Parent.String() != first {
		t.Errorf("parent of the second: %v, %v", c, err)
	}
}

func TestResolvesRevisionsAsRevParseDoes(t *testing.T) {
	path := ostreetest.Repo(t)
	dir := ostreetest.Spec{"f": ostreetest.File("1")}.Write(t)
	rev := func(args ...string) string {
		return strings.TrimSpace(ostreetest.Run(t, "ostree", append([]string{"--repo=" + path}, args...)...))
	}
	const time = "--timestamp=2001-02-03T04:05:06Z" // with that of now, one could begin with what is to be no commit
	first := rev("commit", "-b", "debian/12", "-s", "1", time, "--tree=dir="+dir)
	second := rev("commit", "-b", "debian/12", "-s", "2", time, "--tree=dir="+dir)
	rev("refs", "--create=origin:remote/only", first)
	rev("refs", "--create=other:debian/12", first)
	rev("refs", "--create=dead", first) // a ref that could be the beginning of a checksum
	rev("refs", "--create=ünï_1.x-y", first)
	rev("refs", "--create=alias", "--alias", "debian/12")
	repo := open(t, path)
	for _, rev := range []string{
		first, second, first[:10], second[:63], "debian/12", "debian/12^", second + "^", second[:20] + "^", "origin:remote/only", "remote/only",
		"origin/remote/only", "other:debian/12", "dead", "ünï_1.x-y", "alias", "alias^", strings.Repeat("a", 64),
	} {
		want := revParse(t, path, rev)
		if got, err := repo.Resolve(rev); err != nil || got.String() != want {
			t.Errorf("%q: %v, %v, want %s", rev, got, err, want)
		}
	}
	for _, rev := range []string{"debian/13", "nobody:debian/12", "debian", "debian/12/x", "beef"} {
		if got, err := repo.Resolve(rev); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), rev) {
			t.Errorf("%q: %v, %v, want fs.ErrNotExist", rev, got, err)
		}
	}
	for _, rev := range []string{
		"", "^", "..", "../heads/dead", "debian/../dead", "/dead", "dead/", "de//ad", ".hidden", "-x", "a b", "dead\n", "dead\x00", "a:b:c", ":dead", "../..:x",
		"\xff", "debian/12^^", first + "^", "*",
	} {
		if got, err := repo.Resolve(rev); err == nil {
			t.Errorf("%q was taken for %s", rev, got)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(path, "refs/heads/out")); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Resolve("out"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a ref that leads out of the repo: %v", err)
	}
	if err := os.WriteFile(filepath.Join(path, "refs/heads/bad"), []byte("nonsense\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Resolve("bad"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("a ref that holds no checksum: %v", err)
	}
}

func TestAbbreviationsMustBeUnique(t *testing.T) {
	path := ostreetest.Repo(t)
	dir := ostreetest.Spec{"f": ostreetest.File("1")}.Write(t)
	seen := map[byte]bool{}
	for i := 0; ; i++ { // 17 commits share a first digit
		c := strings.TrimSpace(ostreetest.Run(t, "ostree", "--repo="+path, "commit", "--orphan", "-s", strconv.Itoa(i), "--tree=dir="+dir))
		if seen[c[0]] {
			_, err := open(t, path).Resolve(c[:1])
			if err == nil || !strings.Contains(err.Error(), "more than one commit") {
				t.Errorf("%q: %v", c[:1], err)
			}
			return
		}
		seen[c[0]] = true
	}
}

func TestLooksUpPaths(t *testing.T) {
	path := ostreetest.Repo(t)
	c := ostreetest.Commit(t, path, "test", ostreetest.Spec{
		"usr/lib/os-release": ostreetest.File("ID=x\n"), "usr/lib64": ostreetest.Link("lib"), "usr/lib/modules/6.1/vmlinuz": ostreetest.File("k"),
	}.Write(t))
	repo := open(t, path)
	commit, err := repo.Commit(checksum(t, c))
	if err != nil {
		t.Fatal(err)
	}
	for p, it := range list(t, path, c) {
		got, err := repo.Lookup(commit.Root, p)
		if err != nil || got.Checksum.String() != it.Checksum || (got.Kind == ostree.KindDirectory) != (it.Type == "d") {
			t.Errorf("%q: %v, %v, want %v", p, got, err, it)
		}
		if it.Type == "d" && (got.Meta.String() != it.Meta || got.Tree().Entry() != got) {
			t.Errorf("%q: dirmeta %s, want %s", p, got.Meta, it.Meta)
		}
	}
	for _, p := range []string{"etc", "usr/lib/os-releas", "usr/lib/os-release/x", "usr/lib64/os-release", "usr/zzz"} {
		if got, err := repo.Lookup(commit.Root, p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v, %v", p, got, err)
		}
	}
	for _, p := range []string{"/usr", "usr/", "usr//lib", "usr/../usr", ".", "./usr"} {
		if got, err := repo.Lookup(commit.Root, p); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v, %v", p, got, err)
		}
	}
	if _, err := repo.Lookup(ostree.Tree{}, "usr"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a tree that does not exist: %v", err)
	}
}

func TestRefusesOtherModesByName(t *testing.T) {
	for _, mode := range []string{"archive", "bare-user", "bare-user-only", "bare-split-xattrs"} {
		path := filepath.Join(t.TempDir(), "repo")
		ostreetest.Run(t, "ostree", "--repo="+path, "init", "--mode="+mode)
		_, err := ostree.OpenRepo(path)
		name := strings.ReplaceAll(mode, "archive", "archive-z2") // what the config of an archive repo says
		if err == nil || !strings.Contains(err.Error(), "has mode "+name+":") || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

func TestRefusesWhatIsNoRepo(t *testing.T) {
	dir := t.TempDir()
	if _, err := ostree.OpenRepo(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := ostree.OpenRepo(dir); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "not an OSTree repo") {
		t.Errorf("no config: %v", err)
	}
	for config, want := range map[string]string{
		"[core]\nrepo_version=2\nmode=bare\n":                 "repo_version",
		"[core]\nmode=bare\n":                                 "repo_version",
		"[core]\nrepo_version=1\nmode=bare\nparent=/ostree\n": "parent repo /ostree",
		"nonsense\n": "line 1",
	} {
		if err := os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := ostree.OpenRepo(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", config, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte("# comment\n[core]\n repo_version = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	open(t, dir) // without a mode it is bare
}

func TestSaysWhetherACommitIsPartial(t *testing.T) {
	source := ostreetest.Repo(t)
	c := ostreetest.Commit(t, source, "test", ostreetest.Spec{"usr/a/f": ostreetest.File("1"), "usr/b/f": ostreetest.File("2")}.Write(t))
	path := ostreetest.Repo(t)
	ostreetest.Run(t, "ostree", "--repo="+path, "remote", "add", "--no-gpg-verify", "o", "file://"+source)
	ostreetest.Run(t, "ostree", "--repo="+path, "pull", "--subpath=/usr/a", "o", "test")
	repo := open(t, path)
	if partial, err := repo.IsPartial(checksum(t, c)); err != nil || !partial {
		t.Errorf("after a pull of a subpath: %t, %v", partial, err)
	}
	ostreetest.Run(t, "ostree", "--repo="+path, "pull", "o", "test")
	if partial, err := repo.IsPartial(checksum(t, c)); err != nil || partial {
		t.Errorf("after a whole pull: %t, %v", partial, err)
	}
}

func TestMissingObjectsAreErrorsThatSayWhatToDo(t *testing.T) {
	repo := open(t, ostreetest.Repo(t))
	none := checksum(t, strings.Repeat("ab", 32))
	for suffix, read := range map[string]func() error{
		"commit":   func() error { _, err := repo.Commit(none); return err },
		".dirtree": func() error { _, err := repo.Dirtree(none); return err },
		".dirmeta": func() error { _, err := repo.Dirmeta(none); return err },
		".file":    func() error { _, err := repo.File(none); return err },
		".file:":   func() error { _, err := repo.ReadFile(none, 1); return err },
		".file::":  func() error { return repo.VerifyFile(none) },
		".file:::": func() error { _, err := repo.XattrNames(none); return err },
	} {
		err := read()
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), strings.TrimRight(suffix, ":")) ||
			!strings.Contains(err.Error(), none.String()) || !strings.Contains(err.Error(), "ostree pull") {
			t.Errorf("%s: %v", suffix, err)
		}
	}
}

func TestDamagedObjectsAreFound(t *testing.T) {
	path := ostreetest.Repo(t)
	c := ostreetest.Commit(t, path, "test", ostreetest.Spec{
		"usr/f": {Mode: 0o644, Content: "content", Xattrs: map[string]string{"user.x": "y"}}, "usr/l": ostreetest.Link("target"),
	}.Write(t))
	repo := open(t, path)
	commit, err := repo.Commit(checksum(t, c))
	if err != nil {
		t.Fatal(err)
	}
	file, err := repo.Lookup(commit.Root, "usr/f")
	if err != nil {
		t.Fatal(err)
	}
	link, err := repo.Lookup(commit.Root, "usr/l")
	if err != nil {
		t.Fatal(err)
	}
	object := func(c ostree.Checksum, suffix string) string {
		return filepath.Join(path, "objects", c.String()[:2], c.String()[2:]+suffix)
	}
	flip := func(name string) func() error {
		return func() error {
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			data[len(data)/2] ^= 1
			return os.WriteFile(name, data, 0o644)
		}
	}
	verify := func(e ostree.Entry) func() error { return func() error { return repo.VerifyFile(e.Checksum) } }
	root := commit.Root
	fileObject := filepath.Join(path, repo.FilePath(file.Checksum))
	for _, tt := range []struct {
		name   string
		damage func() error
		read   func() error
		object ostree.Checksum
	}{
		{"file mode", func() error { return os.Chmod(fileObject, 0o600) }, verify(file), file.Checksum},
		{"file content", flip(fileObject), func() error { _, err := repo.ReadFile(file.Checksum, 100); return err }, file.Checksum},
		{"link target", func() error {
			name := filepath.Join(path, repo.FilePath(link.Checksum))
			return errors.Join(os.Remove(name), os.Symlink("elsewhere", name))
		}, verify(link), link.Checksum},
		{"dirtree", flip(object(root.Contents, ".dirtree")), func() error { _, err := repo.Dirtree(root.Contents); return err }, root.Contents},
		{"dirmeta", flip(object(root.Meta, ".dirmeta")), func() error { _, err := repo.Dirmeta(root.Meta); return err }, root.Meta},
		{"commit", flip(object(commit.Checksum, ".commit")), func() error { _, err := repo.Commit(commit.Checksum); return err }, commit.Checksum},
	} {
		if err := tt.read(); err != nil {
			t.Errorf("%s: before the damage: %v", tt.name, err)
		}
		if err := tt.damage(); err != nil {
			t.Fatal(err)
		}
		if tt.name == "dirmeta" {
			repo = open(t, path) // a dirmeta is read once
		}
		err := tt.read()
		if tt.name == "file mode" {
			if err := os.Chmod(fileObject, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err == nil || !strings.Contains(err.Error(), tt.object.String()) ||
			!strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), "ostree fsck") {
			t.Errorf("%s: after the damage: %v", tt.name, err)
		}
	}
}

func TestObjectsThatAreNotFilesAreRefused(t *testing.T) {
	path := ostreetest.Repo(t)
	repo := open(t, path)
	c := checksum(t, strings.Repeat("ab", 32))
	name := filepath.Join(path, "objects/ab", strings.Repeat("ab", 31))
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", name+".dirtree"); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Dirtree(c); err == nil {
		t.Error("a dirtree that is a symbolic link was read")
	}
	ostreetest.Run(t, "mkfifo", name+".file", name+".dirmeta")
	if _, err := repo.File(c); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("a file object that is a fifo: %v", err)
	}
	if _, err := repo.Dirmeta(c); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a dirmeta that is a fifo: %v", err)
	}
	if err := os.WriteFile(name+".commit", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name+".commit", 1<<40); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Commit(c); err == nil || !strings.Contains(err.Error(), "more than the 134217728") {
		t.Errorf("a commit of 1 TiB: %v", err)
	}
}

// Any tree that can be committed is read as libostree reads it.
func TestReadsGeneratedTreesAsLibostreeDoes(t *testing.T) {
	path := ostreetest.Repo(t)
	repo := open(t, path)
	name := rapid.StringMatching(`[a-c .'"\n€-]{1,6}`).Filter(func(s string) bool { return s != "." && s != ".." })
	rapid.Check(t, func(rt *rapid.T) {
		spec := ostreetest.Spec{}
		for range rapid.IntRange(0, 12).Draw(rt, "n") {
			dirs := rapid.SliceOfN(name, 0, 3).Draw(rt, "dirs")
			p := strings.Join(append(dirs, name.Draw(rt, "name")), "/")
			if conflicts(spec, p) {
				continue
			}
			spec[p] = node(rt)
		}
		c := ostreetest.Commit(t, path, "test", spec.Write(t))
		commit, err := repo.Commit(checksum(t, c))
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(list(t, path, c), read(t, repo, commit.Root)); diff != "" {
			rt.Fatalf("differs (-libostree +ours):\n%s", diff)
		}
	})
}

func conflicts(spec ostreetest.Spec, path string) bool {
	for p, n := range spec {
		if p == path || strings.HasPrefix(p, path+"/") || !n.Mode.IsDir() && strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

func node(rt *rapid.T) ostreetest.Node {
	n := ostreetest.Node{
		Mode: os.FileMode(rapid.SampledFrom([]int{0o644, 0o755, 0o600, 0}).Draw(rt, "mode")),
		UID:  rapid.IntRange(0, 70000).Draw(rt, "uid"), GID: rapid.IntRange(0, 3).Draw(rt, "gid"),
		Xattrs: rapid.MapOfN(rapid.StringMatching(`user\.[a-z]{1,9}`), rapid.StringMatching(`[a-z]{1,200}`), 0, 3).Draw(rt, "xattrs"),
	}
	switch rapid.IntRange(0, 2).Draw(rt, "type") {
	case 0:
		n.Content = string(bytes.Repeat([]byte{'c'}, rapid.IntRange(0, 300).Draw(rt, "size")))
	case 1:
		n.Mode |= os.ModeDir
	case 2:
		n.Mode, n.Xattrs, n.Content = os.ModeSymlink|0o777, nil, rapid.StringMatching(`[a-z/.]{1,300}`).Draw(rt, "target")
	}
	return n
}

// A repo that is opened by a path below /proc/self/fd is named as people know it.
func TestMessagesNameTheRepoAsTold(t *testing.T) {
	const name = "/sysroot/ostree/repo"
	path := ostreetest.Repo(t)
	repo, err := ostree.OpenRepoAs(path, name)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	if repo.Name() != name || repo.Path() != path {
		t.Errorf("it is %s at %s, want %s at %s", repo.Name(), repo.Path(), name, path)
	}
	none := checksum(t, strings.Repeat("ab", 32))
	_, commitErr := repo.Commit(none)
	_, resolveErr := repo.Resolve("none")
	_, configErr := ostree.OpenRepoAs(filepath.Dir(path), name)
	_, openErr := ostree.OpenRepoAs(path+"-none", name)
	for _, err := range []error{commitErr, resolveErr, configErr, openErr, repo.SetRef("", none), repo.RemoveRef(""), repo.VerifyFile(none)} {
		if err == nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), path) {
			t.Errorf("%v: want %s and not %s in it", err, name, path)
		}
	}
}
