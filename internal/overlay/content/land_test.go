package content

import (
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/overlay"
)

func TestContentLandsWhereTheSystemHasIt(t *testing.T) {
	l := newTestLab(t)
	for path, want := range map[string]string{
		"/usr/share/doc/a":       "usr/share/doc/a",
		"usr//share/./doc/a/":    "usr/share/doc/a",
		"/lib/libx.so":           "usr/lib/libx.so",
		"lib64/ld.so":            "usr/lib64/ld.so",
		"/bin/tool":              "usr/bin/tool",
		"/sbin/deep/tool":        "usr/sbin/deep/tool",
		"/usr/also/doc/a":        "usr/share/doc/a",
		"/lib/alias/libc.so.6":   "usr/lib/x86_64-linux-gnu/libc.so.6",
		"/usr/bin/link":          "usr/bin/link", // the last component is not followed
		"/lib/alias":             "usr/lib/alias",
		"/etc/app/a\nb":          "etc/app/a\nb",
		"/run/new/dir/file":      "run/new/dir/file",
		"/usr/bin/sh/impossible": "usr/bin/sh/impossible", // which the tree refuses
	} {
		got, err := l.under.Land(path)
		if err != nil || got != want {
			t.Errorf("%q lands at %q (%v), and not at %q", path, got, err, want)
		}
	}
}

func TestWhatIsNoPlaceForContentIsRefused(t *testing.T) {
	l := newTestLab(t)
	for path, words := range map[string]string{
		"":                   "it holds files below",
		"/":                  "it holds files below",
		"/usr":               "it holds files below",
		"/etc/":              "it holds files below",
		"/lib":               "it holds files below",
		"/lib/.":             "it holds files below",
		"/var/lib/x":         "it holds files below",
		"/var/run/x":         "it holds files below",
		"/opt/x":             "it holds files below",
		"/home/x":            "it holds files below",
		"/usr/../etc/passwd": `".."`,
		"..":                 `".."`,
		"/usr/share/..":      `".."`,
		"/usr/a\x00b":        `".."`,
		"/usr/tmp/x":         "leads to /var/tmp/x",
		"/usr/loop1/x":       "too many links",
		"/usr/\xff":          "UTF-8",
	} {
		if got, err := l.under.Land(path); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q lands at %q, %v, and is not refused with %q", path, got, err, words)
		}
	}
}

// A directory that only the overlay needs is as that of the system.
func TestDirectoriesAreAsInTheSystem(t *testing.T) {
	l := newTestLab(t)
	l.do(overlay.Operation{Verb: overlay.Create, Name: "a"}, overlay.Operation{Verb: overlay.Set, Name: "a", Path: "/usr/share/doc/a", From: l.input("new"), Mode: 0o600},
		overlay.Operation{Verb: overlay.Set, Name: "a", Path: "/usr/share/other/b", From: l.input("new"), Mode: 0o600})
	got := strings.Join(lines(t, l.placed("a").Tree()), "")
	for _, want := range []string{
		`"usr/share/doc" directory 2750 7:8 map["user.dir":"x"] opaque=false`,
		`"usr/share/doc/a" file 640 5:6 map[] opaque=false "new"`, // a file that is there keeps what it had
		`"usr/share/other" directory 755 0:0 map[] opaque=false`,
		`"usr/share/other/b" file 600 0:0 map[] opaque=false "new"`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %s in\n%s", want, got)
		}
	}
}
