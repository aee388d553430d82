package ostree

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"

	"github.com/liveapply/liveapply/internal/gvariant"
	"golang.org/x/sys/unix"
)

// maxMetadata bounds the size of a metadata object, in bytes, as OSTREE_MAX_METADATA_SIZE does.
const maxMetadata = 128 << 20

// objectPath is where a loose object is, relative to the repo.
func objectPath(c Checksum, suffix string) string {
	name := c.String()
	return "objects/" + name[:2] + "/" + name[2:] + suffix
}

// metadata reads a metadata object (a commit, a dirtree or a dirmeta), checks it against its name, and
// returns it as a GVariant in normal form, the same checks as in _ostree_verify_metadata_object.
func (r *Repo) metadata(c Checksum, suffix, typ string) (gvariant.Value, error) {
	data, err := r.readMetadata(c, suffix)
	if err != nil {
		return gvariant.Value{}, r.objectError(c, suffix, err)
	}
	if sum := Checksum(sha256.Sum256(data)); sum != c {
		return gvariant.Value{}, r.corrupt(c, suffix, sum)
	}
	value, err := parseMetadata(typ, data)
	if err != nil {
		return gvariant.Value{}, r.objectError(c, suffix, err)
	}
	return value, nil
}

func (r *Repo) readMetadata(c Checksum, suffix string) ([]byte, error) {
	if d, found := r.drafted(c, suffix); found {
		return d.content, nil
	}
	fd, err := openAt(r.fd, objectPath(c, suffix), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return readAndClose(fd, objectPath(c, suffix), maxMetadata)
}

func parseMetadata(typ string, data []byte) (gvariant.Value, error) {
	value, err := gvariant.New(typ, data)
	if err != nil {
		return gvariant.Value{}, err
	}
	return value, value.CheckNormal()
}

// objectError says what is wrong with an object, and what to do about it.
func (r *Repo) objectError(c Checksum, suffix string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if suffix == commitSuffix {
			return fmt.Errorf("commit %s is not in the OSTree repo %s: pull it first (ostree pull): %w", c, r.name, err)
		}
		return fmt.Errorf("object %s%s is missing in the OSTree repo %s: "+
			"check the repo (ostree fsck), then pull the commit again (ostree pull): %w", c, suffix, r.name, err)
	}
	return fmt.Errorf("object %s%s in the OSTree repo %s: %w", c, suffix, r.name, err)
}

func (r *Repo) corrupt(c Checksum, suffix string, sum Checksum) error {
	return r.objectError(c, suffix, fmt.Errorf("it is damaged, what it holds has the checksum %s: "+
		"find what is damaged with ostree fsck --delete, then pull the commit again (ostree pull)", sum))
}

// checksumOf reads an array of 32 bytes. Zeros, which stand for nothing in this package, are refused.
func checksumOf(v gvariant.Value) (Checksum, error) {
	data, err := v.Bytes()
	if err != nil {
		return Checksum{}, err
	}
	if len(data) != len(Checksum{}) {
		return Checksum{}, fmt.Errorf("a checksum has %d bytes, not %d", len(data), len(Checksum{}))
	}
	c := Checksum(data)
	if c.IsZero() {
		return Checksum{}, errors.New("a checksum is all zeros")
	}
	return c, nil
}

// treeOf reads the checksums of a dirtree and a dirmeta.
func treeOf(contents, meta gvariant.Value) (tree Tree, err error) {
	if tree.Contents, err = checksumOf(contents); err != nil {
		return Tree{}, err
	}
	tree.Meta, err = checksumOf(meta)
	return tree, err
}
