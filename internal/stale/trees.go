package stale

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/treediff"
)

// Trees is a directory that remembers, as long as the machine runs, what /usr has shown: for a file that nobody has open, nothing else
// tells what it was in a tree that is gone. In it are
//
//	<commit>   for each file that the commit has otherwise than the booted one: its object, or -, a blank, its path in /usr, and a NUL
//	<device>   a link to <inode>:<commit>: the root of /usr, when it showed the commit, had this device and inode
//
// A tree keeps its device number as long as a process runs on it; one that is given to another tree is noted anew.
type Trees string

// Describe notes what a commit has otherwise than the booted one, before /usr shows it.
func (t Trees) Describe(commit ostree.Checksum, changes []treediff.Change) error {
	var list strings.Builder
	for _, change := range changes {
		switch {
		case change.New.Kind == ostree.KindFile:
			fmt.Fprintf(&list, "%s %s\x00", change.New.Checksum, change.Path)
		case change.Old.Kind == ostree.KindFile:
			fmt.Fprintf(&list, "- %s\x00", change.Path)
		}
	}
	if err := os.MkdirAll(string(t), 0o755); err != nil {
		return fmt.Errorf("remembering the tree: %w", err)
	}
	if err := renameio.WriteFile(t.path(commit.String()), []byte(list.String()), 0o644, renameio.WithTempDir(string(t))); err != nil {
		return fmt.Errorf("remembering the tree: %w", err)
	}
	return nil
}

// Shows notes that usr shows a commit now, and forgets what it has not shown, and the trees whose device it has now.
func (t Trees) Shows(usr string, commit ostree.Checksum) error {
	at, err := identify(unix.AT_FDCWD, usr, 0)
	if err == nil {
		err = os.MkdirAll(string(t), 0o755)
	}
	if err == nil {
		err = renameio.Symlink(fmt.Sprintf("%d:%s", at.ino, commit), t.path(deviceName(at.dev)))
	}
	if err == nil {
		err = t.forget()
	}
	if err != nil {
		return fmt.Errorf("remembering the tree: %w", err)
	}
	return nil
}

// forget removes the lists that no link leads to, and what a killed call has left (of renameio, which begins with a dot).
func (t Trees) forget() error {
	links, err := t.links()
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(string(t))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		_, notCommit := ostree.ParseChecksum(entry.Name())
		isUnused := notCommit == nil && !links.have(entry.Name())
		if !isUnused && !strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		if err := os.RemoveAll(t.path(entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (t Trees) path(name string) string { return filepath.Join(string(t), name) }

func deviceName(dev uint64) string { return fmt.Sprintf("%d-%d", unix.Major(dev), unix.Minor(dev)) }

// shown is a tree that /usr has shown: the inode of its root, and its commit.
type shown struct {
	ino    uint64
	commit string
}

// links are the trees by the names of their devices.
type links map[string]shown

func (l links) have(commit string) bool {
	for _, tree := range l {
		if tree.commit == commit {
			return true
		}
	}
	return false
}

// commitOf returns the commit that a file on a device comes from, "" if that is not known.
func (l links) commitOf(dev uint64) string { return l[deviceName(dev)].commit }

// commitAt returns the commit of which a directory is the /usr, "" if it is that of none.
func (l links) commitAt(root identity) string {
	if tree := l[deviceName(root.dev)]; tree.ino == root.ino {
		return tree.commit
	}
	return ""
}

func (t Trees) links() (links, error) {
	entries, err := os.ReadDir(string(t))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // /usr has always shown the booted tree
	}
	if err != nil {
		return nil, err
	}
	all := links{}
	for _, entry := range entries {
		if entry.Type() != fs.ModeSymlink {
			continue
		}
		target, err := os.Readlink(t.path(entry.Name()))
		if err != nil {
			return nil, err
		}
		number, commit, _ := strings.Cut(target, ":")
		ino, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s leads to %q, which is none of liveapply's", t.path(entry.Name()), target)
		}
		all[entry.Name()] = shown{ino, commit}
	}
	return all, nil
}

// lists are the files that commits have otherwise than the booted one, read when they are asked for.
type lists struct {
	trees  Trees
	mu     sync.Mutex
	loaded map[string]map[string]string // commit → path in /usr → object
}

// differ tells whether two commits have something else at a path in /usr. One that is not described differs in nothing that is known.
func (l *lists) differ(a, b, path string) bool {
	inA, inB := l.of(a), l.of(b)
	return inA != nil && inB != nil && inA[path] != inB[path]
}

func (l *lists) of(commit string) map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	list, found := l.loaded[commit]
	if !found {
		list = l.trees.list(commit)
		l.loaded[commit] = list
	}
	return list
}

// list reads what Describe has written; nil if it cannot be read.
func (t Trees) list(commit string) map[string]string {
	content, err := os.ReadFile(t.path(commit))
	if err != nil {
		return nil
	}
	list := map[string]string{}
	for entry := range strings.SplitSeq(string(content), "\x00") {
		object, path, _ := strings.Cut(entry, " ")
		list[path] = object
	}
	return list
}
