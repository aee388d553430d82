package ostree

import (
	"encoding/binary"
	"slices"
)

// fileHeader is what a file object's checksum covers before the content (_ostree_file_header_new): the size
// of a GVariant (uuuusa(ayay)) in 4 bytes big endian, 4 zero bytes, and the GVariant: uid, gid, mode, rdev
// (0), target, xattrs by name.
func fileHeader(file *File) []byte {
	target := append([]byte(file.Target), 0)
	xattrs := serializeXattrs(file.Xattrs)

	var tuple []byte
	for _, n := range []uint32{file.UID, file.GID, file.Mode, 0} {
		tuple = binary.BigEndian.AppendUint32(tuple, n)
	}
	tuple = append(tuple, target...)
	targetEnd := len(tuple)
	tuple = append(tuple, xattrs...)
	tuple = appendOffsets(tuple, targetEnd)

	header := binary.BigEndian.AppendUint32(nil, uint32(len(tuple)))
	header = append(header, 0, 0, 0, 0)
	return append(header, tuple...)
}

// serializeXattrs returns a GVariant a(ayay).
func serializeXattrs(xattrs []Xattr) []byte {
	var data []byte
	var ends []int
	for _, xattr := range xattrs {
		name := append([]byte(xattr.Name), 0)
		pair := appendOffsets(slices.Concat(name, xattr.Value), len(name))
		data = append(data, pair...)
		ends = append(ends, len(data))
	}
	return appendOffsets(data, ends...)
}

// appendOffsets appends GVariant framing offsets, in the smallest width that can address the result.
func appendOffsets(data []byte, offsets ...int) []byte {
	width := 1
	for width < 8 && len(data)+width*len(offsets) >= 1<<(8*width) {
		width *= 2
	}
	for _, offset := range offsets {
		encoded := binary.LittleEndian.AppendUint64(nil, uint64(offset))
		data = append(data, encoded[:width]...)
	}
	return data
}
