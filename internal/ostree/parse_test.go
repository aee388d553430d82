package ostree

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
	"golang.org/x/sys/unix"
)

func (m *Dirmeta) serialize() []byte {
	var data []byte
	for _, n := range []uint32{m.UID, m.GID, m.Mode} {
		data = binary.BigEndian.AppendUint32(data, n)
	}
	return append(data, serializeXattrs(m.Xattrs)...)
}

// store puts an object into a repo under its right name.
func store(t *testing.T, r *Repo, suffix string, data []byte) Checksum {
	t.Helper()
	c := Checksum(sha256.Sum256(data))
	name := filepath.Join(r.path, objectPath(c, suffix))
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o644)); err != nil {
		t.Fatal(err)
	}
	return c
}

func openTestRepo(t testing.TB) *Repo {
	t.Helper()
	repo, err := OpenRepo(ostreetest.Repo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { repo.Close() })
	return repo
}

func TestHostileDirtreesAreRefused(t *testing.T) {
	repo := openTestRepo(t)
	sum := Checksum{1}
	file := func(names ...string) *Dirtree {
		tree := &Dirtree{}
		for _, name := range names {
			tree.Files = append(tree.Files, FileEntry{Name: name, Checksum: sum})
		}
		return tree
	}
	dir := func(names ...string) *Dirtree {
		tree := &Dirtree{}
		for _, name := range names {
			tree.Dirs = append(tree.Dirs, DirEntry{Name: name, Tree: Tree{Contents: sum, Meta: sum}})
		}
		return tree
	}
	both := func(files, dirs *Dirtree) *Dirtree { return &Dirtree{Files: files.Files, Dirs: dirs.Dirs} }

	for name, good := range map[string]*Dirtree{
		"empty": {}, "files": file("a", "a-", "a.b", "b"), "directories": dir("...", "..a", "a b"),
		"both": both(file("a", "c", "e"), dir("b", "d", "f")),
	} {
		c := store(t, repo, dirtreeSuffix, good.serialize())
		if got, err := repo.Dirtree(c); err != nil || !bytes.Equal(got.serialize(), good.serialize()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, tt := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty name", file("").serialize(), "empty name"},
		{"dot", file(".").serialize(), `named "."`},
		{"dot dot", dir("..").serialize(), `named ".."`},
		{"slash", file("a/b").serialize(), "slash"},
		{"absolute", dir("/etc").serialize(), "slash"},
		{"not UTF-8", file("\xff").serialize(), "UTF-8"},
		{"NUL", file("a\x00b").serialize(), "NUL"},
		{"files not sorted", file("b", "a").serialize(), `"a" is not sorted after "b"`},
		{"file twice", file("a", "a").serialize(), "not sorted"},
		{"directories not sorted", dir("b", "a").serialize(), "not sorted"},
		{"directory twice", dir("a", "a").serialize(), "not sorted"},
		{"file and directory", both(file("a", "b", "c"), dir("b")).serialize(), `"b" is both`},
		{"zero checksum", (&Dirtree{Dirs: []DirEntry{{Name: "a"}}}).serialize(), "all zeros"},
		{"short checksum", bytes.Replace(file("a").serialize(), sum[:], sum[:31], 1), ""},
		{"nothing", nil, "normal form"},
		{"nonsense", []byte("nonsense"), "normal form"},
		{"trailing bytes", append(file("a").serialize(), 0), "normal form"},
	} {
		c := store(t, repo, dirtreeSuffix, tt.data)
		_, err := repo.Dirtree(c)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), c.String()+".dirtree") {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestHostileDirmetasAreRefused(t *testing.T) {
	repo := openTestRepo(t)
	const mode = unix.S_IFDIR | 0o755
	for name, good := range map[string]*Dirmeta{
		"plain": {Mode: mode}, "owned": {UID: 1, GID: 0xffffffff, Mode: unix.S_IFDIR | 0o7777},
		"xattrs": {Mode: mode, Xattrs: []Xattr{{"security.selinux", []byte("x\x00")}, {"user.a", nil}}},
	} {
		c := store(t, repo, dirmetaSuffix, good.serialize())
		got, err := repo.Dirmeta(c)
		if err != nil || !bytes.Equal(got.serialize(), good.serialize()) {
			t.Errorf("%s: %v", name, err)
		}
		if again, err := repo.Dirmeta(c); err != nil || again != got {
			t.Errorf("%s: read twice: %v", name, err)
		}
	}
	for name, bad := range map[string]*Dirmeta{
		"not a directory":  {Mode: unix.S_IFREG | 0o644},
		"bits above":       {Mode: mode | 1<<20},
		"empty xattr name": {Mode: mode, Xattrs: []Xattr{{"", nil}}},
		"NUL in a name":    {Mode: mode, Xattrs: []Xattr{{"user.a\x00b", nil}}},
		"not sorted":       {Mode: mode, Xattrs: []Xattr{{"user.b", nil}, {"user.a", nil}}},
		"twice":            {Mode: mode, Xattrs: []Xattr{{"user.a", nil}, {"user.a", nil}}},
	} {
		c := store(t, repo, dirmetaSuffix, bad.serialize())
		if _, err := repo.Dirmeta(c); err == nil || !strings.Contains(err.Error(), c.String()+".dirmeta") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostileTimestampsAreRefused(t *testing.T) {
	path := ostreetest.Repo(t)
	c := ostreetest.Commit(t, path, "test", ostreetest.Spec{"f": ostreetest.File("1")}.Write(t))
	repo, err := OpenRepo(path)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	sum, err := ParseChecksum(c)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(path, objectPath(sum, commitSuffix)))
	if err != nil {
		t.Fatal(err)
	}
	commit, err := repo.Commit(sum)
	if err != nil {
		t.Fatal(err)
	}
	timestamp := binary.BigEndian.AppendUint64(nil, uint64(commit.Timestamp.Unix()))
	data = bytes.Replace(data, timestamp, bytes.Repeat([]byte{0xff}, 8), 1)
	if _, err := repo.Commit(store(t, repo, commitSuffix, data)); err == nil || !strings.Contains(err.Error(), "year 9999") {
		t.Errorf("%v", err)
	}
}

func TestChecksums(t *testing.T) {
	text := strings.Repeat("0123456789abcdef", 4)
	c, err := ParseChecksum(text)
	if err != nil || c.String() != text || c.IsZero() {
		t.Errorf("%s: %s, %v", text, c, err)
	}
	var again Checksum
	if out, err := c.MarshalText(); err != nil || again.UnmarshalText(out) != nil || again != c {
		t.Errorf("through text: %s, %v", again, err)
	}
	if out, err := (Checksum{}).MarshalText(); err != nil || len(out) != 0 || again.UnmarshalText(out) != nil || !again.IsZero() {
		t.Errorf("the zero value through text: %q, %s, %v", out, again, err)
	}
	for _, bad := range []string{"", text[1:], text + "0", strings.ToUpper(text), text[:63] + "g", text[:63] + "/"} {
		if c, err := ParseChecksum(bad); err == nil {
			t.Errorf("%q was taken for %s", bad, c)
		}
		if bad != "" && again.UnmarshalText([]byte(bad)) == nil {
			t.Errorf("%q was unmarshaled", bad)
		}
	}
}

func TestBootEntriesAreSortedAsStrverscmpDoes(t *testing.T) {
	sorted := []string{"", "1", "2", "9", "10", "10.1", "10.2", "10.10", "123456789012345678901", "a", "a1", "a2", "a10", "b"}
	for i, a := range sorted {
		for j, b := range sorted {
			got := compareBootEntries(bootEntry{version: a}, bootEntry{version: b})
			if got > 0 != (i < j) || got < 0 != (i > j) {
				t.Errorf("%q against %q: %d", a, b, got)
			}
		}
	}
}

func TestKeyfiles(t *testing.T) {
	file, err := parseKeyfile([]byte("# comment\n\n[core]\nmode = bare \nempty=\nmode=archive\n[remote \"o\"]\nurl=http://x/?a=b\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range [][3]string{
		{"core", "mode", "archive"}, {"core", "empty", ""}, {"core", "none", ""}, {`remote "o"`, "url", "http://x/?a=b"}, {"none", "mode", ""},
	} {
		if got := file.get(tt[0], tt[1]); got != tt[2] {
			t.Errorf("[%s] %s is %q, want %q", tt[0], tt[1], got, tt[2])
		}
	}
	for _, bad := range []string{"key=value\n", "[core]\nnonsense\n", "[core\nkey=value\n"} {
		if _, err := parseKeyfile([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
