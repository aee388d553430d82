package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	bootedFlag = "run/ostree-booted"
	leftover   = "ostree/deploy/debian/backing/c0ffee.0/liveapply/etc"
	conf       = "etc/liveapply/liveapply.conf"
)

// system writes the files of a system below a root of their own.
func system(t *testing.T, files map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// made lists what is below a directory: the target of each link, and the content of each file.
func made(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name := strings.TrimPrefix(path, dir+"/")
		if entry.Type() == fs.ModeSymlink {
			found[name], err = os.Readlink(path)
			return err
		}
		content, err := os.ReadFile(path)
		found[name] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestGenerate(t *testing.T) {
	staged := map[string]string{"paths.target.wants/liveapply-staged.path": unitDir + "/liveapply-staged.path"}
	recovers := map[string]string{
		"default.target.wants/liveapply-recover.service": unitDir + "/liveapply-recover.service",
		"rescue.target.wants/liveapply-recover.service":  unitDir + "/liveapply-recover.service",
	}
	for name, test := range map[string]struct {
		files map[string]string
		off   bool                // nothing is made that shows overlays
		want  []map[string]string // besides that
		err   string
	}{
		"not booted from OSTree":              {files: map[string]string{"proc/cmdline": "", leftover: "", conf: "[Auto]\nUpdate=yes\n"}},
		"by default":                          {files: map[string]string{bootedFlag: "", "proc/cmdline": "quiet"}, want: []map[string]string{staged}},
		"switched off":                        {off: true, files: map[string]string{bootedFlag: "", "proc/cmdline": "liveapply=off", leftover: "", conf: "[Auto]\nUpdate=yes\n"}},
		"something to recover":                {files: map[string]string{bootedFlag: "", "proc/cmdline": "", leftover: ""}, want: []map[string]string{staged, recovers}},
		"a ref to recover":                    {files: map[string]string{bootedFlag: "", "proc/cmdline": "", "ostree/repo/refs/heads/liveapply/next": ""}, want: []map[string]string{staged, recovers}},
		"nothing without a person":            {files: map[string]string{bootedFlag: "", "proc/cmdline": "", conf: "[Auto]\nApply=no\nWindow=daily 1h\n"}},
		"nothing, by the kernel command line": {files: map[string]string{bootedFlag: "", "proc/cmdline": "liveapply.auto=no"}},
		"a bad configuration": {files: map[string]string{bootedFlag: "", "proc/cmdline": "", leftover: "", conf: "[Auto]\nUpdate=yes\nWindow=daily\n"},
			want: []map[string]string{recovers}, err: "Window=daily"},
		"windows": {files: map[string]string{bootedFlag: "", "proc/cmdline": "", conf: "[Auto]\nWindow=Sat..Sun 02:00 4h\nWindow=*-*-1 1h\n"},
			want: []map[string]string{staged, {
				"timers.target.wants/liveapply-window.timer": "../liveapply-window.timer",
				"liveapply-window.timer": "[Unit]\nDescription=Apply what is staged when a window begins\nDocumentation=man:liveapply.conf(5)\n\n" +
					"[Timer]\nUnit=liveapply-staged.service\nAccuracySec=1s\nOnCalendar=Sat..Sun 02:00\nOnCalendar=*-*-1\n",
			}}},
		"a lock of the fleet": {files: map[string]string{bootedFlag: "", "proc/cmdline": "", conf: "[Auto]\nApply=no\nFleetLock=https://fleet.example.com\n"},
			want: []map[string]string{{"multi-user.target.wants/liveapply-fleetlock-release.service": unitDir + "/liveapply-fleetlock-release.service"}}},
		"an overlay for a unit": {files: map[string]string{"proc/cmdline": "", "var/lib/liveapply/overlays/overlays.json": `{"version":1,"overlays":[
			{"name":"a","kind":"overlay","scope":"unit:nginx.service","priority":2,"enabled":true,"generation":3},
			{"name":"b","kind":"overlay","scope":"unit:nginx.service","priority":1,"enabled":true,"generation":1},
			{"name":"c","kind":"overlay","scope":"user:1000","enabled":true,"generation":1},
			{"name":"d","kind":"overlay","scope":"system","enabled":true,"generation":1},
			{"name":"e","kind":"overlay","scope":"unit:off.service","enabled":false,"generation":1}]}`},
			want: []map[string]string{{
				"nginx.service.d/60-liveapply-overlays.conf": "[Service]\nExtensionDirectories=/var/lib/liveapply/overlays/b/1/tree\n" +
					"BindReadOnlyPaths=/var/lib/liveapply/overlays/b/1/tree\n" +
					"ExtensionDirectories=/var/lib/liveapply/overlays/a/3/tree\n" +
					"BindReadOnlyPaths=/var/lib/liveapply/overlays/a/3/tree\n",
				"user@1000.service.d/60-liveapply-overlays.conf": "[Service]\nExtensionDirectories=/var/lib/liveapply/overlays/c/1/tree\n" +
					"BindReadOnlyPaths=/var/lib/liveapply/overlays/c/1/tree\n",
			}}},
		"a damaged list of overlays": {files: map[string]string{bootedFlag: "", "proc/cmdline": "", leftover: "", "run/liveapply/overlays/overlays.json": "{"},
			want: []map[string]string{staged, recovers}, err: "overlays.json"},
		"updates images by path": {files: map[string]string{"proc/cmdline": "quiet liveapply.updates=/updates.img"}, want: []map[string]string{{
			"default.target.wants/liveapply-updates.service": unitDir + "/liveapply-updates.service",
			"liveapply-updates.service.d/10-liveapply.conf":  "[Unit]\nBefore=sysinit.target systemd-sysext.service systemd-tmpfiles-setup.service\n",
		}}},
		"updates images by URL": {files: map[string]string{"proc/cmdline": "liveapply.updates=http://example.com/updates.img,sha256=00"}, want: []map[string]string{{
			"default.target.wants/liveapply-updates-url.service": unitDir + "/liveapply-updates-url.service",
		}}},
		"updates images in the initrd": {off: true, files: map[string]string{"etc/initrd-release": "", bootedFlag: "", leftover: "",
			"proc/cmdline": "liveapply.updates=/updates.img liveapply.updates=https://example.com/updates.img,sha256=00"}, want: []map[string]string{{
			"initrd.target.wants/liveapply-updates.service":     unitDir + "/liveapply-updates.service",
			"initrd.target.wants/liveapply-updates-url.service": unitDir + "/liveapply-updates-url.service",
		}}},
		"nothing in the initrd":                    {off: true, files: map[string]string{"etc/initrd-release": "", bootedFlag: "", leftover: "", "proc/cmdline": "quiet"}},
		"no updates images, if it is switched off": {off: true, files: map[string]string{"etc/initrd-release": "", "proc/cmdline": "liveapply=off liveapply.updates=/updates.img"}},
		"updates": {files: map[string]string{bootedFlag: "", "proc/cmdline": "", conf: "[Auto]\nApply=no\nUpdate=yes\n"},
			want: []map[string]string{{"timers.target.wants/liveapply-update.timer": unitDir + "/liveapply-update.timer"}}},
		"when and how updates are fetched": {files: map[string]string{bootedFlag: "", "proc/cmdline": "",
			conf: "[Auto]\nApply=no\nOnCalendar=Mon 03:00\nOnCalendar=Tue 03:00\nRandomizedDelaySec=2h\nPersistent=no\nUpdateCommand=rpm-ostree upgrade %H\n"},
			want: []map[string]string{{
				"liveapply-update.timer.d/10-liveapply.conf":   "[Timer]\nOnCalendar=\nOnCalendar=Mon 03:00\nOnCalendar=Tue 03:00\nRandomizedDelaySec=2h\nPersistent=no\n",
				"liveapply-update.service.d/10-liveapply.conf": "[Service]\nExecStart=\nExecStart=rpm-ostree upgrade %H\n",
			}}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			err := generate(system(t, test.files), dir)
			if (err != nil) != (test.err != "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("got %v, want %q", err, test.err)
			}
			want := map[string]string{}
			if !test.off {
				want["default.target.wants/liveapply-overlays.service"] = unitDir + "/liveapply-overlays.service"
				want["rescue.target.wants/liveapply-overlays.service"] = unitDir + "/liveapply-overlays.service"
			}
			for _, part := range test.want {
				for name, content := range part {
					want[name] = content
				}
			}
			if diff := cmp.Diff(want, made(t, dir)); diff != "" {
				t.Errorf("made (-want +got):\n%s", diff)
			}
		})
	}
}

func TestGenerateFailsWithoutItsDirectory(t *testing.T) {
	root := system(t, map[string]string{bootedFlag: "", "proc/cmdline": "", leftover: "", "file": ""})
	if err := generate(root, filepath.Join(root, "file")); err == nil {
		t.Error("no error")
	}
}

// The generator runs in every boot and at each daemon-reload, and a program starts the slower the more is linked into it.
func TestGeneratorLinksNothingLarge(t *testing.T) {
	imported, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range strings.Fields(string(imported)) {
		if path == "regexp" || path == "os/exec" || path == "net" || path == "crypto/tls" || strings.HasPrefix(path, "github.com/klauspost/") {
			t.Errorf("it imports %s", path)
		}
	}
}
