package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSectionAuto(t *testing.T) {
	d := machine(t, map[string]string{
		"usr/lib/liveapply/liveapply.conf": `[Auto]
Apply=replace
Window=Sat..Sun 02:00 4h
Window=*-*-1	30min
FleetLock=https://fleet.example.com/base
FleetLockGroup=canary
Update=yes
OnCalendar=daily
OnCalendar=
OnCalendar=Mon 03:00
OnCalendar=Tue 03:00
RandomizedDelaySec=2h
Persistent=no
UpdateCommand=/usr/bin/env A=1 \
 rpm-ostree upgrade
`,
		"proc/cmdline": "quiet\n",
	})
	want := Auto{
		Apply: AutoReplace, Windows: []Window{{"Sat..Sun 02:00", "4h"}, {"*-*-1", "30min"}},
		FleetLock: "https://fleet.example.com/base", FleetLockGroup: "canary",
		Update: true, OnCalendar: []string{"Mon 03:00", "Tue 03:00"}, RandomizedDelaySec: "2h", Persistent: "no",
		UpdateCommand: "/usr/bin/env A=1   rpm-ostree upgrade",
	}
	got, err := d.LoadAuto()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.Auto); diff != "" {
		t.Errorf("[Auto] (-want +got):\n%s", diff)
	}
}

func TestBadValuesOfAuto(t *testing.T) {
	for _, line := range []string{"Apply=force", "Apply=", "Window=daily", "FleetLock=fleet.example.com", "FleetLock=ftp://fleet", "FleetLockGroup=all of them", "Update=maybe", "Persistent="} {
		_, err := machine(t, map[string]string{"etc/liveapply/liveapply.conf": "[Auto]\n" + line + "\n"}).Load("")
		if err == nil || !strings.Contains(err.Error(), "etc/liveapply/liveapply.conf: [Auto] "+line) {
			t.Errorf("%s: got %v", line, err)
		}
	}
}

// Somebody who may ask for an application does not change what happens without a person.
func TestRequestHasNoAuto(t *testing.T) {
	d := machine(t, map[string]string{"request": "[Auto]\nApply=replace\n"})
	got, err := d.Load(d.Root + "/request")
	if err != nil || len(got.Warnings) != 1 || got.Auto.Apply != AutoAdditive {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestPolicyWithoutAPerson(t *testing.T) {
	for _, test := range []struct {
		configuration, kernel string
		want                  Allow // empty if nothing is applied
	}{
		{"", "", Additive},
		{"[Auto]\nApply=no\n", "", ""},
		{"[Auto]\nApply=replace\n", "", Replace},
		{"[Apply]\nAllow=force\n[Auto]\nApply=replace\n", "", Replace},
		{"[Apply]\nAllow=additive\n[Auto]\nApply=replace\n", "", Additive},
		{"[Auto]\nApply=no\n", "quiet liveapply.auto=replace rw", Replace},
		{"[Auto]\nApply=replace\n", "liveapply.auto=additive liveapply.auto=no", ""},
	} {
		d := machine(t, map[string]string{"etc/liveapply/liveapply.conf": test.configuration, "proc/cmdline": test.kernel + "\n"})
		c, err := d.LoadAuto()
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := c.AutoAllow(); got != test.want || ok != (test.want != "") {
			t.Errorf("%q with %q: got %q, %v", test.configuration, test.kernel, got, ok)
		}
	}
	if _, err := machine(t, map[string]string{"proc/cmdline": "liveapply.auto=yes"}).LoadAuto(); err == nil || !strings.Contains(err.Error(), "liveapply.auto=") {
		t.Errorf("got %v for a bad kernel command line", err)
	}
}
