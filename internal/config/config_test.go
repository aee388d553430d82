package config

import (
	gocmp "cmp"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// machine writes configuration files below a root of their own.
func machine(t *testing.T, files map[string]string) Dirs {
	t.Helper()
	d := System
	d.Root = t.TempDir()
	for name, content := range files {
		path := filepath.Join(d.Root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func TestPrecedenceIsSystemds(t *testing.T) {
	for name, test := range map[string]struct {
		files   map[string]string
		request string
		want    Config
	}{
		"nothing configured": {want: Config{Allow: Replace}},
		"main file in /etc hides the vendor's": {
			files: map[string]string{
				"usr/lib/liveapply/liveapply.conf": "[Apply]\nAllow=force\nTransient=yes\n",
				"etc/liveapply/liveapply.conf":     "[Apply]\nAllow=additive\n",
			},
			want: Config{Allow: Additive},
		},
		"drop-ins win over the main file, later names over earlier": {
			files: map[string]string{
				"etc/liveapply/liveapply.conf":                   "[Apply]\nAllow=additive\n",
				"usr/lib/liveapply/liveapply.conf.d/20-b.conf":   "[Apply]\nAllow=force\n",
				"etc/liveapply/liveapply.conf.d/10-a.conf":       "[Apply]\nAllow=replace\nTransient=on\n",
				"run/liveapply/liveapply.conf.d/ignored.disable": "[Apply]\nAllow=additive\n",
			},
			want: Config{Allow: Force, Transient: true},
		},
		"a drop-in in /etc hides one of the same name": {
			files: map[string]string{
				"usr/lib/liveapply/liveapply.conf.d/10-a.conf": "[Apply]\nVerifyContent=yes\n",
				"run/liveapply/liveapply.conf.d/10-a.conf":     "[Apply]\nVerifyContent=yes\n",
				"etc/liveapply/liveapply.conf.d/10-a.conf":     "# masked\n",
			},
			want: Config{Allow: Replace},
		},
		"a request wins over all": {
			files: map[string]string{
				"etc/liveapply/liveapply.conf.d/99.conf": "[Apply]\nAllow=additive\nRequireSignature=yes\n",
				"request":                                "[Apply]\nAllow=force\nRequestedBy=somebody\n",
			},
			request: "request",
			want:    Config{Allow: Force, RequireSignature: true, RequestedBy: "somebody"},
		},
		"a request that is not there": {request: "request", want: Config{Allow: Replace}},
	} {
		t.Run(name, func(t *testing.T) {
			d := machine(t, test.files)
			request := test.request
			if request != "" {
				request = filepath.Join(d.Root, request)
			}
			got, err := d.Load(request)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(withDefaults(test.want), got); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
	}
}

// withDefaults adds the defaults of what a test is not about.
func withDefaults(c Config) *Config {
	all := defaults()
	c.RestartServices, c.HealthTimeout = gocmp.Or(c.RestartServices, all.RestartServices), gocmp.Or(c.HealthTimeout, all.HealthTimeout)
	return &c
}

func TestUnknownKeysAreWarnedOf(t *testing.T) {
	d := machine(t, map[string]string{"etc/liveapply/liveapply.conf": "[Apply]\nAlow=additive\nRequestedBy=not in a file\nRevision=neither\nLeaveStaged=yes\n[Other]\nAllow=force\n"})
	got, err := d.Load("")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Warnings) != 5 || !strings.Contains(got.Warnings[0], "Alow=") || got.Allow != Replace {
		t.Errorf("got %+v", got)
	}
}

func TestServicesAreNamedAsForSystemctl(t *testing.T) {
	d := machine(t, map[string]string{"etc/liveapply/liveapply.conf": "[Apply]\nIgnoreUnits=nginx web* a@1\nIgnoreUnits=b.service\nHealthTimeout=1s\nHealthTimeout=\n"})
	c, err := d.Load("")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"nginx.service", "web*", "a@1.service", "b.service"}, c.IgnoreUnits); diff != "" {
		t.Error(diff)
	}
	if c.HealthTimeout != defaultHealthTimeout {
		t.Errorf("HealthTimeout= is %s", c.HealthTimeout)
	}
}

func TestBadValuesAreErrorsThatNameTheirPlace(t *testing.T) {
	for _, line := range []string{"Allow=everything", "Transient=maybe", "VerifyContent=", "RequireSignature=maybe", "Indexes=usr/lib/x[", "Indexes=/etc/passwd", "IgnoreUnits=nginx.service web["} {
		d := machine(t, map[string]string{"etc/liveapply/liveapply.conf": "[Apply]\n" + line + "\n"})
		_, err := d.Load("")
		if err == nil || !strings.Contains(err.Error(), "etc/liveapply/liveapply.conf: [Apply] "+line) {
			t.Errorf("%s: got %v", line, err)
		}
	}
}

func TestValuesGoOnInTheNextLine(t *testing.T) {
	d := machine(t, map[string]string{"etc/liveapply/liveapply.conf": "[Apply]\nAllow=\\\nadditive\nExclude=one \\\n  two\n[Overlay]\nAllowPaths=/etc \\\n /usr\n"})
	got, err := d.Load("")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{Allow: Additive, Exclude: []string{"one", "two"}, Overlay: Overlay{AllowPaths: []string{"/etc", "/usr"}}}
	if diff := cmp.Diff(withDefaults(want), got); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

func TestRequestIsReadAsItWasWritten(t *testing.T) {
	d := machine(t, nil)
	path := filepath.Join(d.Root, "request")
	if err := WriteRequest(path, Request{Allow: Additive, Transient: true, LeaveStaged: true, RestartServices: RestartRolling, RequestedBy: "somebody", RequestedFrom: "some.service", Revision: "debian:stable"}); err != nil {
		t.Fatal(err)
	}
	got, err := d.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Allow: Additive, Transient: true, LeaveStaged: true, RestartServices: RestartRolling, RequestedBy: "somebody", RequestedFrom: "some.service", Revision: "debian:stable",
	}
	if diff := cmp.Diff(withDefaults(want), got); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	for name, by := range map[string]string{"a second line": "somebody\nAllow=force", "a line that goes on": `somebody\`, "a line that is too long": strings.Repeat("x", 2048)} {
		if err := WriteRequest(path, Request{Allow: Additive, RequestedBy: by}); err == nil {
			t.Errorf("%s was smuggled into the request", name)
		}
	}
	for name, packages := range map[string][]string{"none": {}, "an empty one": {""}, "a blank one": {"nginx", " "}} {
		if err := WriteRequest(path, Request{Packages: packages}); err == nil {
			t.Errorf("%s of the packages are a request, for all of them", name)
		}
		if err := WriteRequest(path, Request{Exclude: packages}); err == nil {
			t.Errorf("all packages but %s are a request", name)
		}
	}
}
