package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/cavaliergopher/cpio"
	"golang.org/x/sys/unix"
)

const (
	cpioHeader  = 110 // bytes: the magic and 13 numbers of eight hex digits
	cpioMaxName = 4096
	cpioTrailer = "TRAILER!!!"
)

func isCpio(start []byte) bool { return magicAt(start, 0, "070701") || magicAt(start, 0, "070702") }

// cpio reads archives one after another, with zeros between them, as the kernel does with an initramfs.
func (r *reader) cpio(s *stream) error {
	for {
		if err := r.cpioArchive(s); err != nil {
			return err
		}
		more, err := s.padding()
		if err != nil || !more {
			return err
		}
		if start, _ := s.Peek(cpioHeader); !isCpio(start) {
			return errGarbage
		}
	}
}

// cpioArchive reads up to the trailer.
func (r *reader) cpioArchive(s *stream) error {
	archive := cpio.NewReader(s)
	links := &cpioLinks{entry: r.entry, files: make(map[cpioInode]*cpioFile)}
	padding := 0 // after the content of the entry before
	for {
		next, err := peekCpio(s, padding)
		if err != nil {
			return err
		}
		if next.name == cpioTrailer {
			if _, err := s.Discard(next.size); err != nil {
				return damaged(err)
			}
			return links.finish()
		}
		header, err := archive.Next()
		if err != nil {
			return fmt.Errorf("entry %.256q: %w", next.name, damaged(err))
		}
		padding = int(-(header.Size + int64(len(header.Linkname))) & 3)
		if err := links.add(next, header, archive); err != nil {
			return err
		}
	}
}

// cpioNext is what the library does not tell about a header: whether its numbers are numbers, and those of the device, without which
// files of two file systems look like links to each other.
type cpioNext struct {
	name         string
	major, minor string
	size         int // of the header with its name, and what is before it
}

// peekCpio looks at the header that comes after some padding.
func peekCpio(s *stream, padding int) (cpioNext, error) {
	start, err := s.Peek(padding + cpioHeader)
	if err != nil {
		return cpioNext{}, damaged(err)
	}
	start = start[padding:]
	if !isCpio(start) {
		return cpioNext{}, errors.New("it is damaged: there is no cpio header where one should be")
	}
	numbers := start[6:]
	if i := bytes.IndexFunc(numbers, func(digit rune) bool { return !strings.ContainsRune("0123456789abcdefABCDEF", digit) }); i >= 0 {
		return cpioNext{}, fmt.Errorf("it is damaged: %q in a cpio header is no number", numbers[i/8*8:i/8*8+8])
	}
	next := cpioNext{major: string(numbers[56:64]), minor: string(numbers[64:72])}
	length, err := strconv.ParseUint(string(numbers[88:96]), 16, 32)
	if err != nil || length < 1 || length > cpioMaxName {
		return cpioNext{}, fmt.Errorf("an entry's name has %d bytes, with the NUL at its end, and not 1 to %d", length, cpioMaxName)
	}
	next.size = padding + cpioHeader + int(length)
	withName, err := s.Peek(next.size)
	if err != nil {
		return cpioNext{}, damaged(err)
	}
	name := withName[padding+cpioHeader:]
	next.name = string(bytes.TrimRight(name, "\x00")) // some tools align the content by NULs
	if len(next.name) == len(name) {
		return cpioNext{}, fmt.Errorf("entry %.256q: its name has no end", name)
	}
	return next, nil
}

// cpioLinks keeps hard links: names with one inode number, of which only one, often the last, has the content.
type cpioLinks struct {
	entry func(Entry) error
	files map[cpioInode]*cpioFile
	order []*cpioFile
}

type cpioInode struct {
	major, minor string
	inode        int64
	kind         uint32
}

type cpioFile struct {
	path    string  // the name that the sink has
	waiting []Entry // the names before the one with the content
}

func (l *cpioLinks) add(next cpioNext, header *cpio.Header, content io.Reader) error {
	mode := uint32(header.Mode)
	e := Entry{
		Path: next.name, Mode: mode, UID: uint32(header.Uid), GID: uint32(header.Guid), ModTime: header.ModTime,
		Target: header.Linkname, Size: header.Size, Content: content,
	}
	kind := mode & unix.S_IFMT
	if kind != unix.S_IFREG {
		e.Content = nil
		if header.Size != 0 {
			return fmt.Errorf("entry %.256q: it is a %s with content", e.Path, kindName(mode))
		}
	}
	if header.Links < 2 || kind != unix.S_IFREG && kind != unix.S_IFLNK {
		return l.entry(e)
	}
	id := cpioInode{next.major, next.minor, header.Inode, kind}
	file, known := l.files[id]
	if !known {
		file = &cpioFile{}
		l.files[id] = file
		l.order = append(l.order, file)
	}
	if file.path != "" {
		if header.Size != 0 {
			return fmt.Errorf("entry %.256q: it is a hard link to %.256q, but has content of its own", e.Path, file.path)
		}
		return l.entry(Entry{Path: e.Path, Mode: mode, Link: file.path})
	}
	if kind == unix.S_IFREG && header.Size == 0 {
		file.waiting = append(file.waiting, e)
		return nil
	}
	return l.give(file, e)
}

// give hands on a file, and then the names that waited for it.
func (l *cpioLinks) give(file *cpioFile, e Entry) error {
	if err := l.entry(e); err != nil {
		return err
	}
	file.path = e.Path
	for _, other := range file.waiting {
		if err := l.entry(Entry{Path: other.Path, Mode: other.Mode, Link: file.path}); err != nil {
			return err
		}
	}
	file.waiting = nil
	return nil
}

// finish hands on the files that have no content.
func (l *cpioLinks) finish() error {
	for _, file := range l.order {
		if len(file.waiting) == 0 {
			continue
		}
		first := file.waiting[0]
		first.Content = strings.NewReader("")
		file.waiting = file.waiting[1:]
		if err := l.give(file, first); err != nil {
			return err
		}
	}
	return nil
}
