package ostree

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/liveapply/liveapply/internal/fuzztest"
	"github.com/liveapply/liveapply/internal/gvariant"
	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
)

// perByte is how much memory parsing may take for a byte of input.
const perByte = 64

// seedRepo makes a repo with a commit that has every kind of object.
func seedRepo(t testing.TB) string {
	path := ostreetest.Repo(t)
	ostreetest.Commit(t, path, "test", ostreetest.Spec{
		"":             {Mode: os.ModeDir | 0o755, Xattrs: map[string]string{"user.a": "1", "user.b": "2"}},
		"usr/bin/file": ostreetest.File("1"), "usr/bin/link": ostreetest.Link("file"),
		"usr/lib/a/b": ostreetest.File("2"), "usr/owned": {Mode: os.ModeDir | 0o700, UID: 1, GID: 2},
		"usr/bin/xattrs": {Mode: 0o4755, UID: 3, Content: "x", Xattrs: map[string]string{"user.x": "", "user.y": "\x00"}},
	}.Write(t))
	return path
}

// realObjects returns the paths of a real commit's objects.
func realObjects(t testing.TB, repo, suffix string) []string {
	objects, err := filepath.Glob(repo + "/objects/*/*" + suffix)
	if err != nil || len(objects) == 0 {
		t.Fatal("no objects: ", err)
	}
	return objects
}

// seed gives a fuzz target the objects of a real commit.
func seed(f *testing.F, suffix string) {
	for _, name := range realObjects(f, seedRepo(f), suffix) {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
}

// What is read has one serialized form, so nothing in an object can be overlooked.
func FuzzDirtree(f *testing.F) {
	seed(f, dirtreeSuffix)
	for _, names := range [][]string{{"b", "a"}, {"a", "a"}, {".."}, {"a/b"}} {
		tree := &Dirtree{}
		for _, name := range names {
			tree.Files = append(tree.Files, FileEntry{Name: name, Checksum: Checksum{1}})
		}
		f.Add(tree.serialize())
	}
	f.Add(append(make([]byte, 60000), 0x60, 0xea)) // claims 30,000 files
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzz(t, dirtreeType, data, func(v gvariant.Value) ([]byte, error) {
			tree, err := parseDirtree(v)
			if err != nil {
				return nil, err
			}
			if err := checkNames(tree); err != nil {
				t.Error(err)
			}
			return tree.serialize(), nil
		})
	})
}

// checkNames is what Dirtree promises, in other words than those of the parser.
func checkNames(tree *Dirtree) error {
	var names []string
	for _, file := range tree.Files {
		names = append(names, file.Name)
	}
	files := len(names)
	for _, dir := range tree.Dirs {
		names = append(names, dir.Name)
	}
	if !slices.IsSorted(names[:files]) || !slices.IsSorted(names[files:]) {
		return fmt.Errorf("%q is not sorted", names)
	}
	seen := map[string]bool{}
	for _, name := range names {
		if seen[name] || !utf8.ValidString(name) || !filepath.IsLocal(name) || name == "." || strings.ContainsAny(name, "/\x00") {
			return fmt.Errorf("%q is no name, or there twice", name)
		}
		seen[name] = true
	}
	return nil
}

func FuzzDirmeta(f *testing.F) {
	seed(f, dirmetaSuffix)
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzz(t, dirmetaType, data, func(v gvariant.Value) ([]byte, error) {
			meta, err := parseDirmeta(v)
			if err != nil {
				return nil, err
			}
			return meta.serialize(), nil
		})
	})
}

func FuzzCommit(f *testing.F) {
	seed(f, commitSuffix)
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzz(t, commitType, data, func(v gvariant.Value) ([]byte, error) {
			commit, err := parseCommit(v)
			if err != nil {
				return nil, err
			}
			if commit.Root.Contents.IsZero() || commit.Root.Meta.IsZero() {
				t.Error("a commit without a tree")
			}
			for _, part := range [][]byte{
				commit.Root.Contents[:], commit.Root.Meta[:], []byte(commit.Subject), []byte(commit.Body), commit.Metadata.Data(),
				binary.BigEndian.AppendUint64(nil, uint64(commit.Timestamp.Unix())),
			} {
				if !bytes.Contains(data, part) {
					t.Errorf("%q is not in the commit", part)
				}
			}
			return data, nil
		})
	})
}

// fuzz parses an object whether it is in normal form or not; only if it is, what was parsed has to be what data says.
func fuzz(t *testing.T, typ string, data []byte, parse func(gvariant.Value) ([]byte, error)) {
	value, err := gvariant.New(typ, data)
	if err != nil {
		t.Fatal(err)
	}
	var normal error
	var again []byte
	fuzztest.Bounded(t, len(data), perByte, func() {
		normal = value.CheckNormal()
		again, err = parse(value)
	})
	if normal == nil && err == nil && !bytes.Equal(again, data) {
		t.Errorf("%x was read as %x", data, again)
	}
}

// The header that a file object's checksum covers says all that the file is, as a GVariant in normal form.
func FuzzFileHeader(f *testing.F) {
	repo, err := OpenRepo(seedRepo(f))
	if err != nil {
		f.Fatal(err)
	}
	defer repo.Close()
	for _, name := range realObjects(f, repo.path, fileSuffix) {
		digits := filepath.Base(filepath.Dir(name)) + strings.TrimSuffix(filepath.Base(name), fileSuffix)
		c, err := ParseChecksum(digits)
		if err != nil {
			f.Fatal(err)
		}
		if err := repo.VerifyFile(c); err != nil { // so its header is what libostree hashed
			f.Fatal(err)
		}
		file, err := repo.File(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(file.UID, file.GID, file.Mode, file.Target, serializeXattrs(file.Xattrs))
	}
	f.Fuzz(func(t *testing.T, uid, gid, mode uint32, target string, xattrs []byte) {
		value, err := gvariant.New("a(ayay)", xattrs)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := parseXattrs(value)
		if err != nil || value.CheckNormal() != nil || !utf8.ValidString(target) || strings.Contains(target, "\x00") {
			return
		}
		want := File{UID: uid, GID: gid, Mode: mode, Target: target, Xattrs: parsed}
		var header []byte
		fuzztest.Bounded(t, len(target)+len(xattrs), perByte, func() { header = fileHeader(&want) })
		if size := binary.BigEndian.Uint64(header); size != uint64(len(header)-8)<<32 {
			t.Errorf("%x as the size of %d bytes", size, len(header)-8)
		}
		if got := readHeader(t, header[8:]); !cmp.Equal(want, got, cmpopts.EquateEmpty()) {
			t.Errorf("of %+v the header says %+v", want, got)
		}
	})
}

func readHeader(t *testing.T, data []byte) (file File) {
	t.Helper()
	value, err := gvariant.New("(uuuusa(ayay))", data)
	if err != nil {
		t.Fatal(err)
	}
	if err := value.CheckNormal(); err != nil {
		t.Fatal(err)
	}
	var members [6]gvariant.Value
	if err := value.Members(members[:]); err != nil {
		t.Fatal(err)
	}
	for i, field := range []*uint32{&file.UID, &file.GID, &file.Mode} {
		if *field, err = members[i].Uint32(binary.BigEndian); err != nil {
			t.Fatal(err)
		}
	}
	if file.Target, err = members[4].Text(); err != nil {
		t.Fatal(err)
	}
	if file.Xattrs, err = parseXattrs(members[5]); err != nil {
		t.Fatal(err)
	}
	return file
}

// The deployment that the staged one of the corpus is.
var stagedInCorpus = Deployment{OSName: "debian", Serial: 0, Staged: true}

const stagedCommit = "689d1b371b5fde943f58d2821b6fbed61a1f1fd07e8d6b68eadccb5d2c0bdcf9"

// Whatever is read as the staged deployment is one that exists.
func FuzzStagedDeployment(f *testing.F) {
	for _, seed := range []string{"", "nonsense", "target\x00\x00"} {
		f.Add([]byte(seed))
	}
	want := stagedInCorpus
	var err error
	if want.Commit, err = ParseChecksum(stagedCommit); err != nil {
		f.Fatal(err)
	}
	s := &Sysroot{root: f.TempDir()}
	if err := os.MkdirAll(filepath.Join(s.root, want.Path()), 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var d Deployment
		var ok bool
		var err error
		fuzztest.Bounded(t, len(data), perByte, func() { d, ok, err = s.parseStaged(data) })
		d.Locked = false
		if err == nil && ok && d != want {
			t.Errorf("%q is deployment %+v, which does not exist", data, d)
		}
		fuzztest.Bounded(t, len(data), perByte, func() { _, _ = parseStagedKernelArgs(data) })
	})
}

func TestStagedDeploymentOfLibostreeIsRead(t *testing.T) {
	s := &Sysroot{root: t.TempDir()}
	want := stagedInCorpus
	var err error
	if want.Commit, err = ParseChecksum(stagedCommit); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.root, want.Path()), 0o755); err != nil {
		t.Fatal(err)
	}
	got, ok, err := s.parseStaged(fromCorpus(t, "FuzzStagedDeployment/staged-by-libostree"))
	if err != nil || !ok || got != want {
		t.Errorf("got %+v, %t, %v, want %+v", got, ok, err, want)
	}
	if _, ok, err := backingRoot(fromCorpus(t, "FuzzBootedMetadata/booted")); err != nil || !ok {
		t.Errorf("backing root: %t, %v", ok, err)
	}
}

// fromCorpus returns the bytes of a checked-in input.
func fromCorpus(t *testing.T, name string) (data []byte) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata/fuzz", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(string(text), "go test fuzz v1\n[]byte(%q)", &data); err != nil {
		t.Fatal(err)
	}
	return data
}

// The identity of the booted deployment stands in /run/ostree-booted, or is not read from it.
func FuzzBootedMetadata(f *testing.F) {
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		var id identity
		var ok bool
		var err error
		fuzztest.Bounded(t, len(data), perByte, func() { id, ok, err = backingRoot(data) })
		pair := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, id.device), id.inode)
		switch {
		case err != nil || !ok:
			if id != (identity{}) {
				t.Errorf("%v with %t, %v", id, ok, err)
			}
		case !bytes.Contains(data, pair):
			t.Errorf("%v is not in %q", id, data)
		}
	})
}

// What a boot loader entry leads to is a link below /ostree.
func FuzzBootEntry(f *testing.F) {
	f.Add([]byte("title x\nversion 1\noptions root=UUID=1 rw ostree=/ostree/boot.0/debian/0123abcd/0 quiet\nlinux /vmlinuz\n"))
	f.Add([]byte("version\t2\noptions\tostree=/ostree/boot.1/../x/0"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var link string
		var err error
		fuzztest.Bounded(t, len(data), perByte, func() {
			entry := parseBootEntry(data)
			link, err = bootLink(entry.options)
			if c := compareBootEntries(entry, entry); c != 0 {
				t.Errorf("%q is not as high as itself: %d", entry.version, c)
			}
		})
		if err != nil {
			return
		}
		if !bytes.Contains(data, []byte("ostree="+link)) || filepath.Clean(link) != link || !strings.HasPrefix(link, "/ostree/boot.") || strings.Count(link, "/") != 5 {
			t.Errorf("%q leads to %q", data, link)
		}
	})
}

// Versions of boot loader entries are in one order, whichever is asked for first.
func FuzzBootVersions(f *testing.F) {
	f.Add("1", "10", "9")
	f.Add("6.1.0-13", "6.1.0-9", "6.1")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if compareVersions(a, b) != -compareVersions(b, a) {
			t.Errorf("%q and %q have no order", a, b)
		}
		if compareVersions(a, b) <= 0 && compareVersions(b, c) <= 0 && compareVersions(a, c) > 0 {
			t.Errorf("%q, %q and %q go in a circle", a, b, c)
		}
	})
}

// A ref's file holds a checksum and nothing else.
func FuzzRef(f *testing.F) {
	f.Add([]byte(stagedCommit + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseRef(data)
		if err == nil && strings.TrimRight(string(data), " \t\r\n") != c.String() {
			t.Errorf("%q was read as %s", data, c)
		}
	})
}

// A refspec that is valid names a file below refs/heads or refs/remotes, and is put together again from its parts.
func FuzzRefspec(f *testing.F) {
	for _, seed := range []string{"debian/12/x86_64/standard", "origin:debian/12", "liveapply/live", "../x", "a:b:c", stagedCommit} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, refspec string) {
		remote, ref, ok := parseRefspec(refspec)
		if !ok {
			return
		}
		whole, path := ref, "refs/heads/"+ref
		if remote != "" {
			whole, path = remote+":"+ref, "refs/remotes/"+remote+"/"+ref
		}
		if whole != refspec || filepath.Clean(path) != path || !utf8.ValidString(refspec) || strings.ContainsAny(refspec, "\x00\n ") {
			t.Errorf("%q is %q of %q, at %s", refspec, ref, remote, path)
		}
		if err := validateRef(refspec); (err == nil) != (remote == "" && !isChecksum(refspec)) {
			t.Errorf("%q as a local ref: %v", refspec, err)
		}
	})
}

func isChecksum(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }

// A deployment has the name that it was read from, but for leading zeros, which libostree takes, too.
func FuzzDeployID(f *testing.F) {
	for _, seed := range []string{stagedCommit + ".0", stagedCommit + ".12", stagedCommit, stagedCommit + ".-1", stagedCommit + ".99999999999"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		commit, serial, err := parseDeployID(name)
		if err != nil {
			return
		}
		digits, number, _ := strings.Cut(name, ".")
		id := Deployment{Commit: commit, Serial: serial}.ID()
		if again := digits + "." + strings.TrimLeft(number, "0"); again != id && again+"0" != id {
			t.Errorf("%q is %q", name, id)
		}
	})
}

// A keyfile says the same when it is written anew.
func FuzzKeyfile(f *testing.F) {
	config, err := os.ReadFile(filepath.Join(seedRepo(f), "config"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(config)
	f.Add([]byte("[origin]\nrefspec=debian:12\n\n[libostree-transient]\npinned=true\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var file keyfile
		var err error
		fuzztest.Bounded(t, len(data), 4*perByte, func() { file, err = parseKeyfile(data) })
		if err != nil {
			return
		}
		var text strings.Builder
		for _, group := range slices.Sorted(maps.Keys(file)) {
			fmt.Fprintf(&text, "[%s]\n", group)
			for _, key := range slices.Sorted(maps.Keys(file[group])) {
				fmt.Fprintf(&text, "%s = %s\n", key, file.get(group, key))
			}
		}
		again, err := parseKeyfile([]byte(text.String()))
		if diff := cmp.Diff(file, again); err != nil || diff != "" {
			t.Errorf("%q: %v\n%s", data, err, diff)
		}
	})
}
