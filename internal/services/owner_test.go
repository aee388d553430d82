package services

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveapply/liveapply/internal/stale"
)

func user(uid uint32) *uint32 { return &uid }

func TestOwnerIsTheUnitOfTheCgroup(t *testing.T) {
	for cgroup, want := range map[string]Owner{
		"/init.scope":                                                                         {SystemUnit, "init.scope", nil},
		"/system.slice/nginx.service":                                                         {SystemUnit, "nginx.service", nil},
		"/system.slice/_cpu.service":                                                          {SystemUnit, "cpu.service", nil},
		"/system.slice/system-getty.slice/getty@tty1.service":                                 {SystemUnit, "getty@tty1.service", nil},
		"/system.slice/systemd-udevd.service/udev":                                            {SystemUnit, "systemd-udevd.service", nil},
		"/system.slice/systemd-nspawn@c.service/supervisor":                                   {SystemUnit, "systemd-nspawn@c.service", nil},
		"/user.slice/user-1000.slice/session-3.scope":                                         {Session, "session-3.scope", user(1000)},
		"/user.slice/user-0.slice/user@0.service/init.scope":                                  {SystemUnit, "user@0.service", nil},
		"/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.x.slice/a@1.service": {UserUnit, "a@1.service", user(1000)},
		"/user.slice/user-1000.slice/user@1000.service/session.slice/dbus.service":            {UserUnit, "dbus.service", user(1000)},
		"/user.slice/user-1000.slice/run-u3.service":                                          {SystemUnit, "run-u3.service", nil},
		"/":           {NoUnit, "", nil},
		"":            {NoUnit, "", nil},
		"/lxc/a/b":    {NoUnit, "", nil},
		"/user.slice": {NoUnit, "", nil},
	} {
		if diff := cmp.Diff(want, OwnerOf(cgroup)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", cgroup, diff)
		}
	}
}

func TestProcessesAreCollectedByOwner(t *testing.T) {
	replaced, named := stale.File{Path: "/usr/bin/a", Reason: stale.Replaced}, stale.File{Path: "/usr/bin/s", Reason: stale.Argument}
	process := func(pid int, cgroup string, ownPIDs bool, files ...stale.File) stale.Process {
		return stale.Process{PID: pid, Name: "p", Cgroup: cgroup, OwnPIDSpace: ownPIDs, Files: files}
	}
	got := byOwner([]stale.Process{
		process(1, "/user.slice/user-7.slice/session-1.scope", false, named),
		process(2, "/user.slice/user-7.slice/session-1.scope", false, replaced, named),
		process(3, "/system.slice/b.service", true, replaced), // PrivatePIDs=
		process(4, "/machine.slice/machine-c.scope/init.scope", true, replaced),
		process(5, "/machine.slice/libpod-conmon-x.scope", false, replaced),
		process(6, "/system.slice/b.service", false, named),
	})
	want := []Outdated{
		{Owner{SystemUnit, "b.service", nil}, []stale.Process{process(3, "/system.slice/b.service", true, replaced), process(6, "/system.slice/b.service", false, named)}},
		{Owner{SystemUnit, "libpod-conmon-x.scope", nil}, []stale.Process{process(5, "/machine.slice/libpod-conmon-x.scope", false, replaced)}},
		{Owner{Session, "session-1.scope", user(7)}, []stale.Process{process(2, "/user.slice/user-7.slice/session-1.scope", false, replaced)}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
