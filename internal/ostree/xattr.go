package ostree

import (
	"strconv"

	"github.com/liveapply/liveapply/internal/xattr"
)

// XattrNames returns the names of a file object's xattrs, sorted: one system call when it has none.
func (r *Repo) XattrNames(c Checksum) ([]string, error) {
	names, err := xattr.List(r.procPath(c))
	if err != nil {
		return nil, r.objectError(c, fileSuffix, err)
	}
	return names, nil
}

// procPath names a file object for the calls that take no directory descriptor (the *xattrat ones are in
// Linux 6.13 and later only).
func (r *Repo) procPath(c Checksum) string {
	return "/proc/self/fd/" + strconv.Itoa(r.fd) + "/" + r.FilePath(c)
}

func (r *Repo) fileXattrs(c Checksum) ([]Xattr, error) {
	var xattrs []Xattr
	err := xattr.Read(r.procPath(c), func(name string, value []byte) {
		xattrs = append(xattrs, Xattr{Name: name, Value: value})
	})
	return xattrs, err
}
