package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOverlaySection(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want Overlay
	}{
		"nothing":                  {"", Overlay{}},
		"bytes":                    {"MaxSize=1000", Overlay{MaxSize: 1000}},
		"units have the base 1024": {"MaxSize=64M", Overlay{MaxSize: 64 << 20}},
		"a fraction":               {"MaxSize=1.5G", Overlay{MaxSize: 3 << 29}},
		"bytes by name":            {"MaxSize=7B", Overlay{MaxSize: 7}},
		"no limit again":           {"MaxSize=1T\nMaxSize=", Overlay{}},
		"paths add up":             {"AllowPaths=/etc/app /usr/share/*\nAllowPaths=/usr/lib/x", Overlay{AllowPaths: []string{"/etc/app", "/usr/share/*", "/usr/lib/x"}}},
		"an empty value clears":    {"AllowPaths=/etc\nAllowPaths=\nAllowPaths=/run/x", Overlay{AllowPaths: []string{"/run/x"}}},
		"booleans":                 {"AllowSetuid=on", Overlay{AllowSetuid: true}},
		"a command":                {"ContentScan=/usr/bin/clamscan  --recursive -i", Overlay{ContentScan: []string{"/usr/bin/clamscan", "--recursive", "-i"}}},
		"no command again":         {"ContentScan=/usr/bin/clamscan\nContentScan=", Overlay{ContentScan: []string{}}},
	} {
		got, err := machine(t, map[string]string{"etc/liveapply/liveapply.conf": "[Overlay]\n" + test.text + "\n"}).Load("")
		if err != nil || got.Warnings != nil {
			t.Errorf("%s: %v, %q", name, err, got.Warnings)
		}
		if diff := cmp.Diff(test.want, got.Overlay); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestBadOverlaySection(t *testing.T) {
	for _, text := range []string{
		"MaxSize=much", "MaxSize=M", "MaxSize=-1", "MaxSize=1e9", "MaxSize=0x10", "MaxSize=1KM", "MaxSize=1k", "MaxSize=9E", "MaxSize=1 M", "MaxSize=.", "MaxSize=Inf",
		"AllowPaths=usr/share", "AllowPaths=/usr/[a", "AllowSetuid=perhaps", "ContentScan=clamscan", "ContentScan=/bin/sh -c 'x y'",
	} {
		got, err := machine(t, map[string]string{"etc/liveapply/liveapply.conf": "[Overlay]\n" + text + "\n"}).Load("")
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	// Who asks for one application has no say in it.
	d := machine(t, map[string]string{"request": "[Overlay]\nAllowSetuid=yes\n"})
	if got, err := d.Load(d.Root + "/request"); err != nil || len(got.Warnings) != 1 || got.Overlay.AllowSetuid {
		t.Errorf("in a request: %+v, %v", got, err)
	}
}
