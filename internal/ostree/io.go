package ostree

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// openAt is openat with O_CLOEXEC, repeated when a signal interrupts it.
func openAt(dir int, path string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, path, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// readFileAt reads a small regular file that may be reached through symbolic links.
func readFileAt(dir int, path string, limit int64) ([]byte, error) {
	fd, err := openAt(dir, path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return readAndClose(fd, path, limit)
}

// readAndClose reads a whole regular file. Its size is checked before memory is taken for it. (An os.File
// would cost more system calls than the reading.)
func readAndClose(fd int, name string, limit int64) ([]byte, error) {
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	if st.Size > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than the %d that it may have", name, st.Size, limit)
	}
	data := make([]byte, st.Size)
	if _, err := io.ReadFull(descriptor(fd), data); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}

// descriptor reads from a file descriptor.
type descriptor int

func (d descriptor) Read(buf []byte) (int, error) {
	for {
		n, err := unix.Read(int(d), buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, err
		case n == 0 && len(buf) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// writeAll writes all of data.
func writeAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		data = data[max(n, 0):]
	}
	return nil
}

// openAt2 is openat2 (Linux 5.6), repeated when a signal or a rename elsewhere interrupts it.
func openAt2(dir int, path string, how *unix.OpenHow) (int, error) {
	for {
		fd, err := unix.Openat2(dir, path, how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

func isDirectory(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}
