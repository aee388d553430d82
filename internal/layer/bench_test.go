package layer

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/ostree/ostreetest"
	"github.com/liveapply/liveapply/internal/treediff"
	"golang.org/x/sys/unix"
)

// packages returns a repo and the changes of an update that adds some 12,000 entries, as nginx, PostgreSQL, Python and git do.
func packages(b *testing.B) (*ostree.Repo, []treediff.Change) {
	before, after := ostreetest.Spec{}, ostreetest.Spec{}
	for i := range 11000 {
		path := fmt.Sprintf("usr/share/package%d/part%d/file%d", i%9, i%900, i)
		after[path] = ostreetest.File(path)
	}
	for i := range 2000 {
		path := fmt.Sprintf("usr/lib/library%d/file%d", i%50, i)
		before[path] = ostreetest.File(path)
		if i%4 != 0 {
			after[path] = before[path]
		}
	}
	u := newUpdate(b, before, after)
	return u.repo, u.changes
}

func BenchmarkBuild(b *testing.B) {
	repo, changes := packages(b)
	dir := filepath.Join(repo.Path(), "layer")
	for b.Loop() {
		stats, err := Build(b.Context(), repo, changes, dir, &Progress{})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		b.ReportMetric(float64(stats.Links+stats.Directories+stats.Whiteouts), "entries")
		if err := beneath.Remove(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkFloor makes the same entries by bare system calls in one thread.
func BenchmarkFloor(b *testing.B) {
	repo, changes := packages(b)
	dir := filepath.Join(repo.Path(), "floor")
	for b.Loop() {
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			b.Fatal(err)
		}
		for _, change := range changes[1:] {
			switch {
			case change.New.Kind == ostree.KindDirectory:
				err = unix.Mkdirat(fd, change.Path, 0o755)
			case change.New.Kind == ostree.KindFile:
				err = unix.Linkat(repo.Fd(), repo.FilePath(change.New.Checksum), fd, change.Path, 0)
			default:
				err = unix.Mknodat(fd, change.Path, unix.S_IFCHR, 0)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		unix.Close(fd)
		b.StopTimer()
		if err := beneath.Remove(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
