package ostree

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// bootEntry is what is needed of a boot loader entry (the Boot Loader Specification's type 1).
type bootEntry struct {
	file    string
	version string
	options string
}

// bootLoaderDeployments returns the deployments that the boot loader knows, in boot order. The boot loader
// entries are the truth about which there are (sysroot_load_from_bootloader_configs in ostree-sysroot.c).
func (s *Sysroot) bootLoaderDeployments() ([]Deployment, error) {
	entries, err := s.bootEntries()
	if err != nil {
		return nil, err
	}
	var deployments []Deployment
	for _, entry := range entries {
		d, err := s.bootEntryDeployment(entry)
		if err != nil {
			return nil, fmt.Errorf("boot loader entry %s: %w", entry.file, err)
		}
		deployments = append(deployments, d)
	}
	return deployments, nil
}

// bootEntries reads libostree's entries, sorted by version, the highest first, as the boot loader does.
// /boot/loader is a link to loader.0 or loader.1, by whose replacement libostree switches from one set of
// entries to the next. Where that is on a
// file system without links, a libostree that supports it (no release up to 2026.4 does) makes it a directory: that is what the boot loader reads.
func (s *Sysroot) bootEntries() ([]bootEntry, error) {
	loader, err := os.Readlink(filepath.Join(s.root, "boot/loader"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		loader = "loader.0"
	case errors.Is(err, unix.EINVAL):
		loader = "loader"
	case err != nil:
		return nil, err
	case loader != "loader.0" && loader != "loader.1":
		return nil, fmt.Errorf("%s is a link to %q, not to loader.0 or loader.1", filepath.Join(s.root, "boot/loader"), loader)
	}
	dir := filepath.Join(s.root, "boot", loader, "entries")
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var entries []bootEntry
	for _, file := range files {
		if name := file.Name(); strings.HasPrefix(name, "ostree-") && strings.HasSuffix(name, ".conf") {
			entry, err := readBootEntry(filepath.Join(dir, name))
			if err != nil {
				return nil, err
			}
			entries = append(entries, entry)
		}
	}
	slices.SortStableFunc(entries, compareBootEntries)
	return entries, nil
}

func readBootEntry(path string) (bootEntry, error) {
	data, err := readFileAt(unix.AT_FDCWD, path, maxConfig)
	if err != nil {
		return bootEntry{}, fmt.Errorf("boot loader entry %s: %w", path, err)
	}
	entry := parseBootEntry(data)
	entry.file = path
	return entry, nil
}

// parseBootEntry follows ostree_bootconfig_parser_parse_at: a key, one space or tab, a value.
func parseBootEntry(data []byte) (entry bootEntry) {
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		i := strings.IndexAny(line, " \t")
		if i < 0 {
			continue
		}
		switch value := line[i+1:]; line[:i] {
		case "version":
			entry.version = value
		case "options":
			entry.options = value
		}
	}
	return entry
}

// compareBootEntries is compare_boot_loader_configs: the higher version first, those without one last.
func compareBootEntries(a, b bootEntry) int {
	if a.version == "" || b.version == "" {
		return -cmp.Compare(len(a.version), len(b.version))
	}
	return -compareVersions(a.version, b.version)
}

// compareVersions is strverscmp(3), but for leading zeros, which no version of libostree writes: runs of
// digits count as numbers.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		numberA, restA := cutDigits(a)
		numberB, restB := cutDigits(b)
		if numberA != "" && numberB != "" {
			if c := cmp.Or(cmp.Compare(len(numberA), len(numberB)), cmp.Compare(numberA, numberB)); c != 0 {
				return c
			}
			a, b = restA, restB
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

func cutDigits(s string) (digits, rest string) {
	rest = strings.TrimLeft(s, "0123456789")
	return s[:len(s)-len(rest)], rest
}

// bootEntryDeployment finds the deployment that an entry boots: its options have
// ostree=/ostree/boot.N/<os>/<bootcsum>/<serial>, a link to the deployment's directory.
func (s *Sysroot) bootEntryDeployment(entry bootEntry) (Deployment, error) {
	link, err := bootLink(entry.options)
	if err != nil {
		return Deployment{}, err
	}
	target, err := os.Readlink(filepath.Join(s.root, link))
	if err != nil {
		return Deployment{}, err
	}
	return s.readDeployment(strings.Split(link, "/")[3], filepath.Base(target))
}

// bootLink returns the value of the first ostree= in a kernel command line. Its form is that of
// _ostree_sysroot_parse_bootlink.
func bootLink(options string) (string, error) {
	for option := range strings.SplitSeq(options, " ") {
		link, ok := strings.CutPrefix(option, "ostree=")
		if !ok {
			continue
		}
		parts := strings.Split(link, "/")
		if len(parts) != 6 || parts[0] != "" || parts[1] != "ostree" || parts[2] != "boot.0" && parts[2] != "boot.1" {
			return "", fmt.Errorf("ostree=%s is not of the form /ostree/boot.VERSION/OS/BOOTCSUM/SERIAL", link)
		}
		for _, name := range parts[3:] {
			if err := checkName(name); err != nil {
				return "", fmt.Errorf("ostree=%s: %w", link, err)
			}
		}
		return link, nil
	}
	return "", errors.New("its options have no ostree=")
}
