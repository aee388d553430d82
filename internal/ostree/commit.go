package ostree

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/liveapply/liveapply/internal/gvariant"
)

// Commit is a commit object.
type Commit struct {
	Checksum, Parent Checksum // Parent is zero for a commit without one
	Subject, Body    string
	Timestamp        time.Time // UTC, in whole seconds
	Root             Tree
	Metadata         gvariant.Value // a{sv}; its numbers are in the byte order of the machine that made the commit
}

// The type of a commit, as in ostree-core.h: metadata, parent, related objects, subject, body, timestamp,
// dirtree and dirmeta of the root.
const (
	commitSuffix = ".commit"
	commitType   = "(a{sv}aya(say)sstayay)"
)

// Commit reads a commit object. An error that satisfies errors.Is(err, fs.ErrNotExist) means that it is not
// in the repo. Objects that it names may be missing; see IsPartial.
func (r *Repo) Commit(c Checksum) (*Commit, error) {
	value, err := r.metadata(c, commitSuffix, commitType)
	if err != nil {
		return nil, err
	}
	commit, err := parseCommit(value)
	if err != nil {
		return nil, r.objectError(c, commitSuffix, err)
	}
	commit.Checksum = c
	return commit, nil
}

func parseCommit(v gvariant.Value) (*Commit, error) {
	var members [8]gvariant.Value
	if err := v.Members(members[:]); err != nil {
		return nil, err
	}
	commit := Commit{Metadata: members[0]}
	var err error
	if commit.Parent, err = parentOf(members[1]); err != nil {
		return nil, err
	}
	if commit.Subject, err = members[3].Text(); err != nil {
		return nil, err
	}
	if commit.Body, err = members[4].Text(); err != nil {
		return nil, err
	}
	if commit.Timestamp, err = timestampOf(members[5]); err != nil {
		return nil, err
	}
	commit.Root, err = treeOf(members[6], members[7])
	return &commit, err
}

// parentOf reads the parent's checksum, which a commit without parent has with no bytes.
func parentOf(v gvariant.Value) (Checksum, error) {
	if data, err := v.Bytes(); err != nil || len(data) == 0 {
		return Checksum{}, err
	}
	return checksumOf(v)
}

// maxTimestamp is the end of the year 9999, after which RFC 3339 has no words.
const maxTimestamp = 253402300799

func timestampOf(v gvariant.Value) (time.Time, error) {
	seconds, err := v.Uint64(binary.BigEndian)
	if err != nil {
		return time.Time{}, err
	}
	if seconds > maxTimestamp {
		return time.Time{}, fmt.Errorf("timestamp %d is after the year 9999", seconds)
	}
	return time.Unix(int64(seconds), 0).UTC(), nil
}
