package content

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/overlay"
)

// image makes an image, a directory, with a shell script.
func (l *lab) image(script string) string {
	l.t.Helper()
	dir, err := os.MkdirTemp(l.dir, "image")
	if err != nil {
		l.t.Fatal(err)
	}
	l.sh(dir, script)
	return dir
}

func importOf(name, image string) overlay.Operation {
	return overlay.Operation{Verb: overlay.Import, Name: name, From: image}
}

func TestAnImageLandsWhereItBelongs(t *testing.T) {
	l := newTestLab(t)
	image := l.image(`
		mkdir -p lib/alias lib64 bin/empty sbin usr/share/doc usr/share/new/deep usr/also etc/app run/mine
		echo lib > lib/libfoo.so; echo lib64 > lib64/x; echo bin > bin/tool; echo sbin > sbin/tool; echo also > usr/also/y
		echo gnu > lib/alias/libbar.so; ln -s /etc/anywhere usr/share/absolute; ln usr/also/y usr/share/other-name
		printf 'new\nline' > "usr/share/new/$(printf 'a\nb')"; truncate -s 1M usr/share/sparse; echo end >> usr/share/sparse
		echo conf > etc/app/conf; echo run > run/mine/x; chown 7:9 usr/share/new; chmod 2711 usr/share/new; chmod 700 usr/share/doc
		setfattr -n user.color -v blue bin/tool; setfattr -n user.dir -v new usr/share/new; touch -d @1000000000.123456789 bin/tool usr/share/new/deep usr/share/new`)
	archive := filepath.Join(l.dir, "image.tar.zst")
	l.sh(l.dir, "tar --format=pax --sparse --zstd --xattrs --xattrs-include='*' -C "+image+" -cf "+archive+" .")
	for _, from := range []string{image, archive} {
		t.Run(filepath.Base(from), func(t *testing.T) {
			l.do(importOf("updates", from))
			p := l.placed("updates")
			if p.Kind != overlay.Updates || !p.Enabled || p.Source != from || p.Scope != overlay.System {
				t.Errorf("it is %+v", p.Overlay)
			}
			var got []string
			entries, err := p.Entries()
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				got = append(got, string(e.Kind)+" "+e.Path)
				if e.Base == nil || e.Opaque {
					t.Errorf("%+v", e)
				}
			}
			want := []string{
				"file etc/app/conf", "directory run/mine", "file run/mine/x", "directory usr/bin/empty", "file usr/bin/tool", "file usr/lib/libfoo.so",
				"file usr/lib/x86_64-linux-gnu/libbar.so", "file usr/lib64/x", "file usr/sbin/tool", "symlink usr/share/absolute",
				"directory usr/share/new", "file usr/share/new/a\nb", "directory usr/share/new/deep", "file usr/share/other-name", "file usr/share/sparse", "file usr/share/y",
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("content (-want +got):\n%s", diff)
			}
			tree := p.Tree()
			if inodeOf(tree+"/usr/share/y") != inodeOf(tree+"/usr/share/other-name") {
				t.Error("the hard link is another file")
			}
			text := strings.Join(lines(t, tree), "")
			for _, want := range []string{
				`"usr/share/doc" directory 2750 7:8 map["user.dir":"x"]`, // as in the system
				`"usr/share/new" directory 2711 7:9 map["user.dir":"new"]`,
				`"usr/bin/tool" file 644 0:0 map["user.color":"blue"] opaque=false "bin\n" 1000000000123456789`,
				`"usr/share/absolute" symlink 777 0:0 map[] opaque=false /etc/anywhere`,
			} {
				if !strings.Contains(text, want) {
					t.Errorf("there is no %s in\n%s", want, text)
				}
			}
			var st unix.Stat_t
			for _, dir := range []string{"usr/share/new", "usr/share/new/deep"} {
				if err := unix.Stat(filepath.Join(tree, dir), &st); err != nil || st.Mtim != unix.NsecToTimespec(1000000000123456789) {
					t.Errorf("%s is of %v, %v", dir, time.Unix(st.Mtim.Unix()), err)
				}
			}
			if err := unix.Stat(filepath.Join(tree, "usr/share/sparse"), &st); err != nil || st.Size < 1<<20 || st.Blocks*512 > 64<<10 {
				t.Errorf("the sparse file has %d bytes on %d blocks, %v", st.Size, st.Blocks, err)
			}
			if _, err := os.Lstat(filepath.Join(tree, "lib")); err == nil {
				t.Error("there is something in the place of the link lib")
			}
			l.do(overlay.Operation{Verb: overlay.Remove, Name: "updates"})
		})
	}
}

func TestImagesThatDoNotFitAreRefused(t *testing.T) {
	l := newTestLab(t)
	l.do(overlay.Operation{Verb: overlay.Create, Name: "a"}, set("a", "/usr/x", l.input("x")), importOf("updates", l.image("mkdir usr; echo old > usr/updated")))
	l.under.Systemd = 252
	for words, script := range map[string]string{
		`entry "opt": "opt" is no path`:                        "mkdir -p usr opt; echo > usr/good",
		`entry "README": "README" is no path`:                  "echo > README",
		`entry "var": "var" is no path`:                        "mkdir -p var/run; echo > var/run/x",
		`entry "lib": /lib stays as it is`:                     "ln -s usr/lib lib",
		`entry "sbin": /sbin stays`:                            "echo > sbin",
		`entry "usr": /usr stays`:                              "ln -s / usr",
		`entry "usr/tmp/x"`:                                    "mkdir -p usr/tmp; echo > usr/tmp/x",
		`entry "usr/bin/sh": /usr/bin/sh is no directory`:      "mkdir -p usr/bin/sh; echo > usr/bin/sh/x",
		`entry "usr/share/doc": /usr/share/doc is a directory`: "mkdir -p usr/share; echo > usr/share/doc",
		`"usr/lib/x": it belongs at /usr/lib/x in this system`: "mkdir -p lib usr/lib; echo > lib/x; echo > usr/lib/x",
		"is a device node: ":                                   "mkdir usr; mknod usr/gone c 0 0",
		"is a FIFO: ":                                          "mkdir usr; mkfifo usr/fifo",
		"AllowSetuid":                                          "mkdir usr; echo > usr/su; chmod u+s usr/su",
		"has capabilities":                                     "mkdir usr; echo > usr/ping; setcap cap_net_raw+ep usr/ping",
		"use --force":                                          "mkdir -p lib/x86_64-linux-gnu; echo > lib/x86_64-linux-gnu/libc.so.6",
		"UTF-8":                                                `mkdir usr; echo > "usr/$(printf '\377')"`,
	} {
		l.refused(words, importOf("updates", l.image(script)))
		l.refused(words, importOf("another", l.image(script)))
	}
	l.refused("import the image under another name", importOf("a", l.image("mkdir usr; echo > usr/x")))
	l.refused("it is what an updates image has", set("updates", "/usr/x", l.input("x")))
	l.refused("checksum", overlay.Operation{Verb: overlay.Import, Name: "new", From: "http://localhost:1/image"})
	truncated := filepath.Join(l.dir, "truncated.tar")
	l.sh(l.dir, "tar -C "+l.image("mkdir usr; seq 100000 > usr/long")+" -cf - . | head -c 100000 > "+truncated)
	l.refused("truncated", importOf("new", truncated))
	sum := strings.Repeat("0", 64)
	l.refused("and not "+sum, overlay.Operation{Verb: overlay.Import, Name: "new", From: truncated, SHA256: sum})
	bomb := filepath.Join(l.dir, "bomb.tar.zst")
	l.sh(l.dir, "tar --zstd -C "+l.image("mkdir usr; truncate -s 5G usr/zeros")+" --sparse -cf "+bomb+" .")
	l.refused("4294967296 bytes, which is the limit", importOf("new", bomb))
	l.rules.MaxSize = 1000
	l.refused("1000 bytes, which is the limit", importOf("new", l.image("mkdir usr; seq 1000 > usr/long")))
}

// A second import takes the place of the first, with what an administrator has set.
func TestImportingAgainReplacesTheContent(t *testing.T) {
	l := newTestLab(t)
	first := overlay.Operation{Verb: overlay.Import, Name: "updates", From: l.image("mkdir usr; echo 1 > usr/one; echo 1 > usr/both"), Priority: 7}
	l.do(first, overlay.Operation{Verb: overlay.Disable, Name: "updates"})
	second := l.image("mkdir usr; echo 2 > usr/two; echo 2 > usr/both")
	l.do(importOf("updates", second))
	p := l.placed("updates")
	if p.Enabled || p.Priority != 7 || p.Source != second || p.Generation != 2 {
		t.Errorf("it is %+v", p.Overlay)
	}
	got := strings.Join(lines(t, p.Tree()), "")
	if strings.Contains(got, "one") || !strings.Contains(got, `"usr/both" file 644 0:0 map[] opaque=false "2\n"`) || !strings.Contains(got, `"usr/two"`) {
		t.Errorf("it has\n%s", got)
	}
}

// A system without links in its root directory has no place for lib/.
func TestNamesOfASystemThatIsNotMerged(t *testing.T) {
	l := newLab(t, t.TempDir(), "mkdir -p usr/lib lib etc run")
	l.refused(`"lib" is no path`, importOf("updates", l.image("mkdir -p usr lib; echo > lib/x")))
	names := []string{}
	l.do(importOf("updates", l.image("mkdir -p usr/lib; echo > usr/lib/x")))
	entries, err := l.placed("updates").Entries()
	for _, e := range entries {
		names = append(names, e.Path)
	}
	if err != nil || !slices.Equal(names, []string{"usr/lib/x"}) {
		t.Errorf("it has %v, %v", names, err)
	}
}
