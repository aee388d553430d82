package pkgdb

import (
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/ostree"
)

// Files returns the paths in the commit's tree that a package brought: files, symbolic links and directories, which packages share, in the
// order of the database. They are as the tree has them: "usr/bin/ls" where the package says /bin/ls and /bin is a link, "usr/etc/…"
// for /etc, and the other name if another package diverted the file (dpkg-divert(1)). What a path names may be gone from the tree.
func (db *Database) Files(p Package) ([]string, error) {
	content, err := db.fileList(p)
	if err != nil {
		return nil, fmt.Errorf("package database %s: the list of files of %s: %w", db.Source, p, err)
	}
	renames, err := db.origin.renames()
	if err != nil {
		return nil, fmt.Errorf("package database %s: where the files of packages are: %w", db.Source, err)
	}
	var files []string
	for line := range strings.SplitSeq(content, "\n") {
		if name := renames.inTree(p, line); name != "" {
			files = append(files, name)
		}
	}
	return files, nil
}

// fileList returns paths, one on each line: of dpkg, the content of info/<package>.list, or info/<package>:<arch>.list if it can be installed for
// several architectures.
func (db *Database) fileList(p Package) (string, error) {
	if db.Format == RPM {
		known, err := db.origin.rpm()
		return known[p].files, err
	}
	for _, name := range []string{p.Name + ":" + p.Arch, p.Name} {
		content, found, err := db.origin.readIn(path.Join("info", name+".list"))
		if err != nil || found {
			return content, err
		}
	}
	return "", fmt.Errorf("there is no %s", path.Join(db.origin.admin, "info", p.Name+".list"))
}

// readIn returns the content of a file in the directory of the database, if it is there.
func (o *origin) readIn(name string) (content string, found bool, err error) {
	entry, err := o.lookup(path.Join(o.admin, name))
	if err != nil || entry.Kind != ostree.KindFile {
		return "", false, err
	}
	data, err := o.repo.ReadFile(entry.Checksum, maxStatus)
	return string(data), err == nil, err
}

// renames tells which paths are not called in the tree what a package calls them.
type renames struct {
	diversions map[string]diversion
	links      map[string]string // symbolic links in the root, to directories in the tree: "lib" → "usr/lib"
}

// diversion is where a path leads to for all packages but one. The one is ":" if the administrator diverted it.
type diversion struct{ name, by string }

func (o *origin) readRenames() (r renames, err error) {
	if o.admin != "" {
		if r.diversions, err = o.diversions(); err != nil {
			return renames{}, err
		}
	}
	r.links, err = o.links()
	return r, err
}

// inTree returns the path in the tree, "" for the root, of what is on a line of a package's list.
func (r renames) inTree(p Package, line string) string {
	if to, ok := r.diversions[line]; ok && to.by != p.Name {
		line = to.name
	}
	name := strings.TrimPrefix(path.Clean("/"+line), "/")
	// A package that brings a link in the root itself names it without anything below.
	top, rest, deeper := strings.Cut(name, "/")
	if target, ok := r.links[top]; ok && (deeper || top == "etc") {
		return path.Join(target, rest)
	}
	return name
}

// diversions reads dpkg's file of that name: three lines each, the path, where it leads to, and who diverted it.
func (o *origin) diversions() (map[string]diversion, error) {
	content, found, err := o.readIn("diversions")
	if err != nil || !found || content == "" {
		return nil, err
	}
	lines := strings.Split(strings.TrimSuffix(content, "\n"), "\n")
	if len(lines)%3 != 0 {
		return nil, fmt.Errorf("the diversions have %d lines, not three for each", len(lines))
	}
	diverted := map[string]diversion{}
	for i := 0; i < len(lines); i += 3 {
		diverted[lines[i]] = diversion{name: lines[i+1], by: lines[i+2]}
	}
	return diverted, nil
}

// links reads the links in the root. /etc is one to usr/etc, where OSTree keeps it.
func (o *origin) links() (map[string]string, error) {
	root, err := o.dirtree(o.commit.Root.Entry())
	if err != nil {
		return nil, err
	}
	links := map[string]string{"etc": "usr/etc"}
	for _, entry := range root.Files {
		file, err := o.repo.File(entry.Checksum)
		if err != nil {
			return nil, err
		}
		if file.Mode&unix.S_IFMT == unix.S_IFLNK {
			links[entry.Name] = strings.TrimPrefix(path.Clean("/"+file.Target), "/")
		}
	}
	return links, nil
}
