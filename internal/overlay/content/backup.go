package content

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"

	"github.com/liveapply/liveapply/internal/overlay"
)

// Backup writes all that makes the overlay what it is. The same overlay gives the same backup. A writable one should not be written to meanwhile: if a
// file changes, the backup fails.
func Backup(p overlay.Placed, w io.Writer) error {
	if err := backup(p, w); err != nil {
		return fmt.Errorf("backing up overlay %s: %w", p.Name, err)
	}
	return nil
}

func backup(p overlay.Placed, w io.Writer) error {
	about, err := describe(p)
	if err != nil {
		return err
	}
	packed, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	archive := tar.NewWriter(packed)
	if err := putDescription(archive, about); err != nil {
		return err
	}
	if p.Generation > 0 {
		left := about.Entries
		err := overlay.Walk(p.Tree(), func(n overlay.Node) error {
			if len(left) == 0 || left[0].Path != n.Path {
				return errChanged
			}
			entry := left[0]
			left = left[1:]
			return putEntry(archive, n, entry)
		})
		if err != nil {
			return err
		}
	}
	return errors.Join(archive.Close(), packed.Close())
}

var errChanged = errors.New("it was changed while it was read: try again when nobody does")

// describe reads the whole overlay.
func describe(p overlay.Placed) (*description, error) {
	about := &description{Version: backupVersion, Overlay: p.Overlay, Bases: map[string]overlay.Base{}}
	about.Overlay.Generation, about.Overlay.Changed = 0, time.Time{} // these are about where it is kept
	if p.Generation == 0 {
		return about, nil
	}
	manifest, err := p.Store.Manifest(p.Overlay)
	if err != nil {
		return nil, err
	}
	about.Bases = manifest.Bases
	names := map[uint64]string{} // of files that may have more than one
	err = overlay.Walk(p.Tree(), func(n overlay.Node) error {
		entry, err := describeNode(n, names)
		about.Entries = append(about.Entries, entry)
		return err
	})
	return about, err
}

func describeNode(n overlay.Node, names map[uint64]string) (described, error) {
	d := described{Path: n.Path, Kind: n.Kind(), Opaque: n.Opaque}
	if d.Kind == overlay.Masked {
		return d, nil
	}
	if err := checkPath(n.Path); err != nil {
		return d, err
	}
	have, err := attributesOf(n.ProcPath(), n.Stat)
	if err != nil {
		return d, err
	}
	d.Mode, d.UID, d.GID, d.ModTime = have.mode, have.uid, have.gid, have.mtime.UTC()
	for name, value := range have.xattrs {
		if !utf8.ValidString(name) {
			return d, fmt.Errorf("the name of the xattr %q is not in UTF-8", name)
		}
		if d.Xattrs == nil {
			d.Xattrs = map[string][]byte{}
		}
		d.Xattrs[name] = []byte(value)
	}
	if d.Kind == overlay.Folder {
		return d, nil
	}
	if first, again := names[n.Stat.Ino]; again {
		return described{Path: n.Path, Kind: d.Kind, Link: first}, nil
	}
	names[n.Stat.Ino] = n.Path
	switch d.Kind {
	case overlay.File:
		d.Size, d.SHA256, err = sum(n, io.Discard)
	case overlay.Link:
		d.Target, err = os.Readlink(n.ProcPath())
	default:
		err = fmt.Errorf("it is a %s file", d.Kind)
	}
	return d, err
}

// sum copies a file's content, and returns its checksum.
func sum(n overlay.Node, to io.Writer) (size int64, checksum string, err error) {
	file, err := openRegular(n.ProcPath())
	if err != nil {
		return 0, "", err
	}
	defer file.Close()
	digest := sha256.New()
	size, err = io.Copy(io.MultiWriter(to, digest), file)
	return size, hex.EncodeToString(digest.Sum(nil)), err
}

func putDescription(archive *tar.Writer, about *description) error {
	content, err := json.Marshal(about)
	if err != nil {
		return err
	}
	if len(content) > maxDescription {
		return fmt.Errorf("it has %d entries, which is more than a backup can describe", len(about.Entries))
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: descriptionName, Mode: 0o600, Size: int64(len(content)), ModTime: about.Overlay.Created, Format: tar.FormatPAX}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err = archive.Write(content)
	return err
}

func putEntry(archive *tar.Writer, n overlay.Node, d described) error {
	if d.Kind == overlay.Masked {
		return nil
	}
	header := &tar.Header{
		Name: backupTree + "/" + d.Path, Mode: int64(d.Mode), Uid: int(d.UID), Gid: int(d.GID), ModTime: d.ModTime,
		Format: tar.FormatPAX, PAXRecords: map[string]string{},
	}
	for name, value := range d.Xattrs {
		header.PAXRecords["SCHILY.xattr."+name] = string(value)
	}
	switch {
	case d.Link != "":
		header.Typeflag, header.Linkname = tar.TypeLink, backupTree+"/"+d.Link
	case d.Kind == overlay.Folder:
		header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
	case d.Kind == overlay.Link:
		header.Typeflag, header.Linkname = tar.TypeSymlink, d.Target
	default:
		header.Typeflag, header.Size = tar.TypeReg, d.Size
	}
	if err := archive.WriteHeader(header); err != nil || header.Typeflag != tar.TypeReg {
		return err
	}
	size, checksum, err := sum(n, archive)
	if errors.Is(err, tar.ErrWriteTooLong) || err == nil && (size != d.Size || checksum != d.SHA256) {
		return errChanged
	}
	return err
}
