package ostree

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// A draft is an object that is not in the repo: this Repo reads it as if it were. A commit can so be put together, looked at, and compared
// before anything is written, or without that. Drafting is not safe beside anything else that uses the Repo.
type draft struct {
	file    *File // of a file object
	content []byte
}

func (r *Repo) draft(data []byte, suffix string, file *File, content []byte) Checksum {
	c := Checksum(sha256.Sum256(data))
	if r.drafts == nil {
		r.drafts = map[string]draft{}
	}
	r.drafts[objectPath(c, suffix)] = draft{file: file, content: content}
	return c
}

// DraftFile drafts a regular file with the owner, mode and xattrs of file.
func (r *Repo) DraftFile(file File, content []byte) Checksum {
	file.Size = int64(len(content))
	return r.draft(append(fileHeader(&file), content...), fileSuffix, &file, content)
}

// DraftDirtree drafts a directory's contents, the lists of which are sorted.
func (r *Repo) DraftDirtree(tree *Dirtree) Checksum {
	data := tree.serialize()
	return r.draft(data, dirtreeSuffix, nil, data)
}

// DraftCommit drafts a commit. Its Checksum and Metadata do not count; the metadata are what
// serializeVariant takes.
func (r *Repo) DraftCommit(commit Commit, metadata map[string]any) Checksum {
	data := commit.serialize(metadata)
	return r.draft(data, commitSuffix, nil, data)
}

// drafted returns the content of a draft.
func (r *Repo) drafted(c Checksum, suffix string) (draft, bool) {
	if r.drafts == nil {
		return draft{}, false
	}
	d, found := r.drafts[objectPath(c, suffix)]
	return d, found
}

// WriteDrafts puts the drafts into the repo: what others name first, so that the repo is whole at every instant. Each object is on disk
// (unless core.fsync is false) before it has its name. The repo must have been opened below a mount that is writable.
func (r *Repo) WriteDrafts() error {
	order := []string{fileSuffix, dirtreeSuffix, commitSuffix}
	for _, suffix := range order {
		for _, name := range slices.Sorted(maps.Keys(r.drafts)) {
			if path.Ext(name) != suffix {
				continue
			}
			if err := r.write(name, r.drafts[name]); err != nil {
				return fmt.Errorf("write %s to the OSTree repo %s: %w", name, r.name, err)
			}
		}
	}
	r.drafts = nil
	return nil
}

func (r *Repo) write(name string, d draft) error {
	var st unix.Stat_t
	if unix.Fstatat(r.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		return nil
	}
	dir := path.Dir(name)
	// The mode that libostree gives, less the umask (DEFAULT_DIRECTORY_MODE).
	if err := unix.Mkdirat(r.fd, dir, 0o775); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("mkdir: %w", err)
	}
	fd, err := r.writeUnnamed(d.content, func(fd int) error { return d.file.apply(fd) })
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), r.fd, name, unix.AT_SYMLINK_FOLLOW)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("link: %w", err)
	}
	return r.syncDir(dir)
}

// syncDir makes the names in a directory of the repo durable.
func (r *Repo) syncDir(name string) error {
	if r.noSync {
		return nil
	}
	fd, err := openAt(r.fd, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fsync(fd), unix.Close(fd))
}

// apply gives an open file the attributes of a file object in a bare repo; a metadata object, which is no File, the mode that libostree gives it.
func (file *File) apply(fd int) error {
	if file == nil {
		return unix.Fchmod(fd, 0o644)
	}
	if err := file.Attributes().Set(fd); err != nil {
		return err
	}
	// The modification time of all file objects (OSTREE_TIMESTAMP).
	return unix.Futimes(fd, make([]unix.Timeval, 2))
}

// serialize returns the object, a GVariant (a(say)a(sayay)).
func (t *Dirtree) serialize() []byte {
	var files, dirs []byte
	var fileEnds, dirEnds []int
	for _, f := range t.Files {
		name := append([]byte(f.Name), 0)
		files = append(files, appendOffsets(slices.Concat(name, f.Checksum[:]), len(name))...)
		fileEnds = append(fileEnds, len(files))
	}
	for _, d := range t.Dirs {
		name := append([]byte(d.Name), 0)
		contentsEnd := len(name) + len(d.Tree.Contents)
		dirs = append(dirs, appendOffsets(slices.Concat(name, d.Tree.Contents[:], d.Tree.Meta[:]), contentsEnd, len(name))...)
		dirEnds = append(dirEnds, len(dirs))
	}
	files = appendOffsets(files, fileEnds...)
	return appendOffsets(slices.Concat(files, appendOffsets(dirs, dirEnds...)), len(files))
}

// serialize returns the object, a GVariant (a{sv}aya(say)sstayay). Offsets are those of its parts without a fixed size, but for the last, in
// reverse.
func (c *Commit) serialize(metadata map[string]any) []byte {
	var data []byte
	var ends []int
	end := func(part []byte) {
		data = append(data, part...)
		ends = append(ends, len(data))
	}
	end(serializeMetadata(metadata))
	if c.Parent.IsZero() {
		end(nil)
	} else {
		end(c.Parent[:])
	}
	end(nil) // related objects
	end(append([]byte(c.Subject), 0))
	end(append([]byte(c.Body), 0))
	data = binary.BigEndian.AppendUint64(align8(data), uint64(c.Timestamp.Unix()))
	end(c.Root.Contents[:])
	data = append(data, c.Root.Meta[:]...)
	slices.Reverse(ends)
	return appendOffsets(data, ends...)
}

// serializeMetadata returns a GVariant a{sv}, by key.
func serializeMetadata(metadata map[string]any) []byte {
	var data []byte
	var ends []int
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		data = align8(data)
		begin := len(data)
		data = append(append(data, key...), 0)
		keyEnd := len(data) - begin
		data = append(align8(data), serializeVariant(metadata[key])...)
		data = slices.Concat(data[:begin], appendOffsets(data[begin:], keyEnd))
		ends = append(ends, len(data))
	}
	return appendOffsets(data, ends...)
}

// serializeVariant returns a GVariant v of a string (s), of a list of strings (as), or of one of five strings each (a(sssss)), which is how
// rpm-ostree lists packages.
func serializeVariant(value any) []byte {
	switch value := value.(type) {
	case string:
		return append(serializeString(value), "\x00s"...)
	case []string:
		return append(serializeArray(value, serializeString), "\x00as"...)
	case [][5]string:
		return append(serializeArray(value, serializeStrings), "\x00a(sssss)"...)
	}
	panic(fmt.Sprintf("metadata of type %T", value))
}

func serializeString(text string) []byte { return append([]byte(text), 0) }

// serializeStrings returns a GVariant (sssss). Offsets are those of all but the last, in reverse.
func serializeStrings(texts [5]string) []byte {
	var data []byte
	var ends []int
	for _, text := range texts {
		data = append(data, serializeString(text)...)
		ends = append(ends, len(data))
	}
	ends = ends[:len(ends)-1]
	slices.Reverse(ends)
	return appendOffsets(data, ends...)
}

func serializeArray[E any](elements []E, serialize func(E) []byte) []byte {
	var data []byte
	var ends []int
	for _, element := range elements {
		data = append(data, serialize(element)...)
		ends = append(ends, len(data))
	}
	return appendOffsets(data, ends...)
}

// align8 pads to a multiple of 8 bytes, as GVariant aligns 64 bit numbers and variants.
func align8(data []byte) []byte { return append(data, make([]byte, -len(data)&7)...) }

// IsDraft tells whether a commit was drafted and is not written.
func (r *Repo) IsDraft(commit Checksum) bool {
	_, found := r.drafted(commit, commitSuffix)
	return found
}
