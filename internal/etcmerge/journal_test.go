package etcmerge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDamagedJournalIsRefusedByEveryOperation(t *testing.T) {
	l := newEverything(t)
	plan := l.plan("v1", "v2")
	l.apply(plan)
	l.commitJournal()
	path := filepath.Join(l.dirs.Store, journalName)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damage := map[string]func() error{
		"empty":     func() error { return os.WriteFile(path, nil, 0o600) },
		"truncated": func() error { return os.WriteFile(path, good[:len(good)/2], 0o600) },
		"noise":     func() error { return os.WriteFile(path, bytes.Repeat([]byte{0, 0xff, '{'}, 1000), 0o600) },
		"not ours":  func() error { return os.WriteFile(path, []byte(`{"a": [1, 2]}`), 0o600) },
		"null":      func() error { return os.WriteFile(path, []byte(`null`), 0o600) },
		"a bit": func() error {
			return os.WriteFile(path, bytes.Replace(good, []byte(`conf/a"`), []byte(`conf/b"`), 1), 0o600)
		},
		"trailing": func() error { return os.WriteFile(path, append(bytes.Clone(good), '}'), 0o600) },
		"of another": func() error {
			return os.WriteFile(path, bytes.Replace(good, []byte(`"version":1`), []byte(`"version":2`), 1), 0o600)
		},
		"removed": func() error { return os.Remove(path) },
	}
	operations := map[string]func() error{
		"MakePlan": func() error { _, err := l.tryPlan("v1", "v2"); return err },
		"Apply":    func() error { _, err := Apply(t.Context(), l.repo, plan, l.dirs, nil); return err },
		"Rollback": func() error { _, err := Rollback(t.Context(), l.dirs); return err },
		"Fold":     func() error { return Fold(l.dirs) },
		"Reset":    func() error { _, err := Reset(t.Context(), l.dirs); return err },
		"Pending":  func() error { _, err := Pending(l.dirs); return err },
	}
	etc := l.etc()
	for name, do := range damage {
		for operation, run := range operations {
			if err := do(); err != nil && name != "removed" {
				t.Fatal(err)
			}
			store := scan(t, l.dirs.Store)
			if err := run(); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s with a journal %s: %v", operation, name, err)
			}
			wantSame(t, "the Store", store, scan(t, l.dirs.Store))
		}
	}
	wantSame(t, "/etc", etc, l.etc())
}

func TestMissingOriginalIsNoticedBeforeAnythingIsTakenBack(t *testing.T) {
	l := newEverything(t)
	l.apply(l.plan("v1", "v2"))
	l.commitJournal()
	sh(t, l.dirs.Store, "rm saved/3")
	etc := l.etc()
	if _, err := Reset(t.Context(), l.dirs); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "saved/3") {
		t.Errorf("Reset: %v", err)
	}
	wantSame(t, "/etc", etc, l.etc())
}

func TestMissingEtcIsAnError(t *testing.T) {
	l := newEverything(t)
	plan := l.plan("v1", "v2")
	l.apply(plan)
	l.dirs.Etc += "-elsewhere"
	if _, err := Reset(t.Context(), l.dirs); err == nil {
		t.Error("Reset has nothing to say about a missing /etc")
	}
	if err := os.RemoveAll(l.dirs.Store); err != nil {
		t.Fatal(err)
	}
	if _, err := Apply(t.Context(), l.repo, plan, l.dirs, nil); err == nil {
		t.Error("Apply has nothing to say about a missing /etc")
	}
}

func TestJournalThatLeadsElsewhereIsRefused(t *testing.T) {
	for name, j := range map[string]*journal{
		"up":             {Current: section{Records: []record{{Path: "../x"}}}},
		"absolute":       {Current: section{Records: []record{{Path: "/x"}}}},
		"dot":            {Committed: section{Dirs: []dirTime{{Path: "."}}}},
		"NUL":            {Current: section{Records: []record{{Path: "a\x00b"}}}},
		"saved":          {Current: section{Records: []record{{Path: "x", Saved: "../1"}}}},
		"put":            {Current: section{Records: []record{{Path: "x", Put: "a"}}}},
		"order":          {Current: section{Records: []record{{Path: "b"}, {Path: "a"}}}},
		"twice":          {Committed: section{Dirs: []dirTime{{Path: "a"}, {Path: "a"}}}},
		"negative":       {Next: -1},
		"opaque":         {Committed: section{Opaque: []string{"a/../b"}}},
		"opaque order":   {Committed: section{Opaque: []string{"b", "a"}}},
		"tree order":     {Current: section{Records: []record{{Path: "a-"}, {Path: "a/b"}}}},
		"below the root": {Current: section{Records: []record{{Path: "a"}, {Path: ""}}}},
	} {
		data, err := encodeJournal(j)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeJournal(data); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestPlanThatLeadsElsewhereIsRefused(t *testing.T) {
	l := newTestLab(t, "echo a > f", "true")
	for _, path := range []string{"../x", "/x", ".", "a/../../x", "a\x00"} {
		plan := &Plan{Extends: true, Changes: []Change{{Path: path, After: State{Type: Regular, Mode: 0o644}, Text: []byte("x")}}}
		if _, err := Apply(t.Context(), nil, plan, l.dirs, nil); err == nil {
			t.Errorf("%q is taken", path)
		}
	}
}

func TestOperationsExcludeEachOther(t *testing.T) {
	l := newEverything(t)
	start := l.etc()
	plan := l.plan("v1", "v2")
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var err error
			switch i % 4 {
			case 0:
				_, err = Apply(t.Context(), l.repo, plan, l.dirs, nil)
			case 1:
				_, err = Rollback(t.Context(), l.dirs)
			case 2:
				_, err = Reset(t.Context(), l.dirs)
			default:
				err = Fold(l.dirs)
			}
			if err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	l.reset()
	wantSame(t, "/etc after reset", start, l.etc())
}

func TestWaitingForAnotherOperationCanBeCancelled(t *testing.T) {
	l := newEverything(t)
	plan := l.plan("v1", "v2")
	l.apply(plan)
	fd, err := unix.Open(l.dirs.Store, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockPoll)
	defer cancel()
	if _, err := Reset(ctx, l.dirs); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Reset: %v", err)
	}
}

// A full file system: nothing is changed by an Apply that has no room, and a Reset needs none.
func TestFullFileSystem(t *testing.T) {
	for _, options := range []string{"size=300k", "nr_inodes=40"} {
		t.Run(options, func(t *testing.T) {
			l := newTestLab(t, "mkdir -p d/gone; for i in $(seq 9); do echo a > d/$i; done; echo a > d/gone/f", "rm -r d/gone; for i in $(seq 9); do head -c 20000 /dev/zero > d/$i; done; mkdir n; for i in $(seq 9); do echo b > n/$i; done")
			small := filepath.Join(l.root, "small")
			sh(t, l.root, "mkdir small; mount -t tmpfs -o size=4m tmpfs small; cp -a '"+l.dirs.Etc+"' small/etc")
			t.Cleanup(func() { sh(t, l.root, "umount -l small") })
			l.dirs = Dirs{Etc: filepath.Join(small, "etc"), Store: filepath.Join(small, "store")}
			start := l.etc()
			plan := l.plan("v1", "v2")

			sh(t, l.root, "mount -o remount,"+options+" small")
			fill(t, small)
			if _, err := Apply(t.Context(), l.repo, plan, l.dirs, nil); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("Apply on a full file system: %v", err)
			}
			wantSame(t, "/etc after Apply without room", start, l.etc())
			if pending, err := Pending(l.dirs); err != nil || pending {
				t.Errorf("Pending: %t, %v", pending, err)
			}
			sh(t, l.root, "rm -f small/fill*; mount -o remount,size=4m,nr_inodes=1000 small")
			l.apply(plan)
			l.commitJournal()
			sh(t, l.root, "mount -o remount,size=1200k,nr_inodes=120 small")
			fill(t, small)
			l.reset()
			end := l.etc()
			wantSame(t, "/etc after reset", contentOnly(start), contentOnly(end))
		})
	}
}

// fill takes all blocks and inodes of a file system.
func fill(t *testing.T, dir string) {
	t.Helper()
	for i := 0; ; i++ {
		err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("fill%d", i)), make([]byte, 65536), 0o600)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, "fill0"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
}

func TestLargePlan(t *testing.T) {
	const files = 2000
	l := newTestLab(t, fmt.Sprintf("for d in $(seq 100); do mkdir $d; done; seq %d | awk '{print $1 > ($1 %% 100 + 1) \"/f\" $1; close(($1 %% 100 + 1) \"/f\" $1)}'", files),
		fmt.Sprintf("rm -r 1; seq %d | awk '$1 %% 100 {print \"b\" $1 > ($1 %% 100 + 1) \"/f\" $1; close(($1 %% 100 + 1) \"/f\" $1)}'", files))
	start := l.etc()
	plan := l.plan("v1", "v2")
	data, err := json.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Changes) != files+1 || len(data) > files*400 {
		t.Errorf("%d changes in %d bytes", len(plan.Changes), len(data))
	}
	l.apply(plan)
	l.commitJournal()
	l.reset()
	wantSame(t, "/etc after reset", start, l.etc())
}
