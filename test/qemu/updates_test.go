//go:build qemu

package qemu_test

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"

	"github.com/liveapply/liveapply/test/nspawn"
	"github.com/liveapply/liveapply/test/qemu"
)

// library is one that the first process uses.
const library = "/usr/lib/x86_64-linux-gnu/libmount.so.1.1.0"

// unit comes with the image, and leaves a file when it has run.
const unit = `[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/touch /run/updates-test/unit-has-run
`

// image is an updates image: an archive, and what tells it from another one.
type image struct {
	dir, file, sha256 string
	text              string // of the files that it brings
	patchedSHA256     string
}

// format makes an image of the files of a directory.
type format func(t *testing.T, tree, image string)

func tarImage(t *testing.T, tree, image string) {
	run(t, "tar", "--create", "--file="+image, "--owner=0", "--group=0", "--directory="+tree, ".")
}

func cpioImage(t *testing.T, tree, image string) {
	run(t, "sh", "-c", `cd "$1" && find . -print0 | cpio --quiet --null --create --format=newc --owner=0:0 >"$2"`, "sh", tree, image)
}

func squashfsImage(t *testing.T, tree, image string) {
	run(t, "mksquashfs", tree, image, "-quiet", "-no-progress", "-all-root")
}

func erofsImage(t *testing.T, tree, image string) {
	run(t, "mkfs.erofs", "--quiet", image, tree)
}

func ext4Image(t *testing.T, tree, image string) {
	run(t, "mkfs.ext4", "-q", "-d", tree, image, "8M")
}

// makeImage makes an image that replaces a library by one that does the same, adds a unit, a file of /etc and one of /run, and has a name.
func makeImage(t *testing.T, name string, pack format) image {
	t.Helper()
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	old, err := os.ReadFile(filepath.Join(lab.Checkout(t, lab.Base(t, nspawn.Trixie, nspawn.Bootable)), library))
	check(t, err)
	text := "from the image " + name
	patched := string(old) + text + "\n"
	for path, content := range map[string]string{
		// By the classic name, which on the system is a link.
		strings.TrimPrefix(library, "/usr"):           patched,
		"usr/lib/systemd/system/updates-test.service": unit,
		"etc/updates-test.conf":                       text + "\n",
		"run/updates-test/file":                       text + "\n",
	} {
		check(t, os.MkdirAll(filepath.Dir(filepath.Join(tree, path)), 0o755))
		check(t, os.WriteFile(filepath.Join(tree, path), []byte(content), 0o644))
	}
	wants := filepath.Join(tree, "usr/lib/systemd/system/multi-user.target.wants")
	check(t, os.Mkdir(wants, 0o755))
	check(t, os.Symlink("../updates-test.service", filepath.Join(wants, "updates-test.service")))

	archives := filepath.Join(dir, "archives")
	check(t, os.Mkdir(archives, 0o755))
	archive := filepath.Join(archives, name+".img")
	pack(t, tree, archive)
	content, err := os.ReadFile(archive)
	check(t, err)
	return image{archives, archive, hash(content), text, hash([]byte(patched))}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func hash(content []byte) string { return fmt.Sprintf("%x", sha256.Sum256(content)) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve serves the file of an image to machines, and returns its URL.
func serve(t *testing.T, i image) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	server := &http.Server{Handler: http.FileServer(http.Dir(i.dir))}
	go server.Serve(listener) // until it is closed
	t.Cleanup(func() { server.Close() })
	port := listener.Addr().(*net.TCPAddr).Port
	return fmt.Sprintf("http://%s:%d/%s", qemu.HostAddress, port, filepath.Base(i.file))
}

// network is what an initramfs of dracut needs on the kernel command line to have one.
var network = []string{"rd.neednet=1", "ip=dhcp"}

// mappedByFirstProcess returns the checksum of the library that the first process has mapped.
func mappedByFirstProcess(t *testing.T, m *qemu.Machine) string {
	t.Helper()
	for line := range strings.Lines(m.Run("cat", "/proc/1/maps")) {
		if fields := strings.Fields(line); len(fields) == 6 && filepath.Base(fields[5]) == filepath.Base(library) {
			return sum(m, "/proc/1/map_files/"+fields[0])
		}
	}
	t.Fatalf("the first process has not mapped %s", library)
	return ""
}

func sum(m *qemu.Machine, path string) string {
	return strings.Fields(m.Run("sha256sum", path))[0]
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// started checks that the machine has started with what is in an image.
func started(t *testing.T, m *qemu.Machine, i image) {
	t.Helper()
	equal(t, "library that the first process has mapped", mappedByFirstProcess(t, m), i.patchedSHA256)
	equal(t, "unit of the image", m.Run("systemctl", "is-active", "updates-test.service"), "active")
	m.Run("test", "-e", "/run/updates-test/unit-has-run")
	applied(t, m, i)
}

// applied checks that what is in an image is in the machine, and that nothing has failed.
func applied(t *testing.T, m *qemu.Machine, i image) {
	t.Helper()
	healthy(t, m)
	equal(t, "library at its path", sum(m, library), i.patchedSHA256)
	equal(t, "link that the image has a directory for", m.Run("readlink", "/lib"), "usr/lib")
	for _, file := range []string{"/etc/updates-test.conf", "/run/updates-test/file"} {
		equal(t, file, m.Run("cat", file), i.text)
	}
	m.Run("systemctl", "cat", "updates-test.service")
	if source := usrSource(t, m); !strings.HasPrefix(source, "liveapply:") {
		t.Errorf("/usr is mounted from %s", source)
	}
}

// untouched checks that there is nothing of an image in the machine.
func untouched(t *testing.T, m *qemu.Machine, i image) {
	t.Helper()
	if mappedByFirstProcess(t, m) == i.patchedSHA256 || sum(m, library) == i.patchedSHA256 {
		t.Error("the library is that of the image")
	}
	for _, file := range []string{"/etc/updates-test.conf", "/run/updates-test", "/usr/lib/systemd/system/updates-test.service"} {
		if m.Try("test", "-e", file).Code == 0 {
			t.Errorf("%s is there", file)
		}
	}
	if source := usrSource(t, m); strings.HasPrefix(source, "liveapply:") {
		t.Errorf("/usr is mounted from %s", source)
	}
}

// usrSource returns the source of what is mounted on /usr, or nothing if nothing is.
func usrSource(t *testing.T, m *qemu.Machine) string {
	t.Helper()
	mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(m.Run("cat", "/proc/self/mountinfo")), nil)
	check(t, err)
	source := ""
	for _, mount := range mounts {
		if mount.Mountpoint == "/usr" {
			source = mount.Source // that of the top comes last
		}
	}
	return source
}

func healthy(t *testing.T, m *qemu.Machine) {
	t.Helper()
	if state := m.Try("systemctl", "is-system-running").Stdout; state != "running" {
		t.Errorf("the system is %s: %s\n%s", state, failedUnits(m), journal(m))
	}
}

func failedUnits(m *qemu.Machine) string {
	return m.Run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "--full")
}

func journal(m *qemu.Machine) string {
	return m.Run("journalctl", "--boot", "--no-pager", "--output=short-monotonic", "--unit=liveapply-updates.service", "--unit=liveapply-updates-url.service")
}

func TestUpdatesInTheInitramfs(t *testing.T) {
	t.Parallel()
	i := makeImage(t, "updates", cpioImage)
	m := lab.OSTreeDisk(t).Machine(t)
	m.AddToInitramfs(i.dir)
	m.Boot("liveapply.updates=/updates.img")
	started(t, m, i)

	m.PowerOff()
	m.Boot()
	healthy(t, m)
	untouched(t, m, i)
}

func TestUpdatesByURL(t *testing.T) {
	t.Parallel()
	i := makeImage(t, "updates", tarImage)
	m := lab.OSTreeDisk(t).Machine(t)
	m.Boot(append(network, "liveapply.updates="+serve(t, i)+",sha256="+i.sha256)...)
	started(t, m, i)

	m.PowerCut()
	m.Boot()
	healthy(t, m)
	untouched(t, m, i)
}

// A wrong image is not applied, and the boot goes on without it.
func TestUpdatesWithAWrongChecksum(t *testing.T) {
	t.Parallel()
	i := makeImage(t, "updates", tarImage)
	m := lab.OSTreeDisk(t).Machine(t)
	wrong := hash([]byte("something else"))
	m.Boot(append(network, "liveapply.updates="+serve(t, i)+",sha256="+wrong)...)
	untouched(t, m, i)
	if failed := failedUnits(m); strings.Count(failed, "\n") > 0 || !strings.HasPrefix(failed, "liveapply-updates-url.service") {
		t.Errorf("failed units:\n%s", failed)
	}
	if log := journal(m); !strings.Contains(log, wrong) || !strings.Contains(log, "is "+i.sha256) {
		t.Errorf("the journal does not tell both checksums:\n%s", log)
	}
}

// What the initrd has not found, the system finds.
func TestUpdatesThatOnlyTheSystemHas(t *testing.T) {
	t.Parallel()
	i := makeImage(t, "updates", ext4Image)
	m := lab.OSTreeDisk(t).Machine(t)
	m.Boot()
	content, err := os.ReadFile(i.file)
	check(t, err)
	m.Write("/var/updates.img", content)
	m.PowerOff()
	m.Boot("liveapply.updates=/var/updates.img")
	applied(t, m, i)
}

// What the initrd cannot fetch, the system fetches when it has a network.
func TestUpdatesByURLWithoutANetworkInTheInitrd(t *testing.T) {
	t.Parallel()
	i := makeImage(t, "updates", erofsImage)
	m := lab.OSTreeDisk(t).Machine(t)
	m.Boot("ip=dhcp", "rd.systemd.mask=systemd-networkd.service", "systemd.wants=systemd-networkd.service", "systemd.wants=systemd-networkd-wait-online.service",
		"liveapply.updates="+serve(t, i)+",sha256="+i.sha256)
	applied(t, m, i)
}

// On a live medium, an image of the medium lies above one that is fetched, because it comes later on the command line.
func TestUpdatesOnALiveMedium(t *testing.T) {
	t.Parallel()
	lower, upper := makeImage(t, "lower", tarImage), makeImage(t, "upper", squashfsImage)
	medium := lab.LiveMedium(t, func(dir string) { run(t, "cp", upper.file, dir) })
	m := medium.Machine(t)
	m.Boot(append(network, "liveapply.updates="+serve(t, lower)+",sha256="+lower.sha256, "liveapply.updates=/run/initramfs/live/upper.img")...)
	started(t, m, upper)

	m.PowerOff()
	m.Boot()
	healthy(t, m)
	untouched(t, m, upper)
}
