package ostree

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
	"golang.org/x/sys/unix"
)

func TestDraftsAreReadAndWrittenAsLibostreeWould(t *testing.T) {
	path := seedRepo(t)
	r, err := OpenRepo(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	heads := strings.Fields(ostreetest.Run(t, "ostree", "--repo="+path, "refs"))
	base, err := r.Resolve(heads[0])
	if err != nil {
		t.Fatal(err)
	}
	parent, err := r.Commit(base)
	if err != nil {
		t.Fatal(err)
	}
	content := strings.Repeat("of a file\n", 1000)
	file := r.DraftFile(File{UID: 3, GID: 4, Mode: unix.S_IFREG | 0o4711, Xattrs: []Xattr{{Name: "user.test", Value: []byte{0, 1}}}}, []byte(content))
	below := r.DraftDirtree(&Dirtree{Files: []FileEntry{{Name: "set uid", Checksum: file}}})
	root := r.DraftDirtree(&Dirtree{
		Files: []FileEntry{{Name: "a", Checksum: file}, {Name: strings.Repeat("ä", 120), Checksum: file}},
		Dirs:  []DirEntry{{Name: "dir", Tree: Tree{Contents: below, Meta: parent.Root.Meta}}, {Name: "empty", Tree: Tree{Contents: r.DraftDirtree(&Dirtree{}), Meta: parent.Root.Meta}}},
	})
	commit := r.DraftCommit(Commit{
		Parent: base, Subject: "A subject", Body: "and\na body", Timestamp: time.Unix(1700000000, 0), Root: Tree{Contents: root, Meta: parent.Root.Meta},
	}, map[string]any{"test.text": "some text", "test.list": []string{"one", "", "three"},
		"test.packages": [][5]string{{"zlib", "0", "1.3", "1.fc42", "x86_64"}, {strings.Repeat("long", 100), "", "2", "1", "noarch"}}, "test.none": [][5]string{}, "a": strings.Repeat("long ", 100)})

	read := func() string {
		t.Helper()
		got, err := r.Commit(commit)
		if err != nil {
			t.Fatal(err)
		}
		entry, err := r.Lookup(got.Root, "dir/set uid")
		if err != nil {
			t.Fatal(err)
		}
		text, err := r.ReadFile(entry.Checksum, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		return got.Subject + string(text)
	}
	if got := read(); got != "A subject"+content || !r.IsDraft(commit) {
		t.Errorf("drafts are read as %.100q", got)
	}
	if _, err := os.Stat(filepath.Join(path, objectPath(commit, commitSuffix))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a draft is in the repo (%v)", err)
	}
	for range 2 { // what is there already is left alone
		if err := r.WriteDrafts(); err != nil {
			t.Fatal(err)
		}
		r.DraftDirtree(&Dirtree{})
	}
	if got := read(); got != "A subject"+content || r.IsDraft(commit) {
		t.Errorf("what was written is read as %.100q", got)
	}
	if err := r.VerifyFile(file); err != nil {
		t.Error(err)
	}
	ostree := func(args ...string) string {
		return ostreetest.Run(t, "ostree", append([]string{"--repo=" + path}, args...)...)
	}
	ostree("refs", "--create=drafted", commit.String())
	ostree("fsck", "--quiet")
	for _, want := range []string{"04711 3 4  10000", "{ [(b'user.test', [byte 0x00, 0x01])] } /dir/set uid"} {
		if list := ostree("ls", "-R", "-X", "drafted"); !strings.Contains(list, want) {
			t.Errorf("ostree ls does not show %q:\n%s", want, list)
		}
	}
	shown := ostree("show", "drafted")
	for _, want := range []string{"A subject", "and", "a body", "Parent:  " + base.String(), "2023-11-14"} {
		if !strings.Contains(shown, want) {
			t.Errorf("ostree show does not have %q:\n%s", want, shown)
		}
	}
	for key, want := range map[string]string{"test.text": "'some text'", "test.list": "['one', '', 'three']", "test.none": "@a(sssss) []",
		"test.packages": "[('zlib', '0', '1.3', '1.fc42', 'x86_64'), ('" + strings.Repeat("long", 100) + "', '', '2', '1', 'noarch')]", "a": "'" + strings.Repeat("long ", 100) + "'"} {
		if got := strings.TrimSpace(ostree("show", "--print-metadata-key="+key, "drafted")); got != want {
			t.Errorf("ostree show has %s as %s", key, got)
		}
	}
}
