package content

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/overlay"
)

// mountWritable shows the system's /usr through a writable overlay, until the test ends.
func mountWritable(t *testing.T, l *lab, name string) (usr string) {
	t.Helper()
	p := l.placed(name)
	usr = filepath.Join(l.dir, "shown")
	l.sh(l.dir, "mkdir -p shown")
	options := "lowerdir=" + filepath.Join(l.under.Root, "usr") + ",upperdir=" + l.store.Upper(p.Overlay) + ",workdir=" + l.store.Work(p.Overlay) + ",redirect_dir=nofollow,metacopy=off,index=off"
	if err := unix.Mount("overlay", usr, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(usr, unix.MNT_DETACH) })
	return usr
}

const written = `echo changed > share/doc/a; rm -r share/doc/sub; echo new > share/new; mkdir -p fresh/deep; echo x > fresh/deep/x
	rm bin/link; mkdir bin/link; echo y > bin/link/y; chmod 700 share; ln share/new share/linked; setfattr -n user.mine -v 1 share/new`

func TestWhatWasWrittenCanBeFrozen(t *testing.T) {
	l := newTestLab(t)
	l.do(overlay.Operation{Verb: overlay.Create, Name: "w", Writable: true, Priority: 3})
	usr := mountWritable(t, l, "w")
	l.sh(usr, written)
	shown := lines(t, usr)
	entries, err := l.placed("w").Entries()
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, e := range entries {
		listed = append(listed, string(e.Kind)+" "+e.Path)
	}
	want := []string{
		"directory usr/bin/link", "file usr/bin/link/y", "directory usr/fresh", "directory usr/fresh/deep", "file usr/fresh/deep/x", "file usr/share/doc/a", "mask usr/share/doc/sub",
		"file usr/share/linked", "file usr/share/new",
	}
	if diff := cmp.Diff(want, listed); diff != "" {
		t.Errorf("listed while it is writable (-want +got):\n%s", diff)
	}
	if err := unix.Mount("", usr, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	l.do(overlay.Operation{Verb: overlay.Freeze, Name: "w"})
	frozen := l.placed("w")
	if frozen.Writable || frozen.Generation != 2 || frozen.Priority != 3 {
		t.Errorf("it is %+v", frozen.Overlay)
	}
	entries, err = frozen.Entries()
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range entries {
		base, _ := l.base(e.Path)
		if got := string(e.Kind) + " " + e.Path; got != want[i] || e.Base == nil || *e.Base != base {
			t.Errorf("frozen, it has %+v, and not %s", e, want[i])
		}
	}
	notes := l.sh(frozen.Tree(), "getfattr -R -d -h -m '^trusted.overlay' --absolute-names . | grep ^trusted | sort -u")
	if notes != "trusted.overlay.opaque=\"y\"\ntrusted.overlay.origin=\"\"\n" { // the second marks directories with masks
		t.Errorf("overlayfs's notes in it:\n%s", notes)
	}
	if err := unix.Unmount(usr, 0); err != nil {
		t.Fatal(err)
	}
	options := "lowerdir=" + filepath.Join(frozen.Tree(), "usr") + ":" + filepath.Join(l.under.Root, "usr")
	if err := unix.Mount("overlay", usr, "overlay", unix.MS_RDONLY, options); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(shown, lines(t, usr)); diff != "" {
		t.Errorf("what /usr shows (-while it was writable +frozen):\n%s", diff)
	}
	l.do(set("w", "/usr/share/more", l.input("more")))
	l.tidy()
}

func TestFreezingKeepsTheRules(t *testing.T) {
	l := newTestLab(t)
	l.do(overlay.Operation{Verb: overlay.Create, Name: "w", Writable: true})
	usr := mountWritable(t, l, "w")
	freeze := overlay.Operation{Verb: overlay.Freeze, Name: "w"}
	for _, test := range [][3]string{
		{"echo > su; chmod u+s su", "rm su", "AllowSetuid=yes"},
		{"mkfifo fifo", "rm fifo", "/usr/fifo is a device, a fifo"},
		{"mknod null c 1 3", "rm null", "/usr/null is a device, a fifo"},
		{"rm lib/systemd/systemd", "echo > lib/systemd/systemd; rm lib/systemd/systemd; :", "--force"},
	} {
		l.sh(usr, test[0])
		l.refused(test[2], freeze)
		l.sh(usr, test[1])
	}
	if err := l.tryForce(true, freeze); err != nil {
		t.Error(err)
	}
	if got := strings.Join(lines(t, l.placed("w").Tree()), ""); !strings.Contains(got, `"usr/lib/systemd/systemd" mask`) {
		t.Errorf("it has\n%s", got)
	}
}
