package ostree

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"golang.org/x/sys/unix"
)

// File is what a file object is, besides its content.
type File struct {
	UID, GID, Mode uint32  // Mode includes S_IFREG or S_IFLNK
	Size           int64   // of the content, in bytes; of a symbolic link: of the target
	Target         string  // of a symbolic link
	Xattrs         []Xattr // sorted by name
}

const fileSuffix = ".file"

// FilePath returns where a file object is, relative to Fd.
func (r *Repo) FilePath(c Checksum) string { return objectPath(c, fileSuffix) }

// Size returns the size of a file object's content, in bytes; of a symbolic link, 0. An error that satisfies errors.Is(err, fs.ErrNotExist) means
// that it is not in the repo.
func (r *Repo) Size(c Checksum) (int64, error) {
	if d, found := r.drafted(c, fileSuffix); found {
		return d.file.Size, nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(r.fd, r.FilePath(c), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, r.objectError(c, fileSuffix, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, nil
	}
	return st.Size, nil
}

// File reads what a file object is. The content is not read, so nothing is verified; see VerifyFile. An error
// that satisfies errors.Is(err, fs.ErrNotExist) means that it is not in the repo.
func (r *Repo) File(c Checksum) (*File, error) {
	file, err := r.file(c)
	if err != nil {
		return nil, r.objectError(c, fileSuffix, err)
	}
	return file, nil
}

func (r *Repo) file(c Checksum) (*File, error) {
	if d, found := r.drafted(c, fileSuffix); found {
		return d.file, nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(r.fd, r.FilePath(c), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	file := &File{UID: st.Uid, GID: st.Gid, Mode: st.Mode, Size: st.Size}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFLNK:
		target, err := r.readlink(c)
		if err != nil {
			return nil, err
		}
		file.Target = target
	default:
		return nil, fmt.Errorf("mode %#o is neither that of a regular file nor of a symbolic link", st.Mode)
	}
	var err error
	file.Xattrs, err = r.fileXattrs(c)
	return file, err
}

func (r *Repo) readlink(c Checksum) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(r.fd, r.FilePath(c), buf)
	if err != nil {
		return "", fmt.Errorf("read the symbolic link: %w", err)
	}
	return string(buf[:n]), nil
}

// ReadFile returns the content of a regular file of at most limit bytes, after it, the owner, mode and xattrs
// were checked against the checksum.
func (r *Repo) ReadFile(c Checksum, limit int64) ([]byte, error) {
	var content bytes.Buffer
	err := r.CopyFile(&content, c, limit)
	return content.Bytes(), err
}

// CopyFile writes what ReadFile returns. Only without an error is what was written the file's content.
func (r *Repo) CopyFile(dst io.Writer, c Checksum, limit int64) error {
	file, err := r.file(c)
	if err != nil {
		return r.objectError(c, fileSuffix, err)
	}
	if file.Mode&unix.S_IFMT != unix.S_IFREG {
		return r.objectError(c, fileSuffix, fmt.Errorf("it is a symbolic link to %q, not a regular file", file.Target))
	}
	if file.Size > limit {
		return r.objectError(c, fileSuffix, fmt.Errorf("it has %d bytes, more than the %d that can be read", file.Size, limit))
	}
	if content, ok := dst.(*bytes.Buffer); ok {
		content.Grow(int(file.Size))
	}
	return r.verify(c, file, dst)
}

// VerifyFile checks a file object, with content, owner, mode and xattrs, against its checksum.
func (r *Repo) VerifyFile(c Checksum) error {
	file, err := r.file(c)
	if err != nil {
		return r.objectError(c, fileSuffix, err)
	}
	return r.verify(c, file, io.Discard)
}

// verify copies the content of a file object to dst while it is hashed: the header, and behind it the content
// of a regular file (ostree_checksum_file_from_input).
func (r *Repo) verify(c Checksum, file *File, dst io.Writer) error {
	digest := sha256.New()
	digest.Write(fileHeader(file))
	if file.Mode&unix.S_IFMT == unix.S_IFREG {
		if err := r.hashContent(c, file.Size, digest, dst); err != nil {
			return r.objectError(c, fileSuffix, err)
		}
	}
	if sum := Checksum(digest.Sum(nil)); sum != c {
		return r.corrupt(c, fileSuffix, sum)
	}
	return nil
}

func (r *Repo) hashContent(c Checksum, size int64, digest hash.Hash, dst io.Writer) error {
	if d, found := r.drafted(c, fileSuffix); found {
		_, err := io.MultiWriter(digest, dst).Write(d.content)
		return err
	}
	fd, err := openAt(r.fd, r.FilePath(c), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// One byte more than there should be: content that grew has another checksum, and does not fill the
	// memory.
	if _, err := io.Copy(io.MultiWriter(digest, dst), io.LimitReader(descriptor(fd), size+1)); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	return nil
}
