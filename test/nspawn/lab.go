package nspawn

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// TB is the part of testing.TB that the harness uses, so that it serves a demonstration, too.
type TB interface {
	Helper()
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Failed() bool
	Cleanup(func())
}

// defaultCache is where base trees are kept; the environment variable LIVEAPPLY_TEST_CACHE names another
// directory. It must be able to hold whiteouts, trusted xattrs and hard links (any usual disk filesystem).
const defaultCache = "/var/cache/liveapply-test"

// Lab is what the tests of one run share. Its layout on disk:
//
//	<cache>/lock      held while a Lab is open: machines of two runs do not mix
//	<cache>/repo      base trees, as OSTree commits; only ever added to
//	<cache>/run/      everything of this run; removed when the next one begins
//
// All of it is on one filesystem, so commits travel from the cache to a machine as hard links. [Lab.Close]
// therefore checks that nothing wrote through them.
type Lab struct {
	cache, run string
	source     string // the project's root, where go.mod is
	cgroups    string // a mount point of cgroup2
	lock       *os.File

	mu       sync.Mutex
	machines int
	bases    map[string]string // suite and image → commit in the repo of this run
	products map[string]string // commit → the same commit with the project installed
	destdir  string            // what meson installed, once it did

	times sync.Map // commit → time.Time, of every commit in the repo of this run
}

// RunAll runs the tests of a package (*testing.M), which share what open makes, and returns the exit status.
func RunAll[L io.Closer](tests interface{ Run() int }, open func() (L, error), shared *L) int {
	var err error
	if *shared, err = open(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	status := tests.Run()
	if err := (*shared).Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status
}

// Open prepares a run: it waits for another run to end, and removes what an earlier one left behind when
// it was killed.
func Open() (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the tests on real machines need root: run them with sudo test/run")
	}
	source, err := projectRoot()
	if err != nil {
		return nil, err
	}
	cgroups, err := cgroup2Mount()
	if err != nil {
		return nil, err
	}
	cache := os.Getenv("LIVEAPPLY_TEST_CACHE")
	if cache == "" {
		cache = defaultCache
	}
	l := &Lab{
		cache: cache, run: filepath.Join(cache, "run"),
		source: source, cgroups: cgroups,
		bases:    map[string]string{},
		products: map[string]string{},
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("cache of the tests: %w", err)
	}
	if err := l.takeLock(); err != nil {
		return nil, err
	}
	if err := l.removeLeftovers(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(l.run, 0o700); err != nil {
		return nil, fmt.Errorf("files of the tests: %w", err)
	}
	for _, repo := range []string{l.cacheRepo(), l.repo()} {
		if _, err := command("ostree", "--repo="+repo, "init", "--mode=bare"); err != nil {
			return nil, err
		}
		// A test may be killed, but the machine under it does not crash.
		if _, err := command("ostree", "--repo="+repo, "config", "set", "core.fsync", "false"); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// Close removes what this run made, and reports an error if a base tree in the cache is damaged: then a
// machine wrote into a file that it shares with the repo. The damaged cache is removed.
func (l *Lab) Close() error {
	defer l.lock.Close()
	if err := l.removeLeftovers(); err != nil {
		return err
	}
	if _, err := command("ostree", "--repo="+l.cacheRepo(), "fsck", "--quiet"); err != nil {
		return errors.Join(
			fmt.Errorf("a machine changed an object of the repo through a hard link: %w", err),
			os.RemoveAll(l.cacheRepo()))
	}
	return nil
}

// Dir is for files of this run. It is removed when the run ends.
func (l *Lab) Dir() string { return l.run }

func (l *Lab) cacheRepo() string { return filepath.Join(l.cache, "repo") }
func (l *Lab) repo() string      { return filepath.Join(l.run, "repo") }

// prefix begins the names of the machines and of their cgroups. Labs with other caches, which may run at the same time, have
// others.
func (l *Lab) prefix() string {
	return fmt.Sprintf("liveapply-test-%08x-", crc32.ChecksumIEEE([]byte(l.cache)))
}

// script is the path of one of the shell scripts beside this file.
func (l *Lab) script(name string) string {
	return filepath.Join(l.source, "test", "nspawn", name)
}

func (l *Lab) takeLock() error {
	var err error
	if l.lock, err = os.OpenFile(filepath.Join(l.cache, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return fmt.Errorf("lock of the tests: %w", err)
	}
	if unix.Flock(int(l.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return nil
	}
	log.Printf("waiting for another run that uses %s", l.cache)
	if err := unix.Flock(int(l.lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", l.lock.Name(), err)
	}
	return nil
}

// removeLeftovers ends the machines of an earlier run, which takes their mounts with them, and removes
// its files.
func (l *Lab) removeLeftovers() error {
	groups, err := filepath.Glob(filepath.Join(l.cgroups, l.prefix()+"*"))
	if err != nil {
		return err
	}
	for _, group := range groups {
		if err := killCgroup(group); err != nil {
			return err
		}
	}
	machines, err := filepath.Glob(filepath.Join(l.run, l.prefix()+"*"))
	if err != nil {
		return err
	}
	for _, machine := range machines {
		if err := removeMachine(machine); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(l.run); err != nil {
		return fmt.Errorf("remove %s: %w", l.run, err)
	}
	return nil
}

// removeMachine is rm -rf for the directory of a machine: OSTree makes the roots of deployments immutable.
func removeMachine(dir string) error {
	roots, err := filepath.Glob(filepath.Join(dir, "sysroot/ostree/deploy/*/deploy/*.[0-9]*"))
	if err != nil {
		return err
	}
	for _, root := range roots {
		if info, err := os.Lstat(root); err == nil && info.IsDir() {
			if _, err := command("chattr", "-i", root); err != nil {
				return err
			}
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

func projectRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no go.mod above the working directory: run this inside the project")
}

// command runs a program on the host and returns what it wrote to standard output, without the final
// newline. The error carries all that it wrote.
func command(name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := runUnfreezing(cmd); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return strings.TrimSuffix(stdout.String(), "\n"), nil
}

// must is command for where a failure ends the test.
func must(t TB, name string, args ...string) string {
	t.Helper()
	out, err := command(name, args...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}
