package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"golang.org/x/sys/unix"
)

// tarXattr is what GNU tar, bsdtar and others put before the name of an xattr.
const tarXattr = "SCHILY.xattr."

// tarKinds are the types of entries that have a type of file. What is none of them is refused.
var tarKinds = map[byte]uint32{
	tar.TypeReg: unix.S_IFREG, tar.TypeGNUSparse: unix.S_IFREG, tar.TypeLink: unix.S_IFREG,
	tar.TypeDir: unix.S_IFDIR, tar.TypeSymlink: unix.S_IFLNK,
	tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO,
}

func (r *reader) tar(s *stream) error {
	archive := tar.NewReader(s)
	for {
		header, err := archive.Next()
		if err == io.EOF {
			return endOfTar(s)
		}
		if err != nil {
			return damaged(err)
		}
		if isComment(header) {
			continue
		}
		e, err := tarEntry(header, archive)
		if err != nil {
			return fmt.Errorf("entry %.256q: %w", header.Name, err)
		}
		if err := r.entry(e); err != nil {
			return err
		}
	}
}

// endOfTar is after the two blocks of zeros that end an archive, or at the end of the file, which is then cut off.
func endOfTar(s *stream) error {
	if s.ended {
		return errTruncated
	}
	more, err := s.padding()
	if err == nil && more {
		err = errGarbage
	}
	return err
}

// isComment is about what `git archive` puts first. Other global records would change the entries after them.
func isComment(header *tar.Header) bool {
	_, comment := header.PAXRecords["comment"]
	return header.Typeflag == tar.TypeXGlobalHeader && len(header.PAXRecords) == 1 && comment
}

func tarEntry(header *tar.Header, content io.Reader) (Entry, error) {
	kind, known := tarKinds[header.Typeflag]
	if !known {
		return Entry{}, fmt.Errorf("it has the tar type %q, which is none of a file, a directory or a link", header.Typeflag)
	}
	if header.Mode < 0 || header.Mode > math.MaxUint16 {
		return Entry{}, fmt.Errorf("its mode is %#o", header.Mode)
	}
	if !isID(header.Uid) || !isID(header.Gid) {
		return Entry{}, fmt.Errorf("its owner is %d:%d, and nobody has that number", header.Uid, header.Gid)
	}
	e := Entry{
		Path: header.Name, Mode: kind | uint32(header.Mode)&0o7777, UID: uint32(header.Uid), GID: uint32(header.Gid),
		ModTime: header.ModTime, Xattrs: make(map[string]string),
	}
	for key, value := range header.PAXRecords {
		if strings.HasPrefix(key, "SCHILY.acl.") {
			return Entry{}, fmt.Errorf("it has an ACL (%s): make the archive without --acls", key)
		}
		if name, isXattr := strings.CutPrefix(key, tarXattr); isXattr {
			e.Xattrs[name] = value
		}
	}
	switch header.Typeflag {
	case tar.TypeLink:
		e.Link = header.Linkname
		if e.Link == "" {
			return Entry{}, errors.New("it is a hard link to nothing")
		}
	case tar.TypeSymlink:
		e.Target = header.Linkname
	case tar.TypeReg, tar.TypeGNUSparse:
		e.Size, e.Content = header.Size, content
	}
	return e, nil
}

func isID(id int) bool { return id >= 0 && id < math.MaxUint32 }
