package stale

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// candidate is a process that is looked at.
type candidate struct {
	*scan
	*reader
	dir  string // /proc/PID
	view *view
}

// mapping is a file that a process maps, as a line of /proc/PID/maps tells it.
type mapping struct {
	dev, ino, path string
}

// files returns what the process should no longer use.
func (c *candidate) files() ([]File, error) {
	maps, err := c.read(c.dir + "/maps")
	if err != nil || len(maps) == 0 { // a thread of the kernel maps nothing
		return nil, err
	}
	root, err := identify(unix.AT_FDCWD, c.dir+"/root", 0)
	if err != nil || root.dev != c.root.dev || root.ino != c.root.ino {
		return nil, err
	}
	if c.view, err = c.viewOf(); err != nil {
		return nil, err
	}
	var files []File
	if c.view.oldTree {
		files = append(files, File{c.Usr, OldTree})
	}
	if c.view.behind {
		c.view = c.host // within its own tree nothing has changed
	}
	mapped, err := c.mapped(maps)
	if err != nil {
		return nil, err
	}
	named, err := c.named()
	return append(append(files, mapped...), named...), err
}

// viewOf returns what the process finds at paths.
func (c *candidate) viewOf() (*view, error) {
	namespace, err := os.Readlink(c.dir + "/ns/mnt")
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, found := c.views[namespace]; found {
		return v, nil
	}
	v, err := openView(c.dir + "/root")
	if err != nil {
		return nil, err
	}
	usr, err := v.at(c.Usr)
	if err != nil {
		unix.Close(v.root)
		return nil, err
	}
	if usr != nil && *usr != c.usr {
		shows := c.links.commitAt(*usr)
		v.behind = shows != ""
		v.oldTree = v.behind && shows != c.live
	}
	c.views[namespace] = v
	return v, nil
}

// mapped returns the mapped files that are no longer what their paths have.
func (c *candidate) mapped(maps []byte) ([]File, error) {
	var files []File
	var last []byte
	for len(maps) > 0 {
		var line []byte
		line, maps, _ = bytes.Cut(maps, []byte{'\n'})
		file := fileOf(line)
		if file == nil || bytes.Equal(file, last) {
			continue // the parts of a file follow one another
		}
		last = file
		found, err := c.check(newMapping(file), line)
		if err != nil {
			return nil, err
		}
		if found.Reason != "" && !contains(files, found) {
			files = append(files, found)
		}
	}
	return files, nil
}

func contains(files []File, file File) bool {
	for _, other := range files {
		if other == file {
			return true
		}
	}
	return false
}

// fileOf cuts device, inode and path out of a line of maps, "start-end mode offset device inode path"; nil if it is of no file.
func fileOf(line []byte) []byte {
	for range 3 {
		_, rest, _ := bytes.Cut(line, []byte{' '})
		line = rest
	}
	if bytes.IndexByte(line, '/') < 0 {
		return nil
	}
	return line
}

func newMapping(file []byte) mapping {
	dev, rest, _ := strings.Cut(string(file), " ")
	ino, path, _ := strings.Cut(rest, " ")
	return mapping{dev, ino, strings.ReplaceAll(strings.TrimLeft(path, " "), `\012`, "\n")}
}

// deletedSuffix follows the path of a file that was deleted.
const deletedSuffix = " (deleted)"

// check tells what is wrong with a mapped file. Its reason is empty if nothing is.
func (c *candidate) check(m mapping, line []byte) (File, error) {
	path, deleted := strings.CutSuffix(m.path, deletedSuffix)
	inUsr := strings.HasPrefix(path, c.Usr+"/")
	if path == "" || path[0] != '/' || !inUsr && (deleted || c.isElsewhere(path)) {
		return File{}, nil
	}
	c.view.mu.Lock()
	reason, known := c.view.seen[m]
	c.view.mu.Unlock()
	if !known {
		var err error
		if reason, err = c.compare(m, path, inUsr, c.mapFile(line)); err != nil {
			return File{}, err
		}
		c.view.mu.Lock()
		c.view.seen[m] = reason
		c.view.mu.Unlock()
	}
	if !inUsr {
		path = c.Usr + path
	}
	return File{path, reason}, nil
}

// isElsewhere tells whether a path is below a directory in the root, as no path within /usr is: bin and lib are links there. It is not looked
// at: it may be on a filesystem whose server is away.
func (c *candidate) isElsewhere(path string) bool {
	top, _, _ := strings.Cut(path[1:], "/")
	return c.rootDirs[top]
}

// compare tells what is wrong with a mapped file that was not seen yet; link leads to it.
func (c *candidate) compare(m mapping, path string, inUsr bool, link string) (Reason, error) {
	now, err := c.view.at(m.path) // a name may end like that of a deleted file
	if err == nil && m.isAt(now, link) {
		return "", nil
	}
	if inUsr && err != nil {
		return "", err
	}
	if !inUsr {
		if err != nil || !isOverlay(link) {
			return "", nil // of some other filesystem, and what is the matter with that is none of ours
		}
		path = c.Usr + path
	}
	if path != m.path {
		if now, err = c.view.at(path); err != nil || m.isAt(now, link) {
			return "", err
		}
	}
	if now == nil {
		return Deleted, nil
	}
	if c.view.hasContent(path, now.size, link) {
		return "", nil
	}
	return Replaced, nil
}

// isAt tells whether the mapped file, to which link leads, is what a path has now. For who may not follow the link, the number has to do.
func (m mapping) isAt(now *identity, link string) bool {
	if now == nil || !m.is(now.ino) {
		return false
	}
	mapped, err := identify(unix.AT_FDCWD, link, 0)
	return err != nil || mapped.isSame(*now)
}

// mapFile is the link in /proc/PID/map_files to the file of a line of maps. Only root can follow it.
func (c *candidate) mapFile(line []byte) string {
	addresses, _, _ := bytes.Cut(line, []byte{' '})
	from, to, _ := strings.Cut(string(addresses), "-")
	return c.dir + "/map_files/" + withoutZeros(from) + "-" + withoutZeros(to)
}

// withoutZeros: maps has at least eight digits of an address, map_files as few as can be.
func withoutZeros(address string) string {
	if short := strings.TrimLeft(address, "0"); short != "" {
		return short
	}
	return "0"
}

func isOverlay(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC
}

// describe tells who the process is.
func (c *candidate) describe(pid int, files []File) (*Process, error) {
	name, err := os.ReadFile(c.dir + "/comm")
	if err != nil {
		return nil, err
	}
	cgroups, err := os.ReadFile(c.dir + "/cgroup")
	if err != nil {
		return nil, err
	}
	pidns, err := os.Readlink(c.dir + "/ns/pid")
	if err != nil {
		return nil, err
	}
	return &Process{
		PID: pid, Name: strings.TrimSuffix(string(name), "\n"), Files: files,
		Cgroup: cgroupOf(string(cgroups)), OwnPIDSpace: pidns != c.pidns,
	}, nil
}

// cgroupOf returns the path in the hierarchy that systemd uses: the only one, or, beside those of version 1, its own.
func cgroupOf(lines string) string {
	unified := ""
	for line := range strings.Lines(lines) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) < 3 {
			continue
		}
		if fields[1] == "name=systemd" && fields[2] != "/" {
			return fields[2]
		}
		if fields[0] == "0" {
			unified = fields[2]
		}
	}
	return unified
}

// named returns the files of /usr that the command line names, such as a script, and that are others now: by what the process has open, or else
// by what the tree had that its program is from.
func (c *candidate) named() ([]File, error) {
	line, err := c.read(c.dir + "/cmdline")
	if err != nil {
		return nil, err
	}
	words := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	named := words[1:]
	if len(words) == 1 && !filepath.IsAbs(words[0]) {
		if named, err = c.behindTitle(); err != nil {
			return nil, err
		}
	}
	var files []File
	for _, word := range named {
		path, ok := c.inUsr(word)
		if !ok {
			continue
		}
		reason, err := c.compareNamed(path)
		if err != nil {
			return nil, err
		}
		if reason != "" {
			files = append(files, File{path, reason})
		}
	}
	return files, nil
}

// inUsr returns the path in /usr that a word of a command line names: /bin is a link to usr/bin.
func (c *candidate) inUsr(word string) (string, bool) {
	if !filepath.IsAbs(word) {
		return "", false
	}
	word = filepath.Clean(word)
	if strings.HasPrefix(word, c.Usr+"/") {
		return word, true
	}
	top, rest, _ := strings.Cut(word[1:], "/")
	if rest == "" {
		return "", false
	}
	target, err := os.Readlink("/" + top)
	if err != nil {
		return "", false
	}
	path := filepath.Join("/", target, rest)
	return path, strings.HasPrefix(path, c.Usr+"/")
}

func (c *candidate) compareNamed(path string) (Reason, error) {
	open, found, err := c.openFile(path)
	if err != nil {
		return "", err
	}
	if !found {
		return c.compareTrees(path)
	}
	id, err := identify(unix.AT_FDCWD, open, 0)
	if err != nil {
		return "", err
	}
	now, err := c.view.at(path)
	if err != nil || now != nil && (now.isSame(id) || c.view.hasContent(path, now.size, open)) {
		return "", err
	}
	return Script, nil
}

// openFile finds the descriptor by which the process has a file of /usr open, by its path there, or in a tree that is no longer mounted.
func (c *candidate) openFile(path string) (link string, found bool, err error) {
	entries, err := os.ReadDir(c.dir + "/fd")
	if err != nil {
		return "", false, err
	}
	detached := strings.TrimPrefix(path, c.Usr)
	for _, entry := range entries {
		link := c.dir + "/fd/" + entry.Name()
		if target, err := os.Readlink(link); err == nil && (target == path || target == detached || target == path+deletedSuffix) {
			return link, true, nil
		}
	}
	return "", false, nil
}

// compareTrees compares what the tree that the process was started in had at a path with what is live, and where a link at the path leads to.
func (c *candidate) compareTrees(path string) (Reason, error) {
	started, err := c.startedIn()
	if err != nil || started == "" || started == c.live {
		return "", err
	}
	paths := []string{path}
	if target, err := filepath.EvalSymlinks(path); err == nil && target != path {
		paths = append(paths, target)
	}
	for _, p := range paths {
		if below, ok := strings.CutPrefix(p, c.Usr+"/"); ok && c.lists.differ(started, c.live, below) {
			return Argument, nil
		}
	}
	return "", nil
}

// startedIn returns the commit of the tree that the process was started in, by its program; "" if that is from nowhere in /usr, or it is not
// known.
func (c *candidate) startedIn() (string, error) {
	exe := c.dir + "/exe"
	program, err := identify(unix.AT_FDCWD, exe, 0)
	if err != nil {
		return "", err
	}
	path, err := os.Readlink(exe)
	if err != nil {
		return "", err
	}
	// The booted tree shares its device with the rest of the system.
	if !strings.HasPrefix(path, c.Usr+"/") && !isOverlay(exe) {
		return "", nil
	}
	if commit := c.links.commitOf(program.dev); commit != "" {
		return commit, nil
	}
	return c.startedInTreeOf(path)
}

// startedInTreeOf is startedIn for a program of a tree whose layers are on several filesystems, each of which has a device of its own there: the
// tree's is the one that maps tells (since Linux 6.8, before it tells that of the filesystem).
func (c *candidate) startedInTreeOf(program string) (string, error) {
	maps, err := c.read(c.dir + "/maps")
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(maps) {
		if file := fileOf(bytes.TrimSuffix(line, []byte{'\n'})); file == nil {
			continue
		} else if m := newMapping(file); m.path == program {
			return c.links.commitOf(m.device()), nil
		}
	}
	return "", nil
}

// device is the number of the device that maps tells.
func (m mapping) device() uint64 {
	major, minor, _ := strings.Cut(m.dev, ":")
	a, _ := strconv.ParseUint(major, 16, 32)
	b, _ := strconv.ParseUint(minor, 16, 32)
	return unix.Mkdev(uint32(a), uint32(b))
}

// behindTitle returns what a process was started with that shows a title in the place of its command line, except its program, which it
// maps. Nobody is asked unless an answer could matter.
func (c *candidate) behindTitle() ([]string, error) {
	if c.Started == nil {
		return nil, nil
	}
	if started, err := c.startedIn(); err != nil || started == "" || started == c.live {
		return nil, err
	}
	cgroups, err := os.ReadFile(c.dir + "/cgroup")
	if err != nil {
		return nil, err
	}
	program, err := os.Readlink(c.dir + "/exe")
	if err != nil {
		return nil, err
	}
	var named []string
	for _, word := range c.Started(cgroupOf(string(cgroups))) {
		if path, ok := c.inUsr(word); ok && path != program && path != c.Usr+program {
			named = append(named, word)
		}
	}
	return named, nil
}
