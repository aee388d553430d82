package content

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/beneath"
	"github.com/liveapply/liveapply/internal/overlay"
)

// add takes what the system has at a path.
func (g *generation) add(path string) error {
	st, err := g.under.stat(path)
	if err != nil {
		return err
	}
	if st == nil {
		return fmt.Errorf("%w: to make a new one, use set", errNoFile)
	}
	from := filepath.Join(g.under.Root, path)
	have, err := attributesOf(from, st)
	if err != nil {
		return err
	}
	if err := g.remember(path); err != nil {
		return err
	}
	switch typeOf(st.Mode) {
	case unix.S_IFREG:
		file, err := openRegular(from)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := g.rules.checkSize(st.Size); err != nil {
			return err
		}
		return g.file(path, file, have)
	case unix.S_IFLNK:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return g.symlink(path, target, have)
	}
	return errors.New("it is neither a file nor a link: name the files in a directory one by one")
}

// openRegular opens a regular file, and nothing that would block or be followed.
func openRegular(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// set gives a path the content of another file. A file that is there keeps owner, mode and xattrs.
func (g *generation) set(path string, op overlay.Operation) error {
	content, err := os.OpenFile(op.From, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer content.Close()
	info, err := content.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", op.From)
	}
	if err := g.rules.checkSize(info.Size()); err != nil {
		return err
	}
	have, err := g.replaced(path, op.Mode)
	if err != nil {
		return err
	}
	if err := g.remember(path); err != nil {
		return err
	}
	return g.file(path, content, have)
}

// replaced returns the attributes that a file with new content has: those of the file in the overlay, or else in the system.
func (g *generation) replaced(path string, mode uint32) (attributes, error) {
	st, err := g.stat(path)
	root := beneath.Path(int(g.root.Fd()), ".")
	if err == nil && (st == nil || typeOf(st.Mode) != unix.S_IFREG) {
		st, err = g.under.stat(path)
		root = g.under.Root
	}
	if err != nil {
		return attributes{}, err
	}
	if st == nil || typeOf(st.Mode) != unix.S_IFREG {
		return attributes{mode: mode & 0o7777}, nil
	}
	have, err := attributesOf(filepath.Join(root, path), st)
	have.mtime = time.Time{} // it changes now
	for _, ofContent := range []string{"security.ima", "security.evm"} {
		delete(have.xattrs, ofContent)
	}
	return have, err
}

// hide masks a path.
func (g *generation) hide(path string) error {
	inSystem, err := g.under.stat(path)
	if err != nil {
		return err
	}
	inTree, err := g.stat(path)
	if err != nil {
		return err
	}
	if inSystem == nil && inTree == nil {
		return errNoFile
	}
	if err := g.remember(path); err != nil {
		return err
	}
	g.forgetBelow(path)
	return g.mask(path)
}

// clear takes a path out of the overlay, and the directories on the way that are there for nothing else.
func (g *generation) clear(path string) error {
	had, err := g.remove(path)
	if err != nil {
		return err
	}
	if !had {
		return errors.New("the overlay has no such path")
	}
	g.forgetBelow(path)
	delete(g.manifest.Bases, path)
	return g.prune(filepath.Dir(path), func(dir string) bool { _, asked := g.manifest.Bases[dir]; return asked })
}

// forgetBelow drops what is known of the paths below one.
func (g *generation) forgetBelow(path string) {
	maps.DeleteFunc(g.manifest.Bases, func(below string, _ overlay.Base) bool { return strings.HasPrefix(below, path+"/") })
}
