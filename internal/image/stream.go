package image

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// maxWindow is how much memory a compressed image may take to unpack: what `zstd --long`, and more than what `xz -9` asks for.
const maxWindow = 128 << 20

// unpacker makes a stream of a compressed one.
type unpacker func(io.Reader) (io.ReadCloser, error)

func compressionOf(start []byte) unpacker {
	switch {
	case magicAt(start, 0, "\x1f\x8b"):
		return func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }
	case magicAt(start, 0, "\xfd7zXZ\x00"):
		return func(r io.Reader) (io.ReadCloser, error) {
			unpacked, err := xz.NewReader(r, maxWindow)
			return io.NopCloser(unpacked), err
		}
	case magicAt(start, 0, "\x28\xb5\x2f\xfd"):
		return func(r io.Reader) (io.ReadCloser, error) {
			unpacked, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
			if err != nil {
				return nil, err
			}
			return unpacked.IOReadCloser(), nil
		}
	}
	return nil
}

// compressed reads an archive that is compressed.
func (r *reader) compressed(packed io.Reader, unpack unpacker) error {
	unpacked, err := unpack(bufio.NewReaderSize(packed, bufferSize))
	if err != nil {
		return damaged(err)
	}
	defer unpacked.Close()
	s := newStream(r, unpacked)
	start, err := s.Peek(startSize)
	if err != nil && err != io.EOF {
		return damaged(err)
	}
	read := archiveOf(start)
	if read == nil {
		return errors.New("what is compressed is neither a tar nor a cpio (newc) archive")
	}
	return read(r, s)
}

// stream is an archive, unpacked.
type stream struct {
	*bufio.Reader
	ended bool // who reads came to the end of the file
}

const bufferSize = 128 << 10

// newStream lets as much be read as an image within the limits can have.
func newStream(r *reader, from io.Reader) *stream {
	return &stream{Reader: bufio.NewReaderSize(&limited{ctx: r.ctx, from: from, left: r.limits.stream(), tooLarge: r.tooLarge}, bufferSize)}
}

// stream is how long an archive of this size may be: it has headers and padding, and entries that mean nothing.
func (l Limits) stream() int64 {
	const perEntry, padding = 8 << 10, 16 << 20
	high, low := bits.Mul64(uint64(l.Entries), perEntry)
	sum, carry := bits.Add64(low, uint64(l.Bytes)+padding, 0)
	if high != 0 || carry != 0 || sum > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(sum)
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	s.ended = s.ended || err == io.EOF
	return n, err
}

// padding skips zeros, and tells whether something comes after them.
func (s *stream) padding() (more bool, err error) {
	for {
		next, err := s.ReadByte()
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, damaged(err)
		}
		if next != 0 {
			return true, s.UnreadByte()
		}
	}
}

var errGarbage = errors.New("there is something after its end that is no padding")

// limited is a stream that must be shorter than left.
type limited struct {
	ctx      context.Context
	from     io.Reader
	left     int64
	tooLarge func() error
}

func (l *limited) Read(p []byte) (int, error) {
	if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	if l.left <= 0 {
		return 0, l.tooLarge()
	}
	n, err := l.from.Read(p[:min(int64(len(p)), l.left)])
	if l.left -= int64(n); l.left <= 0 {
		return n, l.tooLarge()
	}
	return n, err
}

// damaged says what an error of a library about an archive means.
func damaged(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errTruncated
	}
	return fmt.Errorf("reading it: %w", err)
}
