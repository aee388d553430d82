package stale

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// reader reads files of /proc, whose size nobody knows before, into the same memory again.
type reader struct{ buffer []byte }

func newReader() *reader { return &reader{make([]byte, 64<<10)} }

// read returns the content of a file, until the next call.
func (r *reader) read(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	length := 0
	for {
		if length == len(r.buffer) {
			r.buffer = append(r.buffer, make([]byte, len(r.buffer))...)
		}
		n, err := unix.Read(fd, r.buffer[length:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return r.buffer[:length], nil
		}
		length += n
	}
}

// is compares with the inode number that maps tells.
func (m mapping) is(ino uint64) bool { return m.ino == strconv.FormatUint(ino, 10) }
