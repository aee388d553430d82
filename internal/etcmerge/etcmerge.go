// Package etcmerge brings /etc from the defaults of one commit to those of another, by libostree's rule
// (merge_configuration_from), and can take every change back.
//
// MakePlan and PlanFiles decide what changes; they only read. Apply writes it down in an undo journal, syncs that, and then does
// it. What Apply did since the last Fold is the current transaction: Rollback takes back that, Reset everything. Each can be
// killed at any instruction; whichever of them runs next begins where the killed one left the disk.
//
// Put, with a Store of its own, puts the files of overlays on top of what all that leads to.
//
// A path that the administrator changed is never written, neither on the way forth nor on the way back, and nothing is written through
// a symbolic link or into something that is mounted below /etc.
package etcmerge

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
)

// Dirs says where /etc and the journal are. Hard links and renames between the two must work if a restored file is to be
// the very inode that it was: on a deployment, both are reached below one mount of /sysroot.
// Where they do not, files are copied.
type Dirs struct {
	Etc   string // /etc, by whatever path; messages call it by Name
	Store string // the journal's directory, mode 0700: journal.json, saved/, new/; made by Apply in a directory that exists, removed by Reset
	// Name is what messages call /etc, where it is another directory. Empty means /etc.
	Name string
	// StoreName is what messages call the Store, where its path means something to this process only (/proc/self/fd/…). They
	// tell people to go there. Empty means Store.
	StoreName string
	// Repair is what messages say is to be done about a damaged journal. Empty means a reset.
	Repair string
}

// name is that of /etc in messages.
func (d Dirs) name() string { return cmp.Or(d.Name, "/etc") }

// inStore names something in the Store, or the Store itself, in messages.
func (d Dirs) inStore(names ...string) string {
	return filepath.Join(append([]string{cmp.Or(d.StoreName, d.Store)}, names...)...)
}

// bare takes the path out of an error of package os.
func bare(err error) error {
	var named *fs.PathError
	if errors.As(err, &named) {
		return named.Err
	}
	return err
}

// Result is what was done. All paths are relative to /etc, in tree order.
type Result struct {
	Changed  []string // are now as in the plan
	Restored []string // are as before again
	Kept     []string // were changed by the administrator meanwhile, and stay as they are, in whole or in part
}

// ErrUnfinished tells that the journal has a transaction that is neither committed nor rolled back, so /etc is not what a plan
// can be made from. Rollback first.
var ErrUnfinished = errors.New("an earlier change of /etc was interrupted: take it back first (systemctl start liveapply-reset.service)")

// Conflict is a path at which /etc cannot be merged.
type Conflict struct {
	Path   string // relative to /etc
	Reason string // what is wrong, and what to do
}

// ConflictError tells why /etc cannot be merged. Nothing was changed.
type ConflictError struct{ Conflicts []Conflict }

func (e *ConflictError) Error() string {
	const most = 10
	var b strings.Builder
	b.WriteString("/etc cannot be merged: ")
	for i, c := range e.Conflicts {
		if i == most {
			fmt.Fprintf(&b, "; and %d more", len(e.Conflicts)-most)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s: %s", display("/etc", c.Path), c.Reason)
	}
	return b.String()
}

// display shows a path below a directory to a human, with whatever it contains.
func display(dir, path string) string {
	full := strings.TrimSuffix(dir+"/"+path, "/")
	if strings.ContainsFunc(full, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }) {
		return fmt.Sprintf("%q", full)
	}
	return full
}

// comparePaths orders paths as treediff does: a directory before what is in it, siblings bytewise by name.
func comparePaths(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		switch { // '/' is before every other byte
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		case a[i] < b[i]:
			return -1
		}
		return 1
	}
	return len(a) - len(b)
}

// split returns the directory of a path, and the name in it. The root is "." in itself.
func split(path string) (dir, name string) {
	if path == "" {
		return "", "."
	}
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}
