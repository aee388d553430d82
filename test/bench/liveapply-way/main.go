// Command liveapply-way does what liveapply does with a commit's /usr, and only that, so that its time and its memory can be
// compared with those of others: libostree-way.c and floor.c beside it.
//
//	liveapply-way apply REPO OLD NEW BOOTED WORK   reads, diffs, builds the layer, switches WORK/usr to it; prints the seconds
//	liveapply-way diff REPO OLD NEW                reads and diffs; prints the changes, as ostree diff does, and the seconds
//	liveapply-way in BOOTED LAYERS WORK PROGRAM [ARGUMENT...]
//	                                               runs a program while WORK/usr shows LAYERS, separated by colons, above BOOTED; or BOOTED alone
//	liveapply-way list REPO OLD NEW                prints the entries of the layer for floor.c, in its format
//
// BOOTED is a checkout of OLD's /usr, WORK an empty directory on the repo's filesystem; both are absolute. OLD and NEW are full checksums.
// Run apply and in in a mount namespace of its own.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/layer"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/treediff"
	"github.com/liveapply/liveapply/internal/underlay"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "liveapply-way:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx := context.Background()
	switch {
	case len(args) == 6 && args[0] == "apply":
		return apply(ctx, args[1], args[2], args[3], args[4], args[5])
	case len(args) > 4 && args[0] == "in":
		return in(args[1], args[2], args[3], args[4:])
	case len(args) == 4 && args[0] == "diff":
		return printDiff(ctx, args[1], args[2], args[3], "", printChanges)
	case len(args) == 4 && args[0] == "list":
		return printDiff(ctx, args[1], args[2], args[3], "usr", printEntries)
	}
	return errors.New("usage: liveapply-way apply REPO OLD NEW BOOTED WORK | in BOOTED LAYERS WORK PROGRAM [ARGUMENT...] | diff REPO OLD NEW | list REPO OLD NEW")
}

// apply is prepare's and mount's work on /usr, in their order.
func apply(ctx context.Context, repoPath, old, new, booted, work string) error {
	usr := underlay.Usr{Path: filepath.Join(work, "usr"), Private: filepath.Join(work, "private")}
	if err := showBooted(booted, usr.Path); err != nil {
		return err
	}

	start := time.Now()
	repo, err := ostree.OpenRepo(repoPath)
	if err != nil {
		return err
	}
	defer repo.Close()
	changes, err := diff(ctx, repo, old, new, "usr")
	if err != nil {
		return err
	}
	compared := time.Now()
	dir := filepath.Join(work, "layer")
	stats, err := layer.Build(ctx, repo, changes, dir, &layer.Progress{})
	if err != nil {
		return err
	}
	built := time.Now()
	if _, err := usr.Switch(underlay.Stack{Source: underlay.Source{Live: new}, Layers: []string{dir}}); err != nil {
		return err
	}
	end := time.Now()

	fmt.Printf("total %.6f\ndiff %.6f\nbuild %.6f\nmount %.6f\n", end.Sub(start).Seconds(),
		compared.Sub(start).Seconds(), built.Sub(compared).Seconds(), end.Sub(built).Seconds())
	fmt.Printf("links %d\ndirectories %d\nwhiteouts %d\ncopies %d\n", stats.Links, stats.Directories, stats.Whiteouts, stats.Copies)
	return nil
}

// in becomes the program.
func in(booted, layers, work string, argv []string) error {
	usr := underlay.Usr{Path: filepath.Join(work, "usr"), Private: filepath.Join(work, "private")}
	if err := showBooted(booted, usr.Path); err != nil {
		return err
	}
	if layers != "" {
		if _, err := usr.Switch(underlay.Stack{Source: underlay.Source{Live: underlay.Base}, Layers: strings.Split(layers, ":")}); err != nil {
			return err
		}
	}
	return fmt.Errorf("exec %s: %w", argv[0], unix.Exec(argv[0], argv, os.Environ()))
}

// showBooted makes path what /usr is on a booted machine: a read-only mount.
func showBooted(booted, path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(booted, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", booted, path, err)
	}
	if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", path, err)
	}
	return nil
}

// diff reads both commits and compares their trees at path ("" for the whole), but for the running kernel's modules.
func diff(ctx context.Context, repo *ostree.Repo, old, new, path string) ([]treediff.Change, error) {
	oldTree, err := tree(repo, old, path)
	if err != nil {
		return nil, err
	}
	newTree, err := tree(repo, new, path)
	if err != nil {
		return nil, err
	}
	changes, err := treediff.Diff(ctx, repo, oldTree, newTree)
	if err != nil {
		return nil, err
	}
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		return nil, err
	}
	return layer.Keep(changes, filepath.Join("lib/modules", unix.ByteSliceToString(uname.Release[:])))
}

func tree(repo *ostree.Repo, rev, path string) (ostree.Tree, error) {
	checksum, err := ostree.ParseChecksum(rev)
	if err != nil {
		return ostree.Tree{}, err
	}
	commit, err := repo.Commit(checksum)
	if err != nil {
		return ostree.Tree{}, err
	}
	if path == "" {
		return commit.Root, nil
	}
	entry, err := repo.Lookup(commit.Root, path)
	return entry.Tree(), err
}

// printer writes out a diff.
type printer func(out io.Writer, repo *ostree.Repo, changes []treediff.Change, start time.Time) error

func printDiff(ctx context.Context, repoPath, old, new, path string, print printer) error {
	start := time.Now()
	repo, err := ostree.OpenRepo(repoPath)
	if err != nil {
		return err
	}
	defer repo.Close()
	changes, err := diff(ctx, repo, old, new, path)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	return errors.Join(print(out, repo, changes, start), out.Flush())
}

func printChanges(out io.Writer, _ *ostree.Repo, changes []treediff.Change, start time.Time) error {
	took := time.Since(start)
	for _, c := range changes {
		status := "M"
		switch {
		case c.Old.Kind == ostree.KindNone:
			status = "A"
		case c.New.Kind == ostree.KindNone:
			status = "D"
		}
		fmt.Fprintf(out, "%s    /%s\n", status, c.Path)
	}
	_, err := fmt.Fprintf(out, "total %.6f\n", took.Seconds())
	return err
}

// printEntries prints what the layer has. What is below a directory that went needs nothing.
func printEntries(out io.Writer, repo *ostree.Repo, changes []treediff.Change, _ time.Time) error {
	gone := "/" // starts no path
	for _, c := range changes {
		if strings.HasPrefix(c.Path, gone) {
			continue
		}
		if c.New.Kind != ostree.KindDirectory {
			gone = c.Path + "/"
		}
		if err := printEntry(out, repo, c); err != nil {
			return err
		}
	}
	return nil
}

// printEntry prints one entry. A directory that replaces something else is opaque.
func printEntry(out io.Writer, repo *ostree.Repo, c treediff.Change) error {
	path := cmp.Or(c.Path, ".")
	switch c.New.Kind {
	case ostree.KindFile:
		fmt.Fprintf(out, "l %s %s\x00", repo.FilePath(c.New.Checksum), path)
	case ostree.KindDirectory:
		meta, err := repo.Dirmeta(c.New.Meta)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "d %o %d %d %s\x00", meta.Mode&0o7777, meta.UID, meta.GID, path)
		if c.Old.Kind == ostree.KindFile {
			fmt.Fprintf(out, "o %s\x00", path)
		}
	default:
		fmt.Fprintf(out, "w %s\x00", path)
	}
	return nil
}
