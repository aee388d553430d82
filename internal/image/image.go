// Package image reads updates images: directories, tar and cpio archives, plain or compressed, and file systems.
//
// An image is not trusted to be well made. Each entry is checked before it is handed on, so that whoever writes it somewhere needs
// no more than a directory to write it to: no entry leads out of that, or through a link of the image. Nothing is written here.
package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is a directory, a regular file or a link of an image.
type Entry struct {
	Path     string // relative, clean, without ".."; never empty
	Mode     uint32 // st_mode: type and permissions
	UID, GID uint32
	ModTime  time.Time
	Xattrs   map[string]string // user., security., trusted., and the ACLs of a file system or directory
	Target   string            // of a symbolic link
	Link     string            // the path of an earlier entry, a file or a symbolic link, that this is another name of; only Path and Mode count then
	Size     int64
	Content  io.Reader // of a regular file; can be read until the sink returns, and need not be
}

// Limits is how much an image may unpack to. More is refused, before it is read where an entry tells its size.
type Limits struct {
	Bytes   int64 // content with holes as if they were filled, names, link targets and extended attributes
	Entries int
}

// Read hands the entries of an open image, a directory or a file, to sink, in an order in which the parent of each, and what it is a
// link to, came before. A directory that the image does not have, but has entries below, comes as root's, with mode 0755. A directory
// may come more than once: the last time counts. Nothing else does, for two files of one name are no image that somebody wanted to
// make, and the first may have links. The root of the image is none of its entries.
//
// The format is known by content. Hard links are kept. What an ext4 image has in lost+found is left out: mke2fs makes that directory.
// A file system that is not mounted by the kernel is refused; one that is may still be damaged, and reading it is an error then.
// Errors name the image and the entry; what sink returns is wrapped.
func Read(ctx context.Context, image *os.File, limits Limits, sink func(Entry) error) error {
	r := &reader{ctx: ctx, limits: limits, left: limits, sink: sink, kinds: make(map[string]uint32)}
	if err := r.read(image); err != nil {
		return fmt.Errorf("updates image %q: %w", image.Name(), err)
	}
	return nil
}

func (r *reader) read(image *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(image.Fd()), &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return r.directory(int(image.Fd()))
	case unix.S_IFREG:
		return r.file(image)
	}
	return errors.New("it is neither a file nor a directory")
}

// file reads an image by what it begins with.
func (r *reader) file(image *os.File) error {
	start := make([]byte, startSize)
	n, err := image.ReadAt(start, 0)
	if err != nil && err != io.EOF {
		return err
	}
	start = start[:n]
	content := io.NewSectionReader(image, 0, 1<<63-1) // what others do with the file's offset does not matter
	if unpack := compressionOf(start); unpack != nil {
		return r.compressed(content, unpack)
	}
	if read := archiveOf(start); read != nil {
		return read(r, newStream(r, content))
	}
	if fs := fileSystemOf(start); fs != "" {
		return r.fileSystem(image, fs)
	}
	return errors.New("it has none of the known formats: tar, cpio (newc), squashfs, erofs, ext4, the first two plain or compressed by gzip, xz or zstd")
}

// startSize is how much of a file tells its format.
const startSize = 2048

// archiveOf returns what reads an archive that begins like this, or nil. A tar archive from before POSIX has nothing to know it by.
func archiveOf(start []byte) func(*reader, *stream) error {
	switch {
	case isCpio(start):
		return (*reader).cpio
	case magicAt(start, 257, "ustar"):
		return (*reader).tar
	}
	return nil
}

func fileSystemOf(start []byte) string {
	switch {
	case magicAt(start, 0, "hsqs"):
		return "squashfs"
	case magicAt(start, 1024, string(binary.LittleEndian.AppendUint32(nil, 0xE0F5E1E2))):
		return "erofs"
	case magicAt(start, 1024+56, string(binary.LittleEndian.AppendUint16(nil, unix.EXT4_SUPER_MAGIC))):
		return "ext4"
	}
	return ""
}

func magicAt(start []byte, at int, magic string) bool {
	return len(start) >= at && bytes.HasPrefix(start[at:], []byte(magic))
}
