package content

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/overlay"
)

// tops are the directories that content can lie in.
var tops = []string{"usr", "etc", "run"}

// Under is the system that content is made for.
type Under struct {
	// Root is its root directory: where content lands, and which attributes directories have, is looked up there.
	Root string
	// Base tells what is at a path below all overlays.
	Base func(path string) (overlay.Base, error)
	// Systemd is the version of the running one.
	Systemd int
	// Scratch is a directory for images that are fetched, in files without a name.
	Scratch string
}

// Land returns where content with a path goes: a path below usr, etc or run. Directories are looked up in the system, so that what is given below a
// link, as /lib on a merged system is one, lands where the link leads; the last component is not followed.
func (u Under) Land(path string) (string, error) {
	if err := checkPath(path); err != nil {
		return "", err
	}
	clean := strings.TrimPrefix(filepath.Clean("/"+path), "/")
	top, rest, _ := strings.Cut(clean, "/")
	isTop, err := u.isTop(top)
	if err != nil {
		return "", err
	}
	if !isTop || rest == "" {
		return "", fmt.Errorf("%q is no path for an overlay: it holds files below /usr, /etc and /run", path)
	}
	dir, err := u.resolve(filepath.Dir(clean))
	if err != nil {
		return "", fmt.Errorf("%q: %w", path, err)
	}
	landed := filepath.Join(dir, filepath.Base(clean))
	if top, rest, _ := strings.Cut(landed, "/"); rest == "" || !slices.Contains(tops, top) {
		return "", fmt.Errorf("%q leads to /%s in this system, which is not below /usr, /etc or /run", path, landed)
	}
	return landed, nil
}

// checkPath refuses what cannot be the path of content: it is written to files in JSON, too.
func checkPath(path string) error {
	switch {
	case !utf8.ValidString(path):
		return fmt.Errorf("%q is no path for an overlay: it is not in UTF-8", path)
	case strings.ContainsRune(path, 0) || slices.Contains(strings.Split(path, "/"), ".."):
		return fmt.Errorf("%q is no path for an overlay: it may not have \"..\" in it", path)
	}
	return nil
}

// isTop tells whether content can lie below a name in the root directory: a link has to lead into /usr, as /lib does. /var/run is not for overlays,
// though it leads to /run.
func (u Under) isTop(name string) (bool, error) {
	if slices.Contains(tops, name) {
		return true, nil
	}
	target, isLink, err := u.readLink(name)
	return isLink && strings.HasPrefix(filepath.Clean("/"+target), "/usr/"), err
}

// readLink tells where a link of the system leads, if there is one.
func (u Under) readLink(path string) (target string, isLink bool, err error) {
	target, err = os.Readlink(filepath.Join(u.Root, path))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EINVAL) {
		return "", false, nil
	}
	return target, err == nil, err
}

// leadsToDir tells whether the system has a link to a directory at a landed path.
func (u Under) leadsToDir(path string) (bool, error) {
	st, err := u.stat(path)
	if err != nil || st == nil || typeOf(st.Mode) != unix.S_IFLNK {
		return false, err
	}
	target, err := u.resolve(path)
	if err != nil {
		return false, err
	}
	st, err = u.stat(target)
	return st != nil && typeOf(st.Mode) == unix.S_IFDIR, err
}

// maxLinks is how many links may be on the way to a directory, as in the kernel.
const maxLinks = 40

// resolve follows the links in a directory's path, within the system. What does not exist leads to itself.
func (u Under) resolve(path string) (string, error) {
	done, todo := "", strings.Split(path, "/")
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = strings.TrimPrefix(filepath.Dir("/"+done), "/")
			continue
		}
		next := filepath.Join(done, part)
		target, isLink, err := u.readLink(next)
		if err != nil {
			return "", err
		}
		if !isLink {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("there are too many links on the way to it: %w", unix.ELOOP)
		}
		if filepath.IsAbs(target) {
			done = ""
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return done, nil
}

// stat looks at a landed path in the system; nil if nothing is there.
func (u Under) stat(path string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Lstat(filepath.Join(u.Root, path), &st)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking at /%s: %w", path, err)
	}
	return &st, nil
}

func typeOf(mode uint32) uint32 { return mode & unix.S_IFMT }
