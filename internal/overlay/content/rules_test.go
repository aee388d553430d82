package content

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/overlay"
)

func set(name, path, from string) overlay.Operation {
	return overlay.Operation{Verb: overlay.Set, Name: name, Path: path, From: from, Mode: 0o644}
}

func TestWhatCannotBeIsRefused(t *testing.T) {
	l := newTestLab(t)
	l.do(overlay.Operation{Verb: overlay.Create, Name: "a"}, set("a", "/usr/share/mine", l.input("mine")), overlay.Operation{Verb: overlay.Create, Name: "w", Writable: true},
		overlay.Operation{Verb: overlay.Add, Name: "a", Path: "/bin/link"})
	l.sh(l.dir, "mkfifo fifo; ln -s / dir")
	new := l.input("new")
	for words, ops := range map[string][]overlay.Operation{
		"there is no overlay of this name":  {{Verb: overlay.Enable, Name: "b"}},
		"there is one of this name already": {{Verb: overlay.Create, Name: "a"}},
		"are both writable":                 {{Verb: overlay.Create, Name: "b", Writable: true}},
		"a writable overlay is for all":     {{Verb: overlay.Disable, Name: "w"}, {Verb: overlay.Create, Name: "b", Writable: true, Scope: "unit:b.service"}},
		"it is writable: change the files":  {set("w", "/usr/x", new)},
		"it is not writable":                {{Verb: overlay.Freeze, Name: "a"}},
		"is no scope":                       {{Verb: overlay.Create, Name: "b", Scope: "all"}},
		"cannot be the name":                {{Verb: overlay.Create, Name: "../b"}},
		"nothing that can be done":          {{Verb: "paint", Name: "a"}},
		"is no mode":                        {{Verb: overlay.Set, Name: "a", Path: "/usr/x", From: new, Mode: unix.S_IFBLK}},
		"it does not say what to do":        {{Verb: overlay.Set, Name: "a", Path: "/usr/x"}},
		"to make a new one, use set":        {{Verb: overlay.Add, Name: "a", Path: "/usr/none"}},
		"name the files in a directory":     {{Verb: overlay.Add, Name: "a", Path: "/usr/share/doc"}},
		"there is no such file":             {{Verb: overlay.Mask, Name: "a", Path: "/usr/none"}},
		"the overlay has no such path":      {{Verb: overlay.Unset, Name: "a", Path: "/usr/share/doc/a"}},
		"is no regular file":                {set("a", "/usr/x", filepath.Join(l.dir, "fifo"))},
		"dir is no regular file":            {set("a", "/usr/x", filepath.Join(l.dir, "dir"))},
		"/usr/share/doc is a directory":     {set("a", "/usr/share/doc", new)},
		"/usr/bin/sh is no directory":       {set("a", "/usr/bin/sh/x", new)},
		"/usr/share/mine is a file in this": {set("a", "/usr/share/mine/x", new)},
		"leads to /var":                     {set("a", "/usr/tmp/x", new)},
		"setuid":                            {{Verb: overlay.Set, Name: "a", Path: "/usr/bin/su", From: new, Mode: 0o4755}},
	} {
		l.refused(words, ops...)
	}
}

func TestVitalFilesAreHiddenByForceOnly(t *testing.T) {
	l := newTestLab(t)
	l.do(overlay.Operation{Verb: overlay.Create, Name: "a"})
	new := l.input("new")
	for _, op := range []overlay.Operation{
		set("a", "/lib/systemd/systemd", new), set("a", "/lib/x86_64-linux-gnu/libc.so.6", new), set("a", "/usr/lib/systemd/systemd-udevd", new),
		set("a", "/lib64/ld-linux-x86-64.so.2", new), set("a", "/usr/lib/liveapply/deep/helper", new), set("a", "/run/liveapply/overlays/overlays.json", new),
		set("a", "/usr/lib/systemd/system/liveapply@.service.d/x.conf", new),
		{Verb: overlay.Mask, Name: "a", Path: "/usr/lib/liveapply"}, {Verb: overlay.Mask, Name: "a", Path: "/usr/lib/x86_64-linux-gnu"}, {Verb: overlay.Mask, Name: "a", Path: "/usr/lib/alias/systemd"},
		{Verb: overlay.Mask, Name: "a", Path: "/usr/lib"},
	} {
		l.refused("to hide it all the same, use --force", op)
		if err := l.tryForce(true, op); err != nil {
			t.Errorf("%+v by force: %v", op, err)
		}
		l.do(overlay.Operation{Verb: overlay.Remove, Name: "a"}, overlay.Operation{Verb: overlay.Create, Name: "a"})
	}
	l.do(set("a", "/lib/x86_64-linux-gnu/libother.so", new), set("a", "/usr/lib/systemd/system/my.service", new), overlay.Operation{Verb: overlay.Mask, Name: "a", Path: "/usr/share/doc"},
		set("a", "/usr/lib/new/systemd/file", new), overlay.Operation{Verb: overlay.Mask, Name: "a", Path: "/usr/lib/new"})
}

func TestRulesOfTheAdministrator(t *testing.T) {
	l := newTestLab(t)
	l.do(overlay.Operation{Verb: overlay.Create, Name: "a"})
	l.rules = Rules{MaxSize: 10}
	l.refused("MaxSize= of liveapply.conf allows 10", set("a", "/usr/x", l.input("0123456789a")))
	l.refused("MaxSize= of liveapply.conf allows 10", set("a", "/usr/x", l.input("01234")), set("a", "/usr/y", l.input("012345")))
	l.do(set("a", "/usr/x", l.input("01234")), set("a", "/usr/y", l.input("56789")))
	l.do(overlay.Operation{Verb: overlay.Remove, Name: "a"}, overlay.Operation{Verb: overlay.Create, Name: "a"})

	l.rules = Rules{AllowPaths: []string{"/usr/share/*/a", "/etc/app"}}
	l.refused("is not among AllowPaths=", set("a", "/usr/x", l.input("x")))
	l.refused("is not among AllowPaths=", overlay.Operation{Verb: overlay.Mask, Name: "a", Path: "/usr/share/doc"})
	l.do(set("a", "/usr/share/doc/a", l.input("x")), set("a", "/etc/app/deep/x", l.input("x")))
	l.do(overlay.Operation{Verb: overlay.Remove, Name: "a"}, overlay.Operation{Verb: overlay.Create, Name: "a"})

	l.rules = Rules{AllowSetuid: true}
	l.do(overlay.Operation{Verb: overlay.Set, Name: "a", Path: "/usr/bin/su", From: l.input("su"), Mode: 0o4755})
	l.rules = Rules{}
	l.refused("AllowSetuid=yes", set("a", "/usr/x", l.input("x"))) // what it has is looked at again
	l.do(overlay.Operation{Verb: overlay.Unset, Name: "a", Path: "/usr/bin/su"}, set("a", "/usr/x", l.input("x")))

	l.sh(l.under.Root, "setcap cap_net_raw+ep usr/bin/sh")
	l.refused("capabilities", overlay.Operation{Verb: overlay.Add, Name: "a", Path: "/bin/sh"})

	l.rules = Rules{ContentScan: []string{"/bin/sh", "-c", `! grep -r EICAR "$1"`, "scan"}}
	l.do(set("a", "/usr/x", l.input("harmless")))
	l.refused("ContentScan= refuses it", set("a", "/usr/x", l.input("EICAR")))
}

func TestScopesShowWhatSystemdCan(t *testing.T) {
	l := newTestLab(t)
	l.under.Systemd = 252
	l.do(overlay.Operation{Verb: overlay.Create, Name: "a", Scope: "unit:a.service"}, set("a", "/usr/x", l.input("x")))
	l.refused("by systemd 252", set("a", "/etc/x", l.input("x")))
	l.refused("cannot be shown to a single unit", set("a", "/run/x", l.input("x")))
	tree := l.placed("a").Tree()
	want := "ID=_any\n"
	if got := l.sh(tree, "stat -c %a .; cat usr/lib/extension-release.d/extension-release.tree; ls"); got != "755\n"+want+"usr\n" {
		t.Errorf("the tree has\n%s", got)
	}
	l.under.Systemd = 257
	l.do(overlay.Operation{Verb: overlay.Unset, Name: "a", Path: "/usr/x"}, set("a", "/etc/x", l.input("x")))
	tree = l.placed("a").Tree()
	if got := l.sh(tree, "cat usr/lib/extension-release.d/extension-release.tree etc/extension-release.d/extension-release.tree"); got != want+want {
		t.Errorf("the tree has\n%s", got)
	}
	entries, err := l.placed("a").Entries()
	if err != nil || len(entries) != 1 || entries[0].Path != "etc/x" {
		t.Errorf("it has %v, %v", entries, err)
	}
}

func TestOverlaysOfOtherStoresCount(t *testing.T) {
	l := newTestLab(t)
	others := []overlay.Placed{{Overlay: overlay.Overlay{Name: "theirs", Writable: true, Enabled: true}}}
	for _, op := range []overlay.Operation{{Verb: overlay.Create, Name: "theirs"}, {Verb: overlay.Create, Name: "mine", Writable: true}} {
		draft, err := NewDraft(l.store, l.under, l.rules, others...)
		if err != nil {
			t.Fatal(err)
		}
		if err := draft.Do(t.Context(), op); err == nil || !strings.Contains(err.Error(), "theirs") {
			t.Errorf("%+v: %v", op, err)
		}
		draft.Close()
	}
}
