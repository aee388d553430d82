package ostree

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/liveapply/liveapply/internal/gvariant"
	"golang.org/x/sys/unix"
)

// Deployment is one bootable tree of a sysroot.
type Deployment struct {
	OSName  string
	Commit  Checksum
	Serial  int    // tells deployments of one commit apart
	Booted  bool   // the machine runs from it
	Staged  bool   // not in the boot loader yet: libostree finalizes it at shutdown
	Locked  bool   // staged, but not to be finalized (ostree admin lock-finalization)
	Pending bool   // the first of the booted OS, and not booted: the next boot leads to it
	Pinned  bool   // not removed by a cleanup (ostree admin pin)
	Origin  string // the refspec that it follows, "" if its origin names none
}

// ID returns the deployid, "<commit>.<serial>".
func (d Deployment) ID() string { return d.Commit.String() + "." + strconv.Itoa(d.Serial) }

// Path returns the deployment's directory, relative to the sysroot's root.
func (d Deployment) Path() string {
	return filepath.Join("ostree/deploy", d.OSName, "deploy", d.ID())
}

// BackingPath returns the directory for data that belongs to the deployment and goes when libostree deletes
// it, relative to the sysroot's root (made by libostree 2024.1 and later).
func (d Deployment) BackingPath() string {
	return filepath.Join("ostree/deploy", d.OSName, "backing", d.ID())
}

// parseDeployID parses a deployid (_ostree_sysroot_parse_deploy_path_name).
func parseDeployID(name string) (Checksum, int, error) {
	digits, number, ok := strings.Cut(name, ".")
	commit, err := ParseChecksum(digits)
	if err != nil || !ok {
		return Checksum{}, 0, fmt.Errorf("%q is not a deployment's name, <commit>.<serial>", name)
	}
	serial, err := parseSerial(number)
	if err != nil {
		return Checksum{}, 0, fmt.Errorf("%q is not a deployment's name, <commit>.<serial>: %w", name, err)
	}
	return commit, serial, nil
}

// parseSerial takes decimal digits only.
func parseSerial(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err
}

// readDeployment completes a deployment by its origin. Its directory must exist.
func (s *Sysroot) readDeployment(osname, name string) (Deployment, error) {
	if err := checkName(osname); err != nil {
		return Deployment{}, fmt.Errorf("name of the OS: %w", err)
	}
	commit, serial, err := parseDeployID(name)
	if err != nil {
		return Deployment{}, err
	}
	d := Deployment{OSName: osname, Commit: commit, Serial: serial}
	if _, err := s.identity(d.Path()); err != nil {
		return Deployment{}, err
	}
	origin, err := s.readOrigin(d)
	if err != nil {
		return Deployment{}, err
	}
	d.Origin = origin.get("origin", "refspec")
	d.Pinned = origin.get("libostree-transient", "pinned") == "true"
	return d, nil
}

// readOrigin reads the origin of a deployment, which may lack one.
func (s *Sysroot) readOrigin(d Deployment) (keyfile, error) {
	path := filepath.Join(s.root, d.Path()+".origin")
	data, err := readFileAt(unix.AT_FDCWD, path, maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	origin, err := parseKeyfile(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return origin, nil
}

// readStaged reads the staged deployment: a GVariant a{sv} in which "target" is an a{sv}, too, with "name"
// (the deployid) and "osname"; "locked" is true when it is not to be finalized
// (_ostree_sysroot_reload_staged).
func (s *Sysroot) readStaged() (Deployment, bool, error) {
	data, err := readFileAt(unix.AT_FDCWD, filepath.Join(s.root, stagedPath), maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return Deployment{}, false, nil
	}
	if err != nil {
		return Deployment{}, false, err
	}
	d, ok, err := s.parseStaged(data)
	if err != nil {
		return Deployment{}, false, fmt.Errorf("staged deployment in /%s: %w", stagedPath, err)
	}
	if !ok || d.Locked {
		return d, ok, nil
	}
	d.Locked, err = s.exists(stagedLockedPath)
	return d, true, err
}

func (s *Sysroot) parseStaged(data []byte) (Deployment, bool, error) {
	staged, err := gvariant.New("a{sv}", data)
	if err != nil {
		return Deployment{}, false, err
	}
	target, ok, err := staged.Lookup("target")
	if err != nil || !ok {
		return Deployment{}, false, err
	}
	name, err := lookupText(target, "name")
	if err != nil {
		return Deployment{}, false, err
	}
	osname, err := lookupText(target, "osname")
	if err != nil {
		return Deployment{}, false, err
	}
	d, err := s.readDeployment(osname, name)
	if err != nil {
		return Deployment{}, false, err
	}
	d.Staged = true
	if locked, ok, err := staged.Lookup("locked"); err != nil {
		return Deployment{}, false, err
	} else if ok {
		d.Locked, err = locked.Bool()
		return d, true, err
	}
	return d, true, nil
}

// StagedKernelArgs returns the kernel arguments that the staged deployment was given; nil if it gets those of the booted one.
func (s *Sysroot) StagedKernelArgs() ([]string, error) {
	data, err := readFileAt(unix.AT_FDCWD, filepath.Join(s.root, stagedPath), maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	args, err := parseStagedKernelArgs(data)
	if err != nil {
		return nil, fmt.Errorf("kernel arguments of the staged deployment in /%s: %w", stagedPath, err)
	}
	return args, nil
}

func parseStagedKernelArgs(data []byte) ([]string, error) {
	staged, err := gvariant.New("a{sv}", data)
	if err != nil {
		return nil, err
	}
	list, ok, err := staged.Lookup("kargs")
	if err != nil || !ok {
		return nil, err
	}
	return list.Texts()
}

// WithoutTransientState returns the content of an origin file without what counts for that deployment alone, such as that it is pinned. It mirrors
// ostree_deployment_origin_remove_transient_state.
func WithoutTransientState(origin string) string {
	var kept strings.Builder
	group := ""
	for line := range strings.Lines(origin) {
		text := strings.TrimSpace(line)
		if strings.HasPrefix(text, "[") {
			group = text
		}
		key, _, _ := strings.Cut(text, "=")
		key = strings.TrimSpace(key)
		if group == "[libostree-transient]" || group == "[origin]" && (key == "override-commit" || key == "unlocked") {
			continue
		}
		kept.WriteString(line)
	}
	return kept.String()
}

func lookupText(dict gvariant.Value, key string) (string, error) {
	value, ok, err := dict.Lookup(key)
	if err != nil {
		return "", err
	}
	if !ok {
		return "", fmt.Errorf("it has no %q", key)
	}
	return value.Text()
}
