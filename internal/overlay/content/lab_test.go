package content

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/overlay"
)

// tester is what *testing.T and *rapid.T have in common.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// lab is a system in a directory, and a store for it.
type lab struct {
	t     tester
	dir   string
	under Under
	store overlay.Store
	rules Rules
}

// merged is a system whose /usr is merged, in a few files.
const merged = `
mkdir -p usr/lib/x86_64-linux-gnu/systemd usr/lib64 usr/bin usr/sbin usr/share/doc/sub usr/lib/systemd/system usr/lib/liveapply etc/app run var/tmp
ln -s usr/lib lib; ln -s usr/lib64 lib64; ln -s usr/bin bin; ln -s /usr/sbin sbin
ln -s ../var/tmp usr/tmp; ln -s loop2 usr/loop1; ln -s loop1 usr/loop2; ln -s ../run var/run; ln -s share usr/also
ln -s x86_64-linux-gnu usr/lib/alias; ln -s sh usr/bin/link
echo libc > usr/lib/x86_64-linux-gnu/libc.so.6; echo core > usr/lib/x86_64-linux-gnu/systemd/libsystemd-core-257.so
echo systemd > usr/lib/systemd/systemd; echo helper > usr/lib/liveapply/liveapply-helper
echo sh > usr/bin/sh; chmod 755 usr/bin/sh; echo a > usr/share/doc/a; echo b > usr/share/doc/sub/b; echo conf > etc/app/conf
chown 7:8 usr/share/doc; chmod 2750 usr/share/doc; setfattr -n user.dir -v x usr/share/doc; chown 5:6 usr/share/doc/a; chmod 640 usr/share/doc/a
`

// newLab makes a system with a shell script, in a directory that must be able to have what layers have.
func newLab(t tester, dir, system string) *lab {
	t.Helper()
	l := openLab(t, dir)
	if err := os.Mkdir(l.under.Root, 0o755); err != nil {
		t.Fatal(err)
	}
	l.sh(l.under.Root, system)
	return l
}

// openLab is for one that is there.
func openLab(t tester, dir string) *lab {
	l := &lab{t: t, dir: dir}
	l.under = Under{Root: filepath.Join(dir, "root"), Systemd: 257, Scratch: dir}
	l.under.Base = l.base
	l.store = overlay.Store{Dir: filepath.Join(dir, "store"), Path: filepath.Join(dir, "store")}
	return l
}

func newTestLab(t *testing.T) *lab { t.Helper(); return newLab(t, t.TempDir(), merged) }

// base goes by content.
func (l *lab) base(path string) (overlay.Base, error) {
	content, err := os.ReadFile(filepath.Join(l.under.Root, path))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENOTDIR) {
		return overlay.Base{}, nil
	}
	if err != nil {
		return overlay.Base{}, err
	}
	sum := sha256.Sum256(content)
	return overlay.Base{Checksum: hex.EncodeToString(sum[:])}, nil
}

func (l *lab) sh(dir, script string) string {
	l.t.Helper()
	command := exec.Command("sh", "-ec", script)
	command.Dir = dir
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	if err := command.Run(); err != nil {
		l.t.Fatalf("%s\n%v: %s", script, err, out.String())
	}
	return out.String()
}

// input is a file with content, outside of the system.
func (l *lab) input(content string) string {
	l.t.Helper()
	sum := sha256.Sum256([]byte(content))
	path := filepath.Join(l.dir, "input-"+hex.EncodeToString(sum[:6]))
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return path
}

func (l *lab) try(ops ...overlay.Operation) error { return l.tryForce(false, ops...) }

func (l *lab) tryForce(force bool, ops ...overlay.Operation) error {
	draft, err := NewDraft(l.store, l.under, l.rules)
	if err != nil {
		return err
	}
	defer draft.Close()
	for _, op := range ops {
		if err := draft.Do(context.Background(), op); err != nil {
			return err
		}
	}
	if err := draft.Finish(context.Background(), force); err != nil {
		return err
	}
	return draft.Commit()
}

func (l *lab) do(ops ...overlay.Operation) {
	l.t.Helper()
	if err := l.try(ops...); err != nil {
		l.t.Fatalf("%+v: %v", ops, err)
	}
}

// refused does what must be refused, with these words, and must change nothing.
func (l *lab) refused(words string, ops ...overlay.Operation) {
	l.t.Helper()
	before := l.state()
	err := l.try(ops...)
	if err == nil || !strings.Contains(err.Error(), words) {
		l.t.Errorf("%+v: %v, and not an error with %q", ops, err, words)
	}
	l.tidy()
	if after := l.state(); after != before {
		l.t.Errorf("%+v, which was refused, changed something:\n%s\n%s", ops, before, after)
	}
}

func (l *lab) tidy(used ...string) {
	l.t.Helper()
	if err := l.store.Tidy(func(dir string) bool { return slices.Contains(used, dir) }); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) placed(name string) overlay.Placed {
	l.t.Helper()
	index, err := l.store.Index()
	if err != nil {
		l.t.Fatal(err)
	}
	o := index.Find(name)
	if o == nil {
		l.t.Fatalf("there is no overlay %s", name)
	}
	return overlay.Placed{Overlay: *o, Store: l.store}
}

// state is what the store says, and all that it has of that.
func (l *lab) state() string {
	l.t.Helper()
	index, err := l.store.Index()
	if err != nil {
		l.t.Fatal(err)
	}
	var text strings.Builder
	for _, o := range index.Overlays {
		p := overlay.Placed{Overlay: o, Store: l.store}
		fmt.Fprintf(&text, "%s %s %s %d enabled=%t writable=%t %s\n", o.Name, o.Kind, o.Scope, o.Priority, o.Enabled, o.Writable, o.Source)
		if o.Generation == 0 {
			continue
		}
		manifest, err := l.store.Manifest(o)
		if err != nil {
			l.t.Fatal(err)
		}
		fmt.Fprintf(&text, "%v\n%s", manifest.Bases, strings.Join(lines(l.t, p.Tree()), ""))
	}
	return text.String()
}

// lines has one for all that is in a tree, with all that makes it what it is. Directories have no times: these change with what is in them.
func lines(t tester, dir string) []string {
	t.Helper()
	var all []string
	err := overlay.Walk(dir, func(n overlay.Node) error {
		have, err := attributesOf(n.ProcPath(), n.Stat)
		if err != nil {
			return err
		}
		if n.Kind() == overlay.Masked {
			have = attributes{}
		}
		line := fmt.Sprintf("%q %s %o %d:%d %q opaque=%t", n.Path, n.Kind(), have.mode, have.uid, have.gid, have.xattrs, n.Opaque)
		path := filepath.Join(dir, n.Path)
		switch n.Kind() {
		case overlay.File:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q %v", content, have.mtime.UnixNano())
		case overlay.Link:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " " + target
		}
		all = append(all, line+"\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// inode is 0 if nothing is there.
func inodeOf(path string) uint64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return st.Ino
}
