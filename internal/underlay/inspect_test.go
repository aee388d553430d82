package underlay

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
)

func TestInspectReadsTheMountTable(t *testing.T) {
	const root = "20 1 8:1 /ostree/deploy/os/deploy/c.0 / ro,relatime shared:1 - ext4 /dev/sda1 rw\n"
	const usr = "21 20 8:1 /ostree/deploy/os/deploy/c.0/usr /usr ro,relatime shared:2 - ext4 /dev/sda1 rw\n"
	booted := Mount{21, "ext4", "/dev/sda1"}
	for _, test := range []struct {
		name  string
		table string
		at    identity
		want  State
	}{
		{
			"booted", root + usr, identity{21, true},
			State{Source: "/dev/sda1", Stack: []Mount{booted}},
		},
		{
			"no mount point", root + "22 20 0:5 / /usr/local rw - tmpfs tmpfs rw\n23 20 0:6 / /var rw - tmpfs tmpfs rw\n", identity{20, false},
			State{Submounts: []string{"local"}},
		},
		{
			"live", root + usr + "30 21 0:40 / /usr ro,relatime shared:3 - overlay liveapply:abc ro\n", identity{30, true},
			State{Source: "liveapply:abc", Shown: Source{Live: "abc"}, Live: "abc", Stack: []Mount{booted, {30, "overlay", "liveapply:abc"}}},
		},
		{
			"live, no mount point", root + "30 20 0:40 / /usr ro shared:3 - overlay liveapply:abc ro\n", identity{30, true},
			State{Source: "liveapply:abc", Shown: Source{Live: "abc"}, Live: "abc", Stack: []Mount{{30, "overlay", "liveapply:abc"}}},
		},
		{
			"stacked", root + usr + "31 30 0:41 / /usr ro - overlay liveapply:new ro\n30 21 0:40 / /usr ro - overlay liveapply:old ro\n", identity{31, true},
			State{Source: "liveapply:new", Shown: Source{Live: "new"}, Live: "new", Stack: []Mount{booted, {30, "overlay", "liveapply:old"}, {31, "overlay", "liveapply:new"}}},
		},
		{
			"copies by propagation", "20 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n" +
				"21 41 8:1 /usr /usr rw shared:1 - ext4 /dev/sda1 rw\n" +
				"30 21 0:40 / /usr rw shared:2 - overlay liveapply:a ro\n" + "40 20 0:40 / /usr rw shared:2 - overlay liveapply:a ro\n" +
				"31 30 0:41 / /usr rw shared:3 - overlay liveapply:b ro\n" + "41 40 0:41 / /usr rw shared:3 - overlay liveapply:b ro\n" +
				"32 31 0:50 / /usr/local rw shared:4 - tmpfs tmpfs rw\n" + "42 41 0:50 / /usr/local rw shared:4 - tmpfs tmpfs rw\n", identity{31, true},
			State{
				Source: "liveapply:b", Shown: Source{Live: "b"}, Live: "b", Submounts: []string{"local"},
				Stack: []Mount{booted, {30, "overlay", "liveapply:a"}, {31, "overlay", "liveapply:b"}},
			},
		},
		{
			"unlocked", root + usr + "30 21 0:40 / /usr rw - overlay overlay rw,lowerdir=usr\n", identity{30, true},
			State{Source: "overlay", Unlocked: true, Stack: []Mount{booted, {30, "overlay", "overlay"}}},
		},
		{
			"unlocked over the live tree", root + usr + "30 21 0:40 / /usr ro - overlay liveapply:abc ro\n" +
				"31 30 0:41 / /usr rw - overlay overlay rw\n", identity{31, true},
			State{Source: "overlay", Unlocked: true, Stack: []Mount{booted, {30, "overlay", "liveapply:abc"}, {31, "overlay", "overlay"}}},
		},
		{
			"composefs", "20 1 0:30 / / ro - overlay composefs ro\n21 20 0:30 /usr /usr ro - overlay composefs ro\n", identity{21, true},
			State{Source: "composefs", Stack: []Mount{{21, "overlay", "composefs"}}},
		},
		{
			"a filesystem that only claims to be ours", root + usr + "30 21 0:40 / /usr ro - tmpfs liveapply:abc ro\n", identity{30, true},
			State{Source: "liveapply:abc", Stack: []Mount{booted, {30, "tmpfs", "liveapply:abc"}}},
		},
		{
			"mount points", root + usr + "30 21 0:40 / /usr ro - overlay liveapply:abc ro\n" +
				`50 30 0:50 / /usr/with\040space rw - tmpfs tmpfs rw` + "\n" + `51 30 0:51 / /usr/a\011b\012c\134d rw - tmpfs tmpfs rw` + "\n" +
				"52 30 0:52 / /usr/local rw - tmpfs tmpfs rw\n53 52 0:53 / /usr/local/lib rw - tmpfs tmpfs rw\n" + // nested
				"54 30 0:54 / /usr/with/hidden rw - tmpfs tmpfs rw\n55 30 0:55 / /usr/with rw - tmpfs tmpfs rw\n" + // covered
				"56 55 0:56 / /usr/with rw - tmpfs tmpfs rw\n" + // two at one place
				"57 21 0:57 / /usr/booted rw - tmpfs tmpfs rw\n58 20 0:58 / /usrlocal rw - tmpfs tmpfs rw\n", identity{30, true},
			State{
				Source: "liveapply:abc", Shown: Source{Live: "abc"}, Live: "abc", Stack: []Mount{booted, {30, "overlay", "liveapply:abc"}},
				Submounts: []string{"a\tb\nc\\d", "local", "with", "with space"},
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(test.table), nil)
			if err != nil {
				t.Fatal(err)
			}
			table, err := newTable(mounts, "/usr", test.at)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, table.state()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestIncompleteMountTableIsAnError(t *testing.T) {
	for _, table := range []string{"", "30 21 0:40 / /usr ro - overlay liveapply:abc ro\n"} {
		mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(table), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := newTable(mounts, "/usr", identity{30, true}); err == nil {
			t.Errorf("no error for %q", table)
		}
	}
}
