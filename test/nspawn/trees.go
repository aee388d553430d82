package nspawn

import (
	"crypto/sha256"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Suite is a Debian release.
type Suite string

// The releases that the tests boot.
const (
	Trixie   Suite = "trixie"   // systemd 257, libostree 2025.2
	Bookworm Suite = "bookworm" // systemd 252, libostree 2022.7
)

// Image is a choice of packages: a copy of the image before it in its series, with more packages installed.
type Image struct {
	name     string
	packages []string
	made     time.Time // commit time
}

// The images of every suite.
var (
	// Minimal has systemd, D-Bus, OSTree and what a test needs inside.
	Minimal = Image{name: "minimal", made: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	// Servers adds nginx and PostgreSQL.
	Servers = Image{"servers", []string{"nginx", "postgresql"}, Minimal.made.Add(time.Hour)}
	// Full adds Python and git.
	Full = Image{"full", []string{"python3", "git"}, Servers.made.Add(time.Hour)}
	// Polkit adds polkit and gdbus to Minimal.
	Polkit = Image{"polkit", []string{"polkitd", "libglib2.0-bin"}, Minimal.made.Add(time.Hour)}
	// Needrestart adds needrestart, which finds what runs on old files in its own way, and services to find, to Minimal.
	Needrestart = Image{"needrestart", []string{"needrestart", "nginx", "python3"}, Minimal.made.Add(time.Hour)}
	// Bootable adds a kernel, dracut and what the host talks to, for a virtual machine, to Minimal. It has no initramfs: see [Lab.WithInitramfs].
	Bootable = Image{"bootable", []string{"linux-image-cloud-amd64", "dracut", "dracut-network", "dracut-live", "dmsetup", "zstd", "qemu-guest-agent"}, Minimal.made.Add(time.Hour)}
)

// series are images that build on one another, in this order, and are built and kept together.
type series struct {
	suffix string // of the suite, in the names of the refs
	images []Image
}

var allSeries = []series{
	{"", []Image{Minimal, Servers, Full}},
	{"-polkit", []Image{Minimal, Polkit}},
	{"-needrestart", []Image{Minimal, Needrestart}},
	{"-bootable", []Image{Minimal, Bootable}},
}

// seriesOf returns the first series that has an image.
func seriesOf(image Image) series {
	i := slices.IndexFunc(allSeries, func(s series) bool {
		return slices.ContainsFunc(s.images, func(other Image) bool { return other.name == image.name })
	})
	return allSeries[i]
}

// Base returns the commit of an image, without the project. The first use of a suite builds all images of the
// series; this takes about a minute, and the result stays in the cache until the recipe changes.
func (l *Lab) Base(t TB, suite Suite, image Image) string {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	name := string(suite) + "/" + image.name
	if commit, ok := l.bases[name]; ok {
		return commit
	}
	prefix, err := l.buildSeries(suite, seriesOf(image))
	if err != nil {
		t.Fatalf("build the images of %s: %v", suite, err)
	}
	must(t, "ostree", "--repo="+l.repo(), "pull-local", l.cacheRepo(), prefix+image.name)
	commit := must(t, "ostree", "--repo="+l.repo(), "rev-parse", prefix+image.name)
	l.times.Store(commit, image.made)
	l.bases[name] = commit
	return commit
}

// buildSeries returns the beginning of the refs under which the images are in the cache's repo. A ref is
// the last thing that is written, so an interrupted build is done again.
func (l *Lab) buildSeries(suite Suite, series series) (string, error) {
	kernel, err := kernelRelease()
	if err != nil {
		return "", err
	}
	recipe, err := os.ReadFile(l.script("build-tree"))
	if err != nil {
		return "", err
	}
	shapes := []any{kernel}
	for _, image := range series.images {
		shapes = append(shapes, image)
	}
	key := sha256.Sum256(fmt.Append(recipe, shapes...))
	name := string(suite) + series.suffix
	prefix := fmt.Sprintf("%s/%x/", name, key[:6])

	first, more := series.images[0], series.images[1:]
	if _, err := command("ostree", "--repo="+l.cacheRepo(), "rev-parse", prefix+more[len(more)-1].name); err == nil {
		return prefix, nil
	}
	dir := filepath.Join(l.run, "build-"+name)
	defer os.RemoveAll(dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	log.Printf("building the images of Debian %s from packages (once; kept in %s)", name, l.cache)
	last := filepath.Join(dir, first.name)
	if err := l.buildTree("bootstrap", string(suite), last); err != nil {
		return "", err
	}
	for _, image := range more {
		tree := filepath.Join(dir, image.name)
		if _, err := command("cp", "-a", last, tree); err != nil {
			return "", err
		}
		if err := l.buildTree("install", append([]string{tree}, image.packages...)...); err != nil {
			return "", err
		}
		last = tree
	}
	for _, image := range series.images {
		tree := filepath.Join(dir, image.name)
		if err := l.buildTree("convert", tree, kernel); err != nil {
			return "", err
		}
		if _, err := command("ostree", "--repo="+l.cacheRepo(), "commit", "--branch="+prefix+image.name,
			"--subject=Debian "+string(suite)+", "+image.name,
			timestamp(image.made), "--tree=dir="+tree); err != nil {
			return "", err
		}
	}
	return prefix, l.dropOldImages(name, prefix)
}

// dropOldImages removes the images of a series that an older recipe made.
func (l *Lab) dropOldImages(name, prefix string) error {
	refs, err := command("ostree", "--repo="+l.cacheRepo(), "refs", "--list", name)
	if err != nil {
		return err
	}
	for _, ref := range strings.Fields(refs) {
		if !strings.HasPrefix(ref, prefix) {
			if _, err := command("ostree", "--repo="+l.cacheRepo(), "refs", "--delete", ref); err != nil {
				return err
			}
		}
	}
	_, err = command("ostree", "--repo="+l.cacheRepo(), "prune", "--refs-only")
	return err
}

// buildTree runs one step of the script build-tree, in a mount namespace that takes the mounts of an
// interrupted step with it. What it prints is shown only if it fails.
func (l *Lab) buildTree(step string, args ...string) error {
	log.Printf("  %s %s", step, args[0])
	cmd := exec.Command("unshare", append([]string{"--mount", "--propagation=private", "--",
		l.script("build-tree"), step}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build-tree %s %v: %w\n%s", step, args, err, out)
	}
	return nil
}

func timestamp(t time.Time) string {
	return fmt.Sprintf("--timestamp=@%d", t.Unix())
}

// kernelRelease is that of the running kernel: the images carry its modules' directory, as the image of a
// real machine does.
func kernelRelease() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}
