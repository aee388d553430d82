package content

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/liveapply/liveapply/internal/overlay"
)

// backup writes one to a file of the lab.
func (l *lab) backup(name, file string) (path string) {
	l.t.Helper()
	var content bytes.Buffer
	if err := Backup(l.placed(name), &content); err != nil {
		l.t.Fatal(err)
	}
	path = filepath.Join(l.dir, file)
	if err := os.WriteFile(path, content.Bytes(), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return path
}

func restoreOf(name, path string) overlay.Operation {
	return overlay.Operation{Verb: overlay.Restore, Name: name, From: path}
}

// newBackupLab has overlays with all that there can be.
func newBackupLab(t *testing.T) *lab {
	t.Helper()
	l := newTestLab(t)
	l.rules.AllowSetuid = true
	l.sh(l.dir, "mkdir -p image/usr/share/deep/er image/etc; echo 1 > image/usr/share/deep/x; ln image/usr/share/deep/x image/usr/share/y; ln -s /x image/usr/share/link")
	l.sh(l.dir, `cd image/usr/share; truncate -s 2M sparse; echo > "$(printf 'a\nb')"; echo p > ping; setcap cap_net_raw+ep ping; chown -h 3:4 link deep; setfattr -n user.x -v y deep; touch -d @1.5 y deep; echo c > ../../etc/new`)
	l.do(importOf("updates", filepath.Join(l.dir, "image")))
	l.do(overlay.Operation{Verb: overlay.Create, Name: "a", Priority: -3, Scope: overlay.Global}, overlay.Operation{Verb: overlay.Mask, Name: "a", Path: "/usr/share/doc/sub"}, overlay.Operation{Verb: overlay.Mask, Name: "a", Path: "/etc/app"},
		overlay.Operation{Verb: overlay.Disable, Name: "a"})
	l.do(set("a", "/usr/share/doc/sub/new", l.input("new")))
	l.do(overlay.Operation{Verb: overlay.Create, Name: "w", Writable: true}, overlay.Operation{Verb: overlay.Create, Name: "empty", Scope: "user:1000"},
		overlay.Operation{Verb: overlay.Create, Name: "unit", Scope: "unit:a.service"}, set("unit", "/usr/share/x", l.input("x")))
	l.sh(mountWritable(t, l, "w"), written)
	l.sh(l.dir, "umount shown")
	return l
}

func TestARestoredOverlayIsWhatItWas(t *testing.T) {
	l := newBackupLab(t)
	for _, name := range []string{"updates", "a", "w", "empty", "unit"} {
		first := l.backup(name, name)
		was, before := l.placed(name), l.state()
		entries, err := was.Entries()
		if err != nil {
			t.Fatal(err)
		}
		l.refused("there is one of this name already", restoreOf("", first))
		l.do(overlay.Operation{Verb: overlay.Remove, Name: name})
		about, err := ReadBackup(t.Context(), first)
		if err != nil || about.Name != name || about.Scope != was.Scope {
			t.Errorf("the backup of %s is of %+v, %v", name, about, err)
		}
		l.do(restoreOf("", first))
		if diff := cmp.Diff(before, l.state()); diff != "" {
			t.Errorf("%s restored (-was +is):\n%s", name, diff)
		}
		if restored, err := l.placed(name).Entries(); err != nil || !reflect.DeepEqual(restored, entries) {
			t.Errorf("%s restored has %+v, %v, and had %+v", name, restored, err, entries)
		}
		again, err := os.ReadFile(l.backup(name, "again"))
		if err != nil {
			t.Fatal(err)
		}
		if content, err := os.ReadFile(first); err != nil || name != "w" && !bytes.Equal(content, again) { // w has times of directories that are the system's again
			t.Errorf("the backup of %s restored is another one, %v", name, err)
		}
		l.do(overlay.Operation{Verb: overlay.Disable, Name: name}, restoreOf("copy", first), overlay.Operation{Verb: overlay.Remove, Name: "copy"})
		l.tidy()
	}
}

// Whoever unpacks a backup gets files, and no devices.
func TestTarCanReadABackup(t *testing.T) {
	l := newBackupLab(t)
	l.backup("a", "backup")
	got := l.sh(l.dir, "mkdir unpacked; tar --zstd -C unpacked -xf backup; cd unpacked; find . ! -type d | sort; cat tree/usr/share/doc/sub/new")
	if want := "./overlay.json\n./tree/usr/share/doc/sub/new\nnew"; got != want {
		t.Errorf("tar unpacks\n%s", got)
	}
}

func TestADamagedBackupIsRefused(t *testing.T) {
	l := newBackupLab(t)
	content, err := os.ReadFile(l.backup("updates", "backup"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(l.dir, "damaged")
	before := l.state()
	whole := lines(t, l.placed("updates").Tree())
	try := func(what string, content []byte, mayMeanTheSame bool) {
		t.Helper()
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := l.try(restoreOf("restored", path)); err == nil {
			if !mayMeanTheSame || !slices.Equal(lines(t, l.placed("restored").Tree()), whole) {
				t.Fatalf("%s: it was restored", what)
			}
			l.do(overlay.Operation{Verb: overlay.Remove, Name: "restored"})
		}
		l.tidy()
		if l.state() != before || l.strangers() != nil {
			t.Fatalf("%s: something changed", what)
		}
	}
	for at := 0; at < len(content); at += 1 + len(content)/60 {
		try("cut off", content[:at], false)
		damaged := bytes.Clone(content)
		damaged[at] ^= 0x10
		try("with a bit changed", damaged, true) // some have no meaning to zstd
	}
	try("with more", append(bytes.Clone(content), "more"...), false)
	try("twice", append(bytes.Clone(content), content...), false)
}

// rewritten is a backup in which the description, or an entry, is another one; an entry that is nil is left out.
func (l *lab) rewritten(from string, describe func(*description), entry func(*tar.Header, []byte) (*tar.Header, []byte)) string {
	l.t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		l.t.Fatal(err)
	}
	unpacked, err := zstd.NewReader(bytes.NewReader(content))
	if err != nil {
		l.t.Fatal(err)
	}
	defer unpacked.Close()
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	for in := tar.NewReader(unpacked); ; {
		header, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			l.t.Fatal(err)
		}
		content, err := io.ReadAll(in)
		if err != nil {
			l.t.Fatal(err)
		}
		if header.Name == descriptionName {
			about := &description{}
			if err := json.Unmarshal(content, about); err != nil {
				l.t.Fatal(err)
			}
			describe(about)
			if content, err = json.Marshal(about); err != nil {
				l.t.Fatal(err)
			}
		} else if header, content = entry(header, content); header == nil {
			continue
		}
		header.Size = int64(len(content))
		if header.Typeflag != tar.TypeReg {
			header.Size = 0
		}
		if err := archive.WriteHeader(header); err != nil {
			l.t.Fatal(err)
		}
		if header.Size > 0 {
			if _, err := archive.Write(content); err != nil {
				l.t.Fatal(err)
			}
		}
	}
	if err := archive.Close(); err != nil {
		l.t.Fatal(err)
	}
	path := filepath.Join(l.dir, "rewritten")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return path
}

func TestAHostileBackupIsRefused(t *testing.T) {
	l := newBackupLab(t)
	l.rules.AllowSetuid = false
	l.do(overlay.Operation{Verb: overlay.Remove, Name: "updates"}, overlay.Operation{Verb: overlay.Create, Name: "updates"}, set("updates", "/usr/share/y", l.input("y")), set("updates", "/usr/share/z", l.input("z")))
	from := l.backup("updates", "backup")
	same := func(h *tar.Header, content []byte) (*tar.Header, []byte) { return h, content }
	as := func(*description) {}
	last := func(a *description) *described { return &a.Entries[len(a.Entries)-1] }
	for words, describe := range map[string]func(*description){
		"names a generation":             func(a *description) { a.Overlay.Generation = 3 },
		"version 2":                      func(a *description) { a.Version = 2 },
		"is no scope":                    func(a *description) { a.Overlay.Scope = "x" },
		"not described as it should be":  func(a *description) { a.Overlay.Kind = "x" },
		"the description says something": func(a *description) { last(a).Mode = 0o4755 },
		"its sha256 is":                  func(a *description) { last(a).SHA256 = strings.Repeat("0", 64) },
		"is missing":                     func(a *description) { a.Entries = append(a.Entries, described{Path: "usr/zz", Kind: overlay.File}) },
		"makes no sense":                 func(a *description) { a.Entries = append(a.Entries, described{Path: "usr/zz", Kind: overlay.Special}) },
		"in a way that makes no sense":   func(a *description) { a.Entries = append(a.Entries, *last(a)) },
		`".."`: func(a *description) {
			a.Entries = append(a.Entries, described{Path: "usr/../../x", Kind: overlay.Masked})
		},
		"it is at /usr/lib/x in this": func(a *description) { a.Entries = append(a.Entries, described{Path: "lib/x", Kind: overlay.Masked}) },
		"it holds files below /usr":   func(a *description) { a.Entries = append(a.Entries, described{Path: "var/x", Kind: overlay.Masked}) },
		"use --force": func(a *description) {
			a.Entries = append(a.Entries, described{Path: "usr/lib/systemd", Kind: overlay.Masked})
		},
		"and does not have that":          func(a *description) { a.Bases["usr/zz"] = overlay.Base{} },
		"do not fit into":                 func(a *description) { last(a).Size = 1 << 60 },
		"says something else":             func(a *description) { last(a).ModTime = last(a).ModTime.Add(time.Nanosecond) },
		"the description says something ": func(a *description) { last(a).Xattrs = map[string][]byte{"security.capability": nil} },
		"description says something else": func(a *description) { a.Entries = a.Entries[:len(a.Entries)-1]; delete(a.Bases, "usr/share/z") },
	} {
		l.refused(words, restoreOf("restored", l.rewritten(from, describe, same)))
	}
	for words, entry := range map[string]func(*tar.Header, []byte) (*tar.Header, []byte){
		"its sha256 is": func(h *tar.Header, content []byte) (*tar.Header, []byte) { return h, bytes.ToUpper(content) },
		"says something else": func(h *tar.Header, content []byte) (*tar.Header, []byte) {
			h.Mode |= 0o4000
			return h, content
		},
		"device node": func(h *tar.Header, content []byte) (*tar.Header, []byte) {
			if strings.HasSuffix(h.Name, "/z") {
				h.Typeflag = tar.TypeChar
			}
			return h, content
		},
		`".."`: func(h *tar.Header, content []byte) (*tar.Header, []byte) {
			h.Name = "../" + h.Name
			return h, content
		},
		"does not name it": func(h *tar.Header, content []byte) (*tar.Header, []byte) {
			h.Name = "x" + h.Name
			return h, content
		},
		"is missing": func(h *tar.Header, content []byte) (*tar.Header, []byte) {
			if strings.HasSuffix(h.Name, "/z") {
				return nil, nil
			}
			return h, content
		},
	} {
		l.refused(words, restoreOf("restored", l.rewritten(from, as, entry)))
	}
	l.do(restoreOf("restored", l.rewritten(from, as, same)))
	l.refused("no description comes first", importAsBackup(l))
}

func importAsBackup(l *lab) overlay.Operation {
	l.sh(l.dir, "tar -C image -cf image.tar .")
	return restoreOf("other", filepath.Join(l.dir, "image.tar"))
}
