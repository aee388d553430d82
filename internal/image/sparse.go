package image

import (
	"bytes"
	"io"
	"os"
)

// CopySparse writes src to the empty file dst, and leaves holes where there are blocks of zeros only.
func CopySparse(dst *os.File, src io.Reader) (size int64, err error) {
	const block = 4096
	zeros := make([]byte, block)
	buf := make([]byte, 32*block)
	for {
		n, err := io.ReadFull(src, buf)
		for at := 0; at < n; at += block {
			data := buf[at:min(at+block, n)]
			if bytes.Equal(data, zeros[:len(data)]) {
				continue
			}
			if _, err := dst.WriteAt(data, size+int64(at)); err != nil {
				return size, err
			}
		}
		size += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return size, dst.Truncate(size)
		}
		if err != nil {
			return size, err
		}
	}
}
