package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// result is what one run of a program gave.
type result struct {
	figures map[string]float64 // what it printed, and what measure reported: name to seconds, count, or KiB
	output  inventory
}

// usr measures how long it takes until /usr shows another commit.
func (b *bench) usr(updates []update) section {
	s := section{title: "/usr: COMPARE, BUILD, SHOW"}
	for _, u := range updates {
		s.groups = append(s.groups, b.update(u))
	}
	return s
}

// way is one of those that are compared. Its output is the directory in its work directory that holds what it made.
type way struct {
	name    string
	output  string
	command func(work string) []string
	results []result
}

// steps are the figures that a way may print, apart from its total.
var steps = []string{"diff", "build", "mount"}

func (b *bench) update(u update) group {
	b.Logf("/usr: %s", u.name)
	dir, err := os.MkdirTemp(b.work, "usr-")
	b.check(err)
	booted, list := filepath.Join(dir, "booted"), filepath.Join(dir, "list")
	b.command("ostree", "--repo="+u.repo, "checkout", "--subpath=/usr", "--require-hardlinks", u.old, booted)
	entries := b.command(b.program("liveapply-way"), "list", u.repo, u.old, u.new)
	b.check(os.WriteFile(list, []byte(entries), 0o600))

	ways := []*way{
		{name: "a libostree", output: "upper", command: func(work string) []string {
			return []string{b.program("libostree-way"), u.repo, u.old, u.new, booted, work}
		}},
		{name: "b liveapply", output: "layer", command: func(work string) []string {
			return []string{b.program("liveapply-way"), "apply", u.repo, u.old, u.new, booted, work}
		}},
		{name: "c floor", output: "layer", command: func(work string) []string {
			return []string{b.program("floor"), list, u.repo, booted, work}
		}},
	}
	var runs []func(bool)
	for _, w := range ways {
		runs = append(runs, func(counted bool) {
			if r := b.runWay(w, dir); counted {
				w.results = append(w.results, r)
			}
		})
	}
	b.inTurn(runs)
	return b.compareWays(u, strings.Count(entries, "\x00"), ways)
}

// runWay runs a way once, in a mount namespace and a directory of its own, when nothing is left to be written to the disk. What it
// makes stays until all is measured: for some minutes ext4 avoids inodes that were just freed (recently_deleted() in
// fs/ext4/ialloc.c), and looking for others takes many times as long as making a file or directory.
func (b *bench) runWay(w *way, dir string) result {
	work, err := os.MkdirTemp(dir, "run-")
	b.check(err)
	unix.Sync()
	r := b.measured(&syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}, w.command(work)...)
	r.output, err = takeInventory(filepath.Join(work, w.output))
	b.check(err)
	return r
}

// compareWays makes the rows of an update. All ways must have made the same number of files.
func (b *bench) compareWays(u update, entries int, ways []*way) group {
	g := group{name: fmt.Sprintf("%s: %d entries in the layer", u.name, entries)}
	for _, w := range ways {
		first := w.results[0].output
		if first.files != ways[0].results[0].output.files {
			b.Fatalf("%s: %s made %d files, %s %d", u.name, w.name, first.files, ways[0].name, ways[0].results[0].output.files)
		}
		g.rows = append(g.rows, row{
			name: w.name + w.medians(), time: w.figure("total"), data: first.data, peak: w.figure("peak"),
		})
	}
	libostree, ours, floor := ways[0], ways[1], ways[2]
	built := ours.figure("build").plus(ours.figure("mount"))
	data := float64(ours.results[0].output.data)
	g.comparisons = []comparison{
		{name: "b / a", value: ours.median() / libostree.median(), held: notHeld},
		{name: "b / c", value: ours.median() / floor.median(), held: notHeld},
		{name: "b's build and mount / c", value: built.median() / floor.median(), held: notHeld},
		{name: "file data written by b", value: data, unit: " bytes", held: atMost},
	}
	if u.isLarge {
		g.comparisons[0].held, g.comparisons[0].limit = atMost, 0.1
		g.comparisons[2].held, g.comparisons[2].limit = atMost, 1.6
	}
	return g
}

func (w *way) figure(name string) samples {
	var s samples
	for _, r := range w.results {
		s = append(s, r.figures[name])
	}
	return s
}

// median is that of the whole time.
func (w *way) median() float64 { return w.figure("total").median() }

// medians are those of the parts.
func (w *way) medians() string {
	var texts []string
	for _, step := range steps {
		if _, ok := w.results[0].figures[step]; ok {
			texts = append(texts, step+" "+duration(w.figure(step).median()))
		}
	}
	return " (" + strings.Join(texts, ", ") + ")"
}

// program is the path of one that test/bench/run has built.
func (b *bench) program(name string) string { return filepath.Join(b.bin, name) }

// measured runs a program under measure, and returns the figures of both.
func (b *bench) measured(attributes *syscall.SysProcAttr, argv ...string) result {
	report := filepath.Join(b.work, "report")
	cmd := exec.Command(b.program("measure"), append([]string{report}, argv...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = &stdout, &stderr, attributes
	if err := cmd.Run(); err != nil {
		b.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, stderr.Bytes())
	}
	figures := parseFigures(stdout.String())
	maps.Copy(figures, parseFigures(readFile(b.session, report)))
	return result{figures: figures}
}

func readFile(s *session, path string) string {
	content, err := os.ReadFile(path)
	s.check(err)
	return string(content)
}

// parseFigures reads lines of a name and a number; others say nothing.
func parseFigures(text string) map[string]float64 {
	figures := map[string]float64{}
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) == 2 {
			if value, err := strconv.ParseFloat(fields[1], 64); err == nil {
				figures[fields[0]] = value
			}
		}
	}
	return figures
}

// inventory is what is in a layer.
type inventory struct {
	files int   // regular files and symbolic links
	data  int64 // bytes in regular files that are no links to an object of the repo
}

// takeInventory counts what is in a directory. A link to an object has two names at least, and a copy has one.
func takeInventory(dir string) (inventory, error) {
	var inv inventory
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", path, err)
		}
		kind := st.Mode & unix.S_IFMT
		if slices.Contains([]uint32{unix.S_IFREG, unix.S_IFLNK}, kind) {
			inv.files++
		}
		if kind == unix.S_IFREG && st.Nlink == 1 {
			inv.data += st.Size
		}
		return nil
	})
	return inv, err
}
