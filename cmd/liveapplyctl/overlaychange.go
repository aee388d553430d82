package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/internal/systemd"
)

// overlayChange is a request that is being put together. All that it asks for is one step.
type overlayChange struct {
	machine *machine.Machine
	id      string
	request overlay.Request
	files   int    // how many the request has the content of
	done    string // what to say in the end
}

// changeOverlays puts a request together and has it carried out.
func (s *starter) changeOverlays(ctx context.Context, force bool, fill func(*overlayChange) error) error {
	c, err := newOverlayChange(force, fill)
	if err != nil {
		return err
	}
	return s.carryOut(ctx, c)
}

func newOverlayChange(force bool, fill func(*overlayChange) error) (*overlayChange, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("only root can change overlays")
	}
	m, err := machine.OpenAnywhereAsRoot()
	if err != nil {
		return nil, err
	}
	c := &overlayChange{machine: m, id: newOverlayRequest(), request: overlay.Request{Force: force, RequestedBy: requester()}}
	if err := fill(c); err != nil {
		return nil, errors.Join(err, m.State.RemoveOverlayRequest(c.id))
	}
	return c, nil
}

// newOverlayRequest names a request.
func newOverlayRequest() string {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // it never fails
	return hex.EncodeToString(id)
}

// carryOut starts the unit that carries out a request. A unit that is not waited for removes the request itself.
func (s *starter) carryOut(ctx context.Context, c *overlayChange) error {
	content, err := json.Marshal(c.request)
	if err == nil {
		err = c.machine.State.WriteOverlayRequest(c.id, content)
	}
	if err == nil {
		err = s.start(ctx, c.machine, job{unit: systemd.OverlayUnit(c.id), done: c.done, once: true})
	}
	if ctx.Err() != nil || err == nil && s.noWait {
		return err
	}
	return errors.Join(err, c.machine.State.RemoveOverlayRequest(c.id))
}

// ask adds an operation.
func (c *overlayChange) ask(op overlay.Operation) {
	c.request.Operations = append(c.request.Operations, op)
}

// say sets what is said in the end.
func (c *overlayChange) say(format string, args ...any) {
	c.done = printable(fmt.Sprintf(format, args...))
}

// content names the file that an operation takes content from. What the unit could not read by its name goes into a file of the request: standard
// input, what is no regular file, descriptors of this process, and what has a name that JSON cannot have.
func (c *overlayChange) content(from string) (path string, mode uint32, err error) {
	if from == "-" {
		path, err = c.keep(os.Stdin)
		return path, newFileMode, err
	}
	file, err := os.Open(from)
	if err != nil {
		return "", 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", 0, err
	}
	if path, err = filepath.Abs(from); err != nil {
		return "", 0, err
	}
	if info.Mode().IsRegular() && !isOwn(path) && utf8.ValidString(path) {
		return path, uint32(info.Mode().Perm()), nil
	}
	if info.IsDir() {
		return "", 0, fmt.Errorf("%s is a directory: name the files in it", from)
	}
	path, err = c.keep(file)
	return path, newFileMode, err
}

// newFileMode has a file that is new, and whose content comes from no file.
const newFileMode = 0o644

// isOwn tells paths that lead elsewhere in another process.
func isOwn(path string) bool {
	return strings.HasPrefix(path, "/dev/") || strings.HasPrefix(path, "/proc/")
}

// keep puts content into a file of the request.
func (c *overlayChange) keep(content io.Reader) (path string, err error) {
	path, err = c.keepAs(strconv.Itoa(c.files), content)
	c.files++
	return path, err
}

func (c *overlayChange) keepAs(name string, content io.Reader) (path string, err error) {
	dir, err := c.machine.State.MakeOverlayContent(c.id)
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, name)
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer file.Close()
	if _, err := io.Copy(file, content); err != nil {
		return "", fmt.Errorf("keeping the content in %s: %w: put it into a file, and name that", path, err)
	}
	return path, nil
}

// absolute are paths of the system as it is asked for them.
func absolute(paths []string) ([]string, error) {
	var named []string
	for _, path := range paths {
		if path == "" {
			return nil, errors.New("a path is empty")
		}
		if !filepath.IsAbs(path) { // one that is may go through links, in which .. counts
			var err error
			if path, err = filepath.Abs(path); err != nil {
				return nil, err
			}
		}
		if !utf8.ValidString(path) { // JSON would make another one of it
			return nil, fmt.Errorf("the path %q is not in UTF-8", path)
		}
		named = append(named, path)
	}
	return named, nil
}

// forceFlag declares what allows all content.
func forceFlag(flags *pflag.FlagSet) *bool {
	return flags.Bool("force", false, "also hide what the system cannot do without: systemd, the C library, liveapply")
}

// ofDisabled ends a sentence on an overlay that has no effect.
func ofDisabled(o overlay.Placed) string {
	if o.Enabled {
		return "."
	}
	return "; it is disabled."
}
