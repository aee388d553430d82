package ostree_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
	"golang.org/x/sys/unix"
)

// system is the least that ostree deploys, and that the ostree command of the host runs in when the host's
// /usr is mounted over it.
func system(version string) ostreetest.Spec {
	return ostreetest.Spec{
		"usr/lib/os-release":              ostreetest.File("ID=test\nVERSION_ID=" + version + "\n"),
		"usr/lib/modules/6/vmlinuz":       ostreetest.File("kernel " + version),
		"usr/lib/modules/6/initramfs.img": ostreetest.File("initramfs"),
		"usr/etc/hostname":                ostreetest.File("test\n"),
		"boot":                            ostreetest.Dir(),
		"sysroot":                         ostreetest.Dir(),
		"run":                             ostreetest.Dir(),
		"proc":                            ostreetest.Dir(),
		"var":                             ostreetest.Dir(),
		"tmp":                             ostreetest.Dir(),
		"ostree":                          ostreetest.Link("sysroot/ostree"),
		"bin":                             ostreetest.Link("usr/bin"),
		"lib":                             ostreetest.Link("usr/lib"),
		"lib64":                           ostreetest.Link("usr/lib64"),
	}
}

// sysroot makes a sysroot with the commits test/1, test/2 and test/3, none of them deployed.
func sysroot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	t.Cleanup(func() { exec.Command("chattr", "-R", "-i", root).Run() })
	repo := root + "/ostree/repo"
	ostreetest.Run(t, "ostree", "admin", "init-fs", "--modern", root)
	ostreetest.Run(t, "ostree", "--repo="+repo, "config", "set", "sysroot.bootloader", "none")
	ostreetest.Run(t, "ostree", "--repo="+repo, "config", "set", "core.fsync", "false")
	ostreetest.Run(t, "ostree", "admin", "--sysroot="+root, "os-init", "debian")
	ostreetest.Run(t, "ostree", "admin", "--sysroot="+root, "os-init", "other")
	for _, version := range []string{"1", "2", "3"} {
		ostreetest.Commit(t, repo, "test/"+version, system(version).Write(t))
	}
	return root
}

func deploy(t *testing.T, root string, args ...string) {
	t.Helper()
	ostreetest.Run(t, "ostree", append([]string{"admin", "--sysroot=" + root, "deploy"}, args...)...)
}

// status is what ostree admin status shows of a deployment.
type status struct {
	Booted                          bool
	OSName, ID, Mark, Refspec, Lock string
	Pinned                          bool
}

var (
	statusLine  = regexp.MustCompile(`^([ *]) (\S+) ([0-9a-f]{64}\.\d+)(?: \((\w+)\))?$`)
	statusField = regexp.MustCompile(`^    (origin refspec|Unlocked|Pinned): (.*)$`)
)

func parseStatus(t *testing.T, out string) []status {
	t.Helper()
	var all []status
	for line := range strings.Lines(out) {
		line = strings.TrimSuffix(line, "\n")
		if m := statusLine.FindStringSubmatch(line); m != nil {
			all = append(all, status{Booted: m[1] == "*", OSName: m[2], ID: m[3], Mark: m[4]})
		} else if m := statusField.FindStringSubmatch(line); m != nil {
			switch last := &all[len(all)-1]; m[1] {
			case "origin refspec":
				last.Refspec = m[2]
			case "Unlocked":
				last.Lock = m[2]
			case "Pinned":
				last.Pinned = m[2] == "yes"
			}
		}
	}
	return all
}

// shown puts what this package reads into the same form. A rollback is not marked here.
func shown(t *testing.T, s *ostree.Sysroot) []status {
	t.Helper()
	deployments, err := s.Deployments()
	if err != nil {
		t.Fatal(err)
	}
	var all []status
	for _, d := range deployments {
		st := status{Booted: d.Booted, OSName: d.OSName, ID: d.ID(), Refspec: d.Origin, Pinned: d.Pinned}
		if st.Lock, err = s.Unlocked(d); err != nil {
			t.Fatal(err)
		}
		switch {
		case d.Staged:
			st.Mark = "staged"
		case d.Pending:
			st.Mark = "pending"
		}
		all = append(all, st)
	}
	return all
}

func compare(t *testing.T, when, statusOutput string, s *ostree.Sysroot) {
	t.Helper()
	want := parseStatus(t, statusOutput)
	for i := range want {
		if want[i].Mark == "rollback" {
			want[i].Mark = ""
		}
	}
	if len(want) == 0 {
		t.Fatalf("%s: ostree admin status shows no deployment:\n%s", when, statusOutput)
	}
	if diff := cmp.Diff(want, shown(t, s)); diff != "" {
		t.Errorf("%s: differs (-libostree +ours):\n%s", when, diff)
	}
}

func openSysroot(t *testing.T, root string) *ostree.Sysroot {
	t.Helper()
	s, err := ostree.OpenSysroot(root)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestListsDeploymentsAsAdminStatusDoes(t *testing.T) {
	root := sysroot(t)
	s := openSysroot(t, root)
	if deployments, err := s.Deployments(); err != nil || len(deployments) != 0 {
		t.Errorf("nothing deployed: %v, %v", deployments, err)
	}
	if s.RepoPath() != root+"/ostree/repo" {
		t.Errorf("the repo is at %s", s.RepoPath())
	}
	check := func(when string) {
		t.Helper()
		compare(t, when, ostreetest.Run(t, "ostree", "admin", "--sysroot="+root, "status"), s)
	}
	deploy(t, root, "--os=debian", "test/1")
	check("one")
	deploy(t, root, "--os=debian", "--retain", "test/2")
	check("two")
	deploy(t, root, "--os=other", "--retain", "test/1")
	check("another OS")
	deploy(t, root, "--os=debian", "--retain", "--not-as-default", "test/3")
	check("one that is not the default")
	for range 9 { // versions with more than one digit
		deploy(t, root, "--os=debian", "--retain", "test/2")
	}
	check("twelve")
	ostreetest.Run(t, "ostree", "admin", "--sysroot="+root, "pin", "3")
	check("one is pinned")
	ostreetest.Run(t, "ostree", "admin", "--sysroot="+root, "undeploy", "5")
	check("one is gone")

	if _, err := s.Booted(); !errors.Is(err, ostree.ErrNotBooted) {
		t.Errorf("booted: %v", err)
	}
	if _, ok, err := s.Staged(); ok || err != nil {
		t.Errorf("staged: %t, %v", ok, err)
	}
}

// inMountNamespace runs f in a mount namespace of its own, from which no mount comes out.
func inMountNamespace(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and the namespace with it
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			defer close(done)
			f()
			return
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// boot mounts what ostree-prepare-root would, and the host's /usr so that the ostree command runs in it; the
// root of the deployment is then the root of a booted machine.
func boot(t *testing.T, root string, d ostree.Deployment, metadata []byte) (booted string) {
	t.Helper()
	booted = filepath.Join(root, d.Path())
	for target, source := range map[string]string{
		"/sysroot": root, "/boot": root + "/boot", "/usr": "/usr", "/proc": "/proc", "/var": root + "/ostree/deploy/" + d.OSName + "/var",
	} {
		if err := unix.Mount(source, booted+target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			t.Errorf("mount %s: %v", target, err)
		}
	}
	if err := unix.Mount("tmpfs", booted+"/run", "tmpfs", 0, ""); err != nil {
		t.Errorf("mount /run: %v", err)
	}
	if err := os.WriteFile(booted+"/run/ostree-booted", metadata, 0o644); err != nil {
		t.Error(err)
	}
	return booted
}

// chroot runs a command in the booted tree, as child of a process 1 that it may look at: libostree compares
// the mount namespaces of the two.
func chroot(t *testing.T, booted string, args ...string) string {
	t.Helper()
	script := `mount -t proc proc /proc && "$@"`
	command := append([]string{"--mount", "--pid", "--fork", "chroot", booted, "sh", "-c", script, "sh"}, args...)
	out, err := exec.Command("unshare", command...).CombinedOutput()
	if err != nil {
		t.Errorf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestFindsTheBootedAndTheStagedDeployment(t *testing.T) {
	root := sysroot(t)
	deploy(t, root, "--os=debian", "test/1")
	deploy(t, root, "--os=other", "--retain", "test/1")
	deploy(t, root, "--os=debian", "--retain", "test/2")
	deployments, err := openSysroot(t, root).Deployments()
	if err != nil {
		t.Fatal(err)
	}
	inMountNamespace(t, func() {
		booted := boot(t, root, deployments[2], nil)
		s := openSysroot(t, booted)
		check := func(when string) {
			t.Helper()
			compare(t, when, chroot(t, booted, "ostree", "admin", "status"), s)
		}
		check("booted")
		if d, err := s.Booted(); err != nil || d.ID() != deployments[2].ID() || !d.Booted || d.OSName != "debian" {
			t.Errorf("booted: %v, %v, want %v", d, err, deployments[2])
		}
		if _, ok, err := s.Staged(); ok || err != nil {
			t.Errorf("nothing is staged: %t, %v", ok, err)
		}

		chroot(t, booted, "ostree", "admin", "deploy", "--stage", "--os=debian", "test/3")
		check("staged")
		staged, ok, err := s.Staged()
		if err != nil || !ok || !staged.Staged || !staged.Pending || staged.Booted || staged.Locked {
			t.Errorf("staged: %+v, %t, %v", staged, ok, err)
		}
		if want := revParse(t, root+"/ostree/repo", "test/3"); staged.Commit.String() != want {
			t.Errorf("%s is staged, not %s", staged.Commit, want)
		}
		if _, err := os.Stat(filepath.Join(booted, staged.Path())); err != nil {
			t.Errorf("the staged deployment is not where Path says: %v", err)
		}

		chroot(t, booted, "touch", "/run/ostree/staged-deployment-locked")
		if staged, _, err := s.Staged(); err != nil || !staged.Locked {
			t.Errorf("locked: %+v, %v", staged, err)
		}

		states := filepath.Join(booted, "run/ostree/deployment-state", deployments[2].ID())
		if err := os.MkdirAll(states, 0o755); err != nil {
			t.Error(err)
		}
		for _, state := range []string{"transient", "development"} { // development counts more
			if err := os.WriteFile(filepath.Join(states, "unlocked-"+state), nil, 0o644); err != nil {
				t.Error(err)
			}
			check("unlocked " + state)
			if got, err := s.Unlocked(deployments[2]); err != nil || got != state {
				t.Errorf("unlocked is %q, %v, want %s", got, err, state)
			}
		}
		origin := filepath.Join(root, deployments[0].Path()+".origin")
		if err := os.WriteFile(origin, []byte("[origin]\nrefspec=x:y\nunlocked=hotfix\n"), 0o644); err != nil {
			t.Error(err)
		}
		check("hotfix")
		if err := os.Remove(origin); err != nil {
			t.Error(err)
		}
		check("without origin")
		chroot(t, booted, "ostree", "admin", "undeploy", "0")
		check("the staged one dropped")
	})
}

func TestTransientStateOfADeploymentIsNotForAnother(t *testing.T) {
	const origin = "# by hand\n[origin]\nrefspec = a:b\noverride-commit=c\nunlocked=hotfix\n\n[libostree-transient]\npinned=true\n[rpmostree]\nunlocked=kept\n"
	const want = "# by hand\n[origin]\nrefspec = a:b\n\n[rpmostree]\nunlocked=kept\n"
	if got := ostree.WithoutTransientState(origin); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// devino is the GVariant {'backing-root-device-inode': <(device, inode)>}, as ostree-prepare-root writes it.
func devino(device, inode uint64) []byte {
	entry := append([]byte("backing-root-device-inode\x00"), 0, 0, 0, 0, 0, 0)
	entry = binary.NativeEndian.AppendUint64(entry, device)
	entry = binary.NativeEndian.AppendUint64(entry, inode)
	entry = append(entry, "\x00(tt)"...)
	entry = append(entry, byte(len("backing-root-device-inode\x00")))
	return append(entry, byte(len(entry)))
}

func TestFindsTheBootedDeploymentBelowAnotherRoot(t *testing.T) {
	root := sysroot(t)
	deploy(t, root, "--os=debian", "test/1")
	deploy(t, root, "--os=debian", "--retain", "test/2")
	s := openSysroot(t, root)
	deployments, err := s.Deployments()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(root, deployments[1].Path()), &st); err != nil {
		t.Fatal(err)
	}
	booted := func(metadata []byte) (ostree.Deployment, error) {
		if err := os.MkdirAll(root+"/run", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+"/run/ostree-booted", metadata, 0o644); err != nil {
			t.Fatal(err)
		}
		return s.Booted()
	}
	if d, err := booted(devino(st.Dev, st.Ino)); err != nil || d.ID() != deployments[1].ID() {
		t.Errorf("%v, %v, want %v", d, err, deployments[1])
	}
	if all, err := s.Deployments(); err != nil || !all[1].Booted || all[0].Booted || !all[0].Pending || all[1].Pending {
		t.Errorf("%+v, %v", all, err)
	}
	for name, metadata := range map[string][]byte{"nothing": nil, "no deployment": devino(st.Dev, 1), "nonsense": []byte("nonsense")} {
		if d, err := booted(metadata); err == nil || errors.Is(err, ostree.ErrNotBooted) || !strings.Contains(err.Error(), "ostree-booted") {
			t.Errorf("%s: %v, %v", name, d, err)
		}
		if _, err := s.Deployments(); err == nil {
			t.Errorf("%s: no error from Deployments", name)
		}
	}
}

func TestRefusesBrokenSysroots(t *testing.T) {
	root := sysroot(t)
	deploy(t, root, "--os=debian", "test/1")
	s := openSysroot(t, root)
	entries, err := filepath.Glob(root + "/boot/loader/entries/ostree-*.conf")
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	data, err := os.ReadFile(entries[0])
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`ostree=\S+`).FindString(string(data))
	for _, tt := range []struct{ ostree, want string }{
		{"", "no ostree="},
		{"ostree=/ostree/boot.2/debian/x/0", "not of the form"},
		{"ostree=/ostree/boot.0/debian/x", "not of the form"},
		{"ostree=/ostree/boot.0/../repo/0", `named ".."`},
		{"ostree=/ostree/boot.0/debian/x/0", "no such file"},
	} {
		if err := os.WriteFile(entries[0], []byte(strings.ReplaceAll(string(data), link, tt.ostree)), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Deployments(); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), filepath.Base(entries[0])) {
			t.Errorf("%q: %v, want %q", tt.ostree, err, tt.want)
		}
	}
	if _, err := ostree.OpenSysroot(t.TempDir()); !errors.Is(err, ostree.ErrNotBooted) || !strings.Contains(err.Error(), "not an OSTree sysroot") {
		t.Errorf("an empty directory: %v", err)
	}
}

func TestPathsOfADeployment(t *testing.T) {
	d := ostree.Deployment{OSName: "debian", Commit: ostree.Checksum{0xab}, Serial: 3}
	id := "ab" + strings.Repeat("0", 62) + ".3"
	got := fmt.Sprintln(d.ID(), d.Path(), d.BackingPath())
	if want := fmt.Sprintln(id, "ostree/deploy/debian/deploy/"+id, "ostree/deploy/debian/backing/"+id); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

// A boot file system without links, such as an EFI system partition.
func TestBootLoaderDirectoryMayBeNoLink(t *testing.T) {
	root := sysroot(t)
	deploy(t, root, "--os=debian", "test/1")
	deploy(t, root, "--os=debian", "--retain", "test/2")
	s := openSysroot(t, root)
	want, err := s.Deployments()
	if err != nil || len(want) != 2 {
		t.Fatalf("there are %v (%v)", want, err)
	}
	loader := filepath.Join(root, "boot/loader")
	target, err := os.Readlink(loader)
	if err == nil {
		err = os.Remove(loader)
	}
	if err == nil {
		err = os.Rename(filepath.Join(root, "boot", target), loader)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Deployments(); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
}
