package content

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/image"
	"github.com/liveapply/liveapply/internal/overlay"
)

// A backup is a tar archive, compressed by zstd: a description, and below tree/ the files, links and directories. Masks, and that a directory is opaque,
// are in the description only, so that unpacking it by tar makes nothing dangerous. The description goes for all that it says; the
// archive has the same for those who unpack it.
const (
	descriptionName = "overlay.json"
	backupTree      = "tree"
	backupVersion   = 1
)

// description is what a backup begins with.
type description struct {
	Version int                     `json:"version"`
	Overlay overlay.Overlay         `json:"overlay"`
	Bases   map[string]overlay.Base `json:"bases"`
	Entries []described             `json:"entries"` // in the order of the archive
}

// described is an entry of the tree.
type described struct {
	Path    string            `json:"path"`
	Kind    overlay.EntryKind `json:"kind"`
	Opaque  bool              `json:"opaque,omitempty"`
	Mode    uint32            `json:"mode"` // permission bits; as with all that follows, 0 for masks
	UID     uint32            `json:"uid"`
	GID     uint32            `json:"gid"`
	ModTime time.Time         `json:"mtime"`
	Xattrs  map[string][]byte `json:"xattrs,omitempty"`
	Target  string            `json:"target,omitempty"` // of a symbolic link
	Link    string            `json:"link,omitempty"`   // the path of an entry before, which this is another name of
	Size    int64             `json:"size,omitempty"`
	SHA256  string            `json:"sha256,omitempty"` // of a file's content, in hexadecimal digits
}

// maxDescription bounds the description in a backup, in bytes.
const maxDescription = 256 << 20

func readDescription(e image.Entry) (*description, error) {
	if e.Path != descriptionName || e.Content == nil || e.Size > maxDescription {
		return nil, errors.New("no description comes first")
	}
	content, err := io.ReadAll(e.Content)
	if err != nil {
		return nil, err
	}
	return parseDescription(content)
}

func parseDescription(content []byte) (*description, error) {
	about := &description{}
	if err := json.Unmarshal(content, about); err != nil {
		return nil, err
	}
	if about.Version != backupVersion {
		return nil, fmt.Errorf("it has version %d, this program knows %d", about.Version, backupVersion)
	}
	return about, about.check()
}

// check refuses what Backup does not write.
func (a *description) check() error {
	o := a.Overlay
	if o.Generation != 0 {
		return errors.New("it names a generation")
	}
	if o.Writable {
		o.Generation = 1 // it will have one
	}
	if err := o.Check(); err != nil {
		return err
	}
	known := map[string]bool{}
	for _, e := range a.Entries {
		isKnown := slices.Contains([]overlay.EntryKind{overlay.File, overlay.Link, overlay.Folder, overlay.Masked}, e.Kind)
		if !isKnown || known[e.Path] || e.Size < 0 || e.Mode > 0o7777 || e.Opaque && e.Kind != overlay.Folder {
			return fmt.Errorf("it describes %v in a way that makes no sense", e)
		}
		if err := checkPath(e.Path); err != nil {
			return err
		}
		known[e.Path] = true
	}
	for path := range a.Bases {
		if !known[path] {
			return fmt.Errorf("it knows what /%s replaces, and does not have that", path)
		}
	}
	return nil
}

// modeOf returns the st_mode of an entry.
func (d described) modeOf() uint32 {
	return d.Mode | map[overlay.EntryKind]uint32{overlay.File: unix.S_IFREG, overlay.Link: unix.S_IFLNK, overlay.Folder: unix.S_IFDIR}[d.Kind]
}

func (d described) attributes() attributes {
	a := attributes{mode: d.Mode, uid: d.UID, gid: d.GID, mtime: d.ModTime, xattrs: map[string]string{}}
	for name, value := range d.Xattrs {
		a.xattrs[name] = string(value)
	}
	return a
}

func (d described) String() string { return strconv.Quote("/" + d.Path) }
