package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/liveapply/liveapply/test/nspawn"
)

// Lab is what the tests of one run share.
type Lab struct {
	*nspawn.Lab

	mu      sync.Mutex
	systems map[string]System
	made    string // the commit of all systems
}

// Open prepares a run; see [nspawn.Open].
func Open() (*Lab, error) {
	lab, err := nspawn.Open()
	if err != nil {
		return nil, err
	}
	return &Lab{Lab: lab, systems: map[string]System{}}, nil
}

// System is what a machine boots.
type System struct {
	lab               *Lab
	disk              string // an image, which is never changed
	kernel, initramfs string
	options           string // the kernel command line
}

// system makes a system once.
func (l *Lab) system(t nspawn.TB, name string, build func(dir string) System) System {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, ok := l.systems[name]; ok {
		return s
	}
	dir := filepath.Join(l.Dir(), name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatalf("%v", err)
	}
	l.systems[name] = build(dir)
	return l.systems[name]
}

// commit returns that of all systems: with the project, and with an initramfs that has its module.
func (l *Lab) commit(t nspawn.TB) string {
	t.Helper()
	if l.made == "" {
		l.made = l.WithInitramfs(t, l.WithProduct(t, l.Base(t, nspawn.Trixie, nspawn.Bootable)))
	}
	return l.made
}

// OSTreeDisk returns a disk with a system that OSTree has deployed.
func (l *Lab) OSTreeDisk(t nspawn.TB) System {
	t.Helper()
	return l.system(t, "ostree-disk", func(dir string) System {
		m := l.Machine(t, l.commit(t), nspawn.Options{})
		entry := m.BootEntry()
		s := System{
			lab:       l,
			disk:      filepath.Join(dir, "disk"),
			kernel:    filepath.Join(dir, "vmlinuz"),
			initramfs: filepath.Join(dir, "initramfs.img"),
			options:   "root=LABEL=root " + entry["options"],
		}
		must(t, "cp", filepath.Join(m.Sysroot(), "boot", entry["linux"]), s.kernel)
		must(t, "cp", filepath.Join(m.Sysroot(), "boot", entry["initrd"]), s.initramfs)
		makeDisk(t, s.disk, "root", m.Sysroot(), 1500)
		return s
	})
}

// LiveMedium returns a medium with a live system, as installers and live images have it: the root is a squashfs, and what is written to it stays in
// memory. The medium is below /run/initramfs/live there. What add writes to the directory that it gets is on the medium, too.
func (l *Lab) LiveMedium(t nspawn.TB, add func(dir string)) System {
	t.Helper()
	return l.system(t, "live-medium", func(dir string) System {
		tree := l.Checkout(t, l.commit(t))
		modules, err := filepath.Glob(filepath.Join(tree, "usr/lib/modules/*"))
		if err != nil || len(modules) != 1 {
			t.Fatalf("%d kernels in the tree (%v)", len(modules), err)
		}
		s := System{
			lab:       l,
			disk:      filepath.Join(dir, "medium"),
			kernel:    filepath.Join(dir, "vmlinuz"),
			initramfs: filepath.Join(dir, "initramfs.img"),
			options:   "root=live:LABEL=live rd.live.image rd.live.overlay.overlayfs=1",
		}
		must(t, "cp", filepath.Join(modules[0], "vmlinuz"), s.kernel)
		must(t, "cp", filepath.Join(modules[0], "initramfs.img"), s.initramfs)
		// No deployment, so nothing else puts the defaults there.
		must(t, "mv", filepath.Join(tree, "usr/etc"), filepath.Join(tree, "etc"))
		files := filepath.Join(dir, "files")
		must(t, "mkdir", "-p", filepath.Join(files, "LiveOS"))
		must(t, "mksquashfs", tree, filepath.Join(files, "LiveOS/squashfs.img"), "-quiet", "-no-progress", "-comp", "zstd", "-Xcompression-level", "1")
		add(files)
		makeDisk(t, s.disk, "live", files, 600)
		return s
	})
}

// makeDisk makes a filesystem with the files of a directory.
func makeDisk(t nspawn.TB, disk, label, dir string, megabytes int) {
	t.Helper()
	must(t, "mkfs.ext4", "-q", "-L", label, "-d", dir, disk, fmt.Sprintf("%dM", megabytes))
}

// must runs a program on the host, which must succeed.
func must(t nspawn.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
