//go:build nspawn

package nspawn_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/test/nspawn"
)

// images is where a machine has its updates images; "content" is the directory that they are made of.
const images = "/var/images"

// imageFormat makes an image, $2, of a directory, $1, with the tools that everybody has.
type imageFormat struct {
	name, command string
	noXattrs      bool // it has none
}

var imageFormats = []imageFormat{
	{name: "directory", command: `cp -a "$1" "$2"`},
	{name: "tar", command: `tar --xattrs --sparse -C "$1" -cf "$2" .`},
	{name: "tar.gz", command: `tar --xattrs --sparse -C "$1" -czf "$2" .`},
	{name: "tar.xz", command: `tar --xattrs --sparse -C "$1" -cJf "$2" .`},
	{name: "tar.zst", command: `tar --xattrs --sparse -C "$1" --zstd -cf "$2" .`},
	{name: "cpio", command: `cd "$1" && find . -print0 | cpio --quiet --null -o -H newc >"$2"`, noXattrs: true},
	{name: "cpio.gz", command: `cd "$1" && find . -print0 | cpio --quiet --null -o -H newc | gzip >"$2"`, noXattrs: true},
	{name: "cpio.xz", command: `cd "$1" && find . -print0 | cpio --quiet --null -o -H newc | xz >"$2"`, noXattrs: true},
	{name: "cpio.zst", command: `cd "$1" && find . -print0 | cpio --quiet --null -o -H newc | zstd -q >"$2"`, noXattrs: true},
	{name: "squashfs", command: `mksquashfs "$1" "$2" -quiet -no-progress`},
	{name: "erofs", command: `mkfs.erofs --quiet "$2" "$1"`},
	{name: "ext4", command: `mke2fs -q -t ext4 -d "$1" "$2" 16M`},
}

// onDisk is the host's path of a file in the machine's /var, and no link is on the way, as in /proc, which mkfs.erofs would resolve.
func onDisk(m *nspawn.Machine, path string) string {
	return filepath.Join(m.Sysroot(), "ostree/deploy/debian", path)
}

// onHost runs a script on the host, with files in the machine's /var as its arguments.
func onHost(t *testing.T, m *nspawn.Machine, script string, paths ...string) {
	t.Helper()
	args := []string{"-ec", script, "bash"}
	for _, path := range paths {
		args = append(args, onDisk(m, path))
	}
	if output, err := exec.Command("bash", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
}

// imageMachine has loop devices, which systemd-nspawn leaves out, and a directory for images.
func imageMachine(t *testing.T, suite nspawn.Suite) *nspawn.Machine {
	t.Helper()
	m, _ := demoMachine(t, suite, nspawn.Options{})
	makeLoopDevices(t, m)
	m.Run("mkdir", images)
	makeImageContent(t, m)
	return m
}

func makeLoopDevices(t *testing.T, m *nspawn.Machine) {
	t.Helper()
	node := func(name string, kind uint32, major, minor uint32) {
		if err := unix.Mknod(m.Path("/dev/"+name), kind|0o600, int(unix.Mkdev(major, minor))); err != nil {
			t.Fatal(err)
		}
	}
	node("loop-control", unix.S_IFCHR, 10, 237)
	for i := range uint32(64) {
		node(fmt.Sprintf("loop%d", i), unix.S_IFBLK, 7, i)
	}
}

// makeImageContent has one of everything that an image can have.
func makeImageContent(t *testing.T, m *nspawn.Machine) {
	t.Helper()
	onHost(t, m, `
		mkdir -p "$1"; cd "$1"
		mkdir -p usr/share/demo/new/deep lib lib64 bin sbin etc/demo run/demo
		echo library >lib/libdemo.so.1; ln -s libdemo.so.1 lib/libdemo.so
		echo library >lib64/libdemo64.so.1
		echo tool >bin/demo; chmod 755 bin/demo; ln bin/demo bin/demo-too
		echo admin >sbin/demo-admin
		echo image >usr/share/demo/text; chmod 604 usr/share/demo/text
		ln -s /etc/demo/conf usr/share/demo/absolute
		truncate -s 3M usr/share/demo/sparse; printf middle | dd of=usr/share/demo/sparse bs=1 seek=1500000 conv=notrunc status=none
		echo x >"usr/share/demo/$(printf 'a\nname\twith\303\251 and spaces')"
		echo image >etc/demo/conf; chown 12:34 etc/demo/conf; chmod 640 etc/demo/conf
		echo image >run/demo/file
		head -c 300000 /dev/urandom >usr/share/demo/random
		setfattr -n user.comment -v "a value" lib/libdemo.so.1
		chown 56:78 usr/share/demo/new; chmod 750 usr/share/demo/new
		echo deep >usr/share/demo/new/deep/file`, images+"/content")
}

// makeImage makes an image of the content, and returns its path in the machine.
func makeImage(t *testing.T, m *nspawn.Machine, f imageFormat) string {
	t.Helper()
	path := images + "/updates." + f.name
	onHost(t, m, f.command, images+"/content", path)
	return path
}

// landed is where an entry of an image belongs in the system.
func landed(path string) string {
	if top, _, _ := strings.Cut(path, "/"); top == "usr" || top == "etc" || top == "run" {
		return path
	}
	return "usr/" + path
}

// requireImage makes sure that the machine shows what the image has, and else what was there before.
func requireImage(t *testing.T, m *nspawn.Machine, f imageFormat, before facts) {
	t.Helper()
	want := map[string]nspawn.Snapshot{"usr": maps.Clone(before.usr), "etc": maps.Clone(before.etc), "run": {}}
	for path, entry := range m.Snapshot(images + "/content") {
		top, below, _ := strings.Cut(landed(path), "/")
		if _, there := want[top][below]; below == "" || there && entry.IsDir() {
			continue // it keeps its owner and mode
		}
		if f.noXattrs {
			entry.Xattrs = ""
		}
		want[top][below] = entry
	}
	requireTree(t, "/usr", m.Snapshot("/usr"), want["usr"])
	requireTree(t, "/etc", m.Snapshot("/etc"), want["etc"])
	equal(t, "a file in /run", m.Snapshot("/run/demo")["file"], want["run"]["demo/file"])
	equal(t, "the two names are one file", m.Try("test", "/usr/bin/demo", "-ef", "/usr/bin/demo-too").Code, 0)
	if blocks := m.Run("stat", "--format=%b", "/usr/share/demo/sparse"); len(blocks) > 3 {
		t.Errorf("the sparse file takes %s blocks", blocks)
	}
	for _, link := range []string{"lib", "lib64", "bin", "sbin"} {
		equal(t, "/"+link, m.Run("readlink", "/"+link), "usr/"+link)
	}
}

// requireNoLoop makes sure that an image is behind no loop device any more, as soon as the host's udev, which looks at each new one, has closed it.
func requireNoLoop(t *testing.T, m *nspawn.Machine, path string) {
	t.Helper()
	waitFor(t, path+" to be behind no loop device", func() bool {
		output, err := exec.Command("losetup", "--associated", onDisk(m, path)).CombinedOutput()
		if err != nil {
			t.Fatalf("losetup: %v\n%s", err, output)
		}
		return len(output) == 0
	})
}

func sumOf(t *testing.T, m *nspawn.Machine, path string) string {
	t.Helper()
	sum, _, _ := strings.Cut(m.Run("sha256sum", path), " ")
	return sum
}

func TestImagesOfEachFormat(t *testing.T) {
	t.Parallel()
	eachSuite(t, func(t *testing.T, suite nspawn.Suite) {
		m := imageMachine(t, suite)
		before := factsOf(t, m)
		for i, f := range imageFormats {
			path, option := makeImage(t, m, f), ""
			sum := ""
			if f.name != "directory" && i%2 == 0 {
				sum = sumOf(t, m, path)
				option = " --sha256=" + strings.ToUpper(sum)
			}
			equal(t, "import", overlayCtl(t, m, 0, "import "+path+option), "Overlay updates has the content of "+path+".")
			requireImage(t, m, f, before)
			requireNoLoop(t, m, path)
			requireTidy(t, m)
			list := listOverlays(t, m)
			equal(t, "how many overlays there are", len(list), 1)
			equal(t, "what it is", fmt.Sprint(list[0].Kind, " ", list[0].Source, " ", list[0].SHA256), fmt.Sprint("updates ", path, " ", sum))
			equal(t, "stack", stackOf(status(t, m).Stack), "updates updates, booted")
			if t.Failed() {
				t.Fatalf("as %s", f.name)
			}
		}
		m.Reboot()
		requireImage(t, m, imageFormats[len(imageFormats)-1], before)
		overlayCtl(t, m, exitFailed, "set updates /usr/share/demo/text --from=/etc/issue")
		overlayCtl(t, m, 0, "disable updates")
		requireTree(t, "/etc", m.Snapshot("/etc"), before.etc)
		overlayCtl(t, m, 0, "enable updates")
		overlayCtl(t, m, 0, "remove updates")
		requireTree(t, "/usr", m.Snapshot("/usr"), before.usr)
		requireTree(t, "/etc", m.Snapshot("/etc"), before.etc)
		equal(t, "there is its file in /run", m.Exists("/run/demo/file"), false)
	})
}

// hostileTar is an archive of these entries; files have the content "hostile\n".
func hostileTar(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, header := range headers {
		if header.Typeflag == 0 {
			header.Typeflag, header.Size = tar.TypeReg, 8
		}
		if header.Mode == 0 {
			header.Mode = 0o644
		}
		if err := w.WriteHeader(&header); err != nil {
			t.Fatal(err)
		}
		if header.Size > 0 {
			if _, err := w.Write([]byte("hostile\n")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

func TestHostileImagesChangeNothing(t *testing.T) {
	t.Parallel()
	m := imageMachine(t, nspawn.Trixie)
	overlayCtl(t, m, 0, "create mine")
	m.Run("sh", "-c", "echo mine | liveapplyctl overlay set mine /usr/share/demo/text --from=-")
	overlayCtl(t, m, 0, "import "+makeImage(t, m, imageFormats[1]))
	good := sumOf(t, m, images+"/updates.tar")
	before, state, rest := factsOf(t, m), overlayStateOf(t, m), elsewhere(m).Without(images)
	refused := func(t *testing.T, m *nspawn.Machine, code int, command string, says ...string) {
		t.Helper()
		said := overlayCtl(t, m, code, command)
		t.Log(said)
		requireSays(t, "overlay "+command, said, says)
		awaitEnd(m)
		m.Run("sh", "-c", "systemctl reset-failed 'liveapply*'")
		requireTidy(t, m)
		if diff := state.diff(overlayStateOf(t, m)); diff != "" {
			t.Errorf("something is changed:\n%.3000s", diff)
		}
		requireSameState(t, before, stateOf(t, m))
	}
	hostile := func(name, options, script string, says ...string) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			m := m.For(t)
			path := images + "/hostile"
			onHost(t, m, `rm -rf "$1" "$1".dir; mkdir "$1".dir; cd "$1".dir; `+script, path)
			for _, to := range []string{"updates", "another"} { // in the place of one that is there, and as a new one
				refused(t, m, exitFailed, "import "+path+" --name="+to+" "+options, says...)
			}
			if m.Try("test", "-f", path).Code == 0 {
				requireNoLoop(t, m, path)
			}
		})
	}
	hostileArchive := func(name string, says string, headers ...tar.Header) {
		t.Helper()
		m.Write(images+"/archive", string(hostileTar(t, headers...)))
		hostile(name, "", `cp "${1%/*}/archive" "$1"`, says)
	}

	hostileArchive("up and out", `".."`, tar.Header{Name: "usr/good"}, tar.Header{Name: "usr/../../var/hostile"})
	hostileArchive("absolute", "absolute", tar.Header{Name: "usr/good"}, tar.Header{Name: "/etc/hostile"})
	hostileArchive("below a link", "symbolic link", tar.Header{Name: "usr/hostile", Typeflag: tar.TypeSymlink, Linkname: "/var"}, tar.Header{Name: "usr/hostile/hostile"})
	hostileArchive("below a link of the system", "no path for an overlay", tar.Header{Name: "usr/good"}, tar.Header{Name: "home/hostile"})
	hostileArchive("elsewhere", "no path for an overlay", tar.Header{Name: "usr/good"}, tar.Header{Name: "opt/hostile"})
	hostileArchive("a hard link out", "hard link", tar.Header{Name: "usr/hostile", Typeflag: tar.TypeLink, Linkname: "../../etc/shadow"})
	hostileArchive("a link in the place of /lib", "/lib stays as it is", tar.Header{Name: "usr/good"}, tar.Header{Name: "lib", Typeflag: tar.TypeSymlink, Linkname: "usr/good"})
	hostileArchive("a file in the place of /usr", "/usr stays as it is", tar.Header{Name: "usr"})
	hostileArchive("one file twice", "as another entry of the image does", tar.Header{Name: "lib/hostile"}, tar.Header{Name: "usr/lib/hostile"})
	hostileArchive("a file in the place of a directory", "directory", tar.Header{Name: "usr/share/demo/folder"})
	hostileArchive("a directory in the place of a file", "is no directory", tar.Header{Name: "usr/share/demo/text/hostile"})
	hostileArchive("setuid", "AllowSetuid=yes", tar.Header{Name: "usr/bin/hostile", Mode: 0o4755})
	hostileArchive("systemd", "cannot do without", tar.Header{Name: "lib/systemd/systemd"})
	hostileArchive("accounts", "passwd", tar.Header{Name: "etc/passwd"})
	hostileArchive("an opaque directory", "trusted.overlay.opaque", tar.Header{Name: "usr/share/", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y"}})
	hostileArchive("a device", "it is a device node", tar.Header{Name: "usr/lib/hostile", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3})

	inEach := func(name, content string, says ...string) {
		t.Helper()
		for _, f := range imageFormats {
			if f.noXattrs && strings.Contains(content, "setcap") || strings.Contains(f.name, ".") {
				continue
			}
			hostile(name+" in "+f.name, "", content+`; set -- "$1.dir" "$1"; `+f.command, says...)
		}
	}
	inEach("a device", "mkdir usr; mknod usr/null c 1 3", "it is a device node")
	inEach("setuid", "mkdir -p usr/bin; cp /bin/true usr/bin/hostile; chmod 4755 usr/bin/hostile", "AllowSetuid=yes")
	inEach("capabilities", "mkdir -p usr/bin; cp /bin/true usr/bin/hostile; setcap cap_net_raw+ep usr/bin/hostile", "AllowSetuid=yes")
	inEach("no program runs", "mkdir -p usr/bin; echo x >usr/bin/true; chmod 755 usr/bin/true", "/usr/bin/true")
	hostile("up and out in cpio", "", `mkdir usr; echo x >../outside; echo ../outside | cpio --quiet -o -H newc >"$1"`, `".."`)
	hostile("absolute in cpio", "", `echo /etc/issue | cpio --quiet -o -H newc --absolute-filenames >"$1"`, "absolute")

	// Half of each.
	for _, f := range imageFormats[1:] {
		f.name = "whole-" + f.name
		makeImage(t, m, f)
		hostile("half of "+f.name, "", `whole="${1%/*}/updates.`+f.name+`"; head -c $(($(stat -c %s "$whole") / 2)) "$whole" >"$1"`)
	}
	hostile("an empty file", "", `: >"$1"`, "known formats")
	hostile("no image", "", `echo hello >"$1"`, "known formats")
	hostile("a fifo as the image", "", `mkfifo "$1"`, "neither a file nor a directory")
	hostile("nothing", "", `rm -f "$1"`, "no such file")

	const bad = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	hostile("another checksum", "--sha256="+bad, `cp "${1%/*}/updates.tar" "$1"`, "its sha256 is "+good+", and not "+bad)
	hostile("a checksum of a directory", "--sha256="+bad, `mkdir "$1"`, "only a file can")
	t.Run("another kind of overlay", func(t *testing.T) {
		refused(t, m.For(t), exitFailed, "import "+images+"/updates.tar --name=mine", "--name")
	})

	// A file that is too large, with and without a limit by the configuration.
	hostile("a bomb without MaxSize=", "", `mkdir usr; truncate -s 5G usr/bomb; mksquashfs . "$1" -quiet -no-progress`, "4294967296")
	config := m.Read("/etc/liveapply/liveapply.conf")
	m.Write("/etc/liveapply/liveapply.conf", config+"[Overlay]\nMaxSize=20M\n")
	state = overlayStateOf(t, m)
	for _, f := range imageFormats {
		if f.name != "cpio" && f.name != "tar" && f.name != "directory" {
			hostile("a bomb in "+f.name, "", `mkdir usr; truncate -s 50M usr/bomb; set -- "$1.dir" "$1"; `+strings.NewReplacer("16M", "80M", "--sparse", "").Replace(f.command), "20971520")
		}
	}

	serve := http.NewServeMux()
	serve.HandleFunc("/updates.tar", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(m.Read(images + "/updates.tar"))) })
	serve.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		for block := make([]byte, 1<<20); ; {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
	listener := m.Listen("127.0.0.1:0")
	server := &http.Server{Handler: serve}
	go server.Serve(listener) // until the test ends
	t.Cleanup(func() { server.Close() })
	url := "http://" + listener.Addr().String() + "/"
	for command, want := range map[string]struct {
		code int
		says string
	}{
		"updates.tar":                 {exitUsage, "--sha256"},
		"updates.tar --sha256=1234":   {exitUsage, "64 hexadecimal digits"},
		"updates.tar --sha256=" + bad: {exitFailed, "its sha256 is " + good + ", and not " + bad},
		"missing --sha256=" + good:    {exitFailed, "404"},
		"endless --sha256=" + good:    {exitFailed, "20971520"},
	} {
		t.Run("http "+command, func(t *testing.T) { refused(t, m.For(t), want.code, "import "+url+command, want.says) })
	}
	t.Run("nobody listens", func(t *testing.T) {
		refused(t, m.For(t), exitFailed, "import http://127.0.0.1:1/updates.tar --sha256="+good, "connection refused")
	})
	overlayCtl(t, m, 0, "import "+url+"updates.tar --sha256="+good+" --name=fetched --runtime")
	fetched := showOverlay(t, m, "fetched")
	equal(t, "where it is from", fetched.Source+" "+fetched.SHA256, url+"updates.tar "+good)
	equal(t, "it is gone after a reboot", fetched.Runtime, true)
	overlayCtl(t, m, 0, "remove fetched")
	m.Write("/etc/liveapply/liveapply.conf", config)
	requireSame(t, m, before)
	requireTree(t, "what is neither /usr nor /etc", elsewhere(m).Without(images), rest)
}

// An image may have files with capabilities if the administrator allows that.
func TestImageWithCapabilities(t *testing.T) {
	t.Parallel()
	m := imageMachine(t, nspawn.Trixie)
	onHost(t, m, `cp /bin/true "$1/bin/capable"; setcap cap_net_raw+ep "$1/bin/capable"`, images+"/content")
	m.Write("/etc/liveapply/liveapply.conf", "[Overlay]\nAllowSetuid=yes\n")
	for _, f := range imageFormats {
		if f.noXattrs {
			continue
		}
		overlayCtl(t, m, 0, "import "+makeImage(t, m, f))
		if capabilities := m.Run("getcap", "/usr/bin/capable"); f.name != "directory" || capabilities != "" {
			equal(t, "capabilities from "+f.name, capabilities, "/usr/bin/capable cap_net_raw=ep")
		}
	}
	checksum := sha256.Sum256([]byte(m.Read("/usr/bin/capable")))
	equal(t, "the program", sumOf(t, m, images+"/content/bin/capable"), hex.EncodeToString(checksum[:]))
}
