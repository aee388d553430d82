package stale

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/treediff"
)

// lab is a /usr of a test's own, on which real processes run.
type lab struct {
	t   testing.TB
	usr string
}

func newLab(t testing.TB) lab {
	usr, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return lab{t, usr}
}

// put puts a copy of a program, or of its content with something added, to a path, as another file.
func (l lab) put(path, program, added string) string {
	l.t.Helper()
	content, err := os.ReadFile(program)
	if err != nil {
		l.t.Fatal(err)
	}
	to := filepath.Join(l.usr, path)
	for _, do := range []func() error{
		func() error { return os.MkdirAll(filepath.Dir(to), 0o755) },
		func() error { return os.WriteFile(to+".new", append(content, added...), 0o755) },
		func() error { return os.Rename(to+".new", to) },
	} {
		if err := do(); err != nil {
			l.t.Fatal(err)
		}
	}
	return to
}

// start runs a program until the test ends, and waits until it is that program.
func (l lab) start(name string, args ...string) int {
	l.t.Helper()
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	// Start waits until execve(2) has closed the descriptors, which is before the program is mapped.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", cmd.Process.Pid))
		if err != nil || time.Now().After(deadline) {
			l.t.Fatalf("%s does not run: %v\n%s", name, err, maps)
		}
		if strings.Contains(string(maps), name) {
			return cmd.Process.Pid
		}
	}
}

// startScript starts a script that says something when it runs, and ends when its input does.
func (l lab) startScript(path string) (pid int) {
	l.t.Helper()
	cmd := exec.Command(path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		l.t.Fatal(err)
	}
	return cmd.Process.Pid
}

func (l lab) system() System { return System{Proc: "/proc", Usr: l.usr, Trees: Trees(l.t.TempDir())} }

// scan returns what is wrong with the processes that run on the lab's files.
func (l lab) scan() map[int][]File {
	l.t.Helper()
	found, err := l.system().Scan(context.Background())
	if err != nil {
		l.t.Fatal(err)
	}
	files := map[int][]File{}
	for _, process := range found.Processes {
		if process.Name == "" || process.Cgroup == "" {
			l.t.Errorf("%+v has no name or cgroup", process)
		}
		files[process.PID] = process.Files
	}
	return files
}

func (l lab) requireFound(when string, want map[int][]File) {
	l.t.Helper()
	if diff := cmp.Diff(want, l.scan()); diff != "" {
		l.t.Errorf("%s (-want +got):\n%s", when, diff)
	}
}

func TestFindsProcessesWhoseFileIsAnotherNow(t *testing.T) {
	l := newLab(t)
	one, two, three := l.put("bin/one", "/bin/sleep", ""), l.put("bin/two", "/bin/sleep", ""), l.put("bin/three (deleted)", "/bin/sleep", "")
	first, second, third := l.start(one, "1000"), l.start(two, "1000"), l.start(three, "1000")
	l.requireFound("nothing has changed", map[int][]File{})

	l.put("bin/one", "/bin/sleep", "")
	l.requireFound("a copy of the same content", map[int][]File{})

	l.put("bin/one", "/bin/sleep", "x")
	if err := os.Remove(two); err != nil {
		t.Fatal(err)
	}
	l.requireFound("replaced and removed", map[int][]File{first: {{one, Replaced}}, second: {{two, Deleted}}})

	l.put("bin/three (deleted)", "/bin/sleep", "x")
	if _, found := l.scan()[third]; !found {
		t.Error("a file with a name like that of a deleted one was not found to be replaced")
	}
	l.requireGone(func() { l.put("bin/one", "/bin/sleep", "") }, first)
}

// requireGone: what does makes the process run on what is there again.
func (l lab) requireGone(do func(), pid int) {
	l.t.Helper()
	do()
	if files, found := l.scan()[pid]; found {
		l.t.Errorf("process %d still runs on %v", pid, files)
	}
}

func TestFindsScriptsThatAreOpen(t *testing.T) {
	l := newLab(t)
	script := filepath.Join(l.usr, "script")
	write := func(content string) {
		if err := os.WriteFile(script+".new", []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(script+".new", script); err != nil {
			t.Fatal(err)
		}
	}
	const content = "#!/bin/bash\necho ready\nread\nexit\n"
	write(content)
	pid := l.startScript(script)
	l.requireFound("unchanged", map[int][]File{})
	write(content + "# changed\n")
	l.requireFound("changed", map[int][]File{pid: {{script, Script}}})
	write(content)
	l.requireFound("changed back", map[int][]File{})
}

func TestRemembersWhatTreesHad(t *testing.T) {
	trees := Trees(filepath.Join(t.TempDir(), "trees"))
	a, b, c := ostree.Checksum{1}, ostree.Checksum{2}, ostree.Checksum{3}
	file := func(n byte) ostree.Entry { return ostree.Entry{Kind: ostree.KindFile, Checksum: ostree.Checksum{n}} }
	describe := func(commit ostree.Checksum, changes ...treediff.Change) {
		t.Helper()
		if err := trees.Describe(commit, changes); err != nil {
			t.Fatal(err)
		}
	}
	shows := func(usr string, commit ostree.Checksum) {
		t.Helper()
		if err := trees.Shows(usr, commit); err != nil {
			t.Fatal(err)
		}
	}
	usr := t.TempDir()
	describe(a)
	shows(usr, a)
	describe(b, treediff.Change{Path: "bin/x y", Old: file(1), New: file(2)}, treediff.Change{Path: "bin/gone", Old: file(3)})
	describe(c, treediff.Change{Path: "bin/x y", Old: file(1), New: file(2)})
	l := lists{trees: trees, loaded: map[string]map[string]string{}}
	for _, test := range []struct {
		one, other ostree.Checksum
		path       string
		want       bool
	}{
		{a, b, "bin/x y", true}, {b, a, "bin/x y", true}, {b, c, "bin/x y", false}, {b, c, "bin/gone", true}, {a, c, "bin/gone", false},
		{a, b, "bin/other", false}, {a, ostree.Checksum{9}, "bin/x y", false},
	} {
		if got := l.differ(test.one.String(), test.other.String(), test.path); got != test.want {
			t.Errorf("%s of %v and %v differs: %v, want %v", test.path, test.one, test.other, got, test.want)
		}
	}
	links, err := trees.links()
	if err != nil {
		t.Fatal(err)
	}
	here, err := identify(-1, usr, 0)
	if err != nil {
		t.Fatal(err)
	}
	other := here
	other.ino++
	if links.commitOf(here.dev) != a.String() || links.commitAt(here) != a.String() || links.commitAt(other) != "" {
		t.Errorf("the links are %v", links)
	}
	if err := os.Mkdir(trees.path(".left"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("1:a", trees.path(".left/tmp.symlink")); err != nil {
		t.Fatal(err)
	}
	shows(usr, b) // the same device: a is no longer in use, and c was never shown
	entries, err := os.ReadDir(string(trees))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if want := []string{b.String(), deviceName(here.dev)}; !slices.Equal(slices.Sorted(slices.Values(want)), names) {
		t.Errorf("there are %q, want %q", names, want)
	}
}

func TestReadsCgroups(t *testing.T) {
	for lines, want := range map[string]string{
		"0::/system.slice/a.service\n":                            "/system.slice/a.service",
		"2:cpu:/\n1:name=systemd:/system.slice/a.service\n0::/\n": "/system.slice/a.service",
		"9:name=systemd:/\n1:cpu:/\n0::/system.slice/a.service\n": "/system.slice/a.service",
		"0::/system.slice/a:b.service\n":                          "/system.slice/a:b.service",
		"":                                                        "",
		"garbage\n0::/\n":                                         "/",
	} {
		if got := cgroupOf(lines); got != want {
			t.Errorf("%q: got %q, want %q", lines, got, want)
		}
	}
}

// As lines of kernels before 6.8 and after tell a file of an overlay.
func TestReadsLinesOfMaps(t *testing.T) {
	for line, want := range map[string]mapping{
		"55b4eaed5000-55b4eaed7000 r--p 00000000 07:04 796716                     /usr/bin/sleep":         {"07:04", "796716", "/usr/bin/sleep"},
		"563eb0477000-563eb0479000 r--p 00000000 00:39 5420                       /bin/a b":               {"00:39", "5420", "/bin/a b"},
		"563eb0477000-563eb0479000 r--p 00000000 00:39 5420                       /bin/a\\012b (deleted)": {"00:39", "5420", "/bin/a\nb (deleted)"},
	} {
		if got := newMapping(fileOf([]byte(line))); got != want {
			t.Errorf("%q: got %+v", line, got)
		}
	}
	for _, line := range []string{"7ffd0000-7ffd1000 rw-p 00000000 00:00 0                          [stack]", "7ffd0000-7ffd1000 rw-p 00000000 00:00 0 ", ""} {
		if file := fileOf([]byte(line)); file != nil {
			t.Errorf("%q is of the file %q", line, file)
		}
	}
}

// BenchmarkScan compares looking at all processes, among them 1,000 that sleep, with only reading what they map, which is the least that
// it takes. The time of the processor is what counts: more than one of them work.
func BenchmarkScan(b *testing.B) {
	l := newLab(b)
	for i := range 20 {
		program := l.put(fmt.Sprintf("bin/%d", i), "/bin/sleep", strconv.Itoa(i))
		for range 50 {
			l.start(program, "1000")
		}
	}
	scan := func() {
		if _, err := l.system().Scan(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	measure(b, "floor", l.readMaps)
	measure(b, "nothing is old", scan)
	for i := range 20 {
		l.put(fmt.Sprintf("bin/%d", i), "/bin/sleep", "changed")
	}
	measure(b, "all are old", scan)
}

// readMaps reads what all processes map.
func (l lab) readMaps() {
	pids, err := l.system().processes()
	if err != nil {
		l.t.Fatal(err)
	}
	reader := newReader()
	for _, pid := range pids {
		reader.read(fmt.Sprintf("/proc/%d/maps", pid)) // some end, or may not be read
	}
}

// measure also reports the time of the processor.
func measure(b *testing.B, name string, do func()) {
	b.Run(name, func(b *testing.B) {
		before := processorTime(b)
		for b.Loop() {
			do()
		}
		b.ReportMetric(float64(processorTime(b)-before)/float64(b.N), "cpu-ns/op")
	})
}

func processorTime(b *testing.B) int64 {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}
