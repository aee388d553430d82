package pkgdb

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/liveapply/liveapply/internal/ostree"
)

// What the packages of a commit of rpm-ostree need, and which files they have, is only in rpm's own database. It is read when packages are selected,
// and only then, by the booted machine's rpm(8), which every such machine has: no library for Go reads all of a header's relations with their
// versions, and one that reads SQLite would cost every start of a phase 1 ms and 4 MB. rpm runs nothing of the tree then, and no plugin.

// rpmdbs are the directories where rpm's own database is. rpm-ostree puts it into the first, with a link at the other.
var rpmdbs = []string{"usr/share/rpm", "usr/lib/sysimage/rpm"}

// rpmdbFile is its name there, in the format that has been rpm's default since 4.16.
const rpmdbFile = "rpmdb.sqlite"

// maxRPMDB bounds the size of rpm's database, and maxRPMOutput and maxRPMLine that of what is printed of it, in bytes. With 2000 packages they have 100 MB and 40 MB.
const (
	maxRPMDB     = 512 << 20
	maxRPMOutput = 256 << 20
	maxRPMLine   = 1 << 20
)

// RPMDirectories returns the directories where trees have rpm's own database, which cannot be put together of two.
func RPMDirectories() []string { return slices.Clone(rpmdbs) }

// readRPM reads what rpm's database in the tree has about the packages of the commit.
func (o *origin) readRPM() (map[Package]control, error) {
	name, entry, err := o.findRPM()
	if err != nil {
		return nil, err
	}
	known, err := o.queryRPM(entry.Checksum)
	if err != nil {
		return nil, fmt.Errorf("commit %s: rpm's database %s: %w", o.commit.Checksum, name, err)
	}
	return known, nil
}

// findRPM returns where the tree has rpm's database.
func (o *origin) findRPM() (name string, entry ostree.Entry, err error) {
	for _, dir := range rpmdbs {
		name := path.Join(dir, rpmdbFile)
		if entry, err := o.lookup(name); err != nil || entry.Kind == ostree.KindFile {
			return name, entry, err
		}
	}
	return "", ostree.Entry{}, fmt.Errorf("commit %s: packages cannot be selected: what they need is only in rpm's database, and its tree has no %s in %s",
		o.commit.Checksum, rpmdbFile, strings.Join(rpmdbs, " or "))
}

// queryRPM reads a copy, because SQLite writes files beside what it opens.
func (o *origin) queryRPM(c ostree.Checksum) (known map[Package]control, err error) {
	program, err := exec.LookPath("rpm")
	if err != nil {
		return nil, fmt.Errorf("the program rpm, which reads it, is not there: %w", err)
	}
	dir, err := os.MkdirTemp("", "liveapply-rpmdb-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := o.copyFile(c, filepath.Join(dir, rpmdbFile)); err != nil {
		return nil, err
	}
	return o.runRPM(program, dir)
}

func (o *origin) copyFile(c ostree.Checksum, name string) (err error) {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return o.repo.CopyFile(file, c, maxRPMDB)
}

// rpmFormat is what rpm prints: lines that begin with a letter, for a package and, behind it, all that is known of it.
const rpmFormat = `P\t%{NAME}\t%{EPOCHNUM}\t%{VERSION}\t%{RELEASE}\t%{ARCH}\n` +
	`[R\t%{REQUIRENEVRS}\n][V\t%{PROVIDENEVRS}\n][C\t%{CONFLICTNEVRS}\n][O\t%{OBSOLETENEVRS}\n][F\t%{FILENAMES}\n]`

func (o *origin) runRPM(program, dir string) (map[Package]control, error) {
	// The machine's configuration could name another database and format, and run programs. Packages in a database were
	// verified before they were installed.
	cmd := exec.Command(program, "--macros=/dev/null", "--rcfile=/dev/null", "--dbpath="+dir, "--define=_db_backend sqlite", "--noplugins", "--nosignature",
		"--query", "--all", "--queryformat="+rpmFormat)
	cmd.Env = []string{"LC_ALL=C.UTF-8"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	known, err := readRPMs(io.LimitReader(stdout, maxRPMOutput+1))
	if err != nil {
		_ = cmd.Process.Kill() // it prints on otherwise
	}
	ended := cmd.Wait()
	if err == nil && ended != nil {
		err = ended
	}
	// rpm leaves a header out that is damaged, says so, and ends as if nothing was.
	if said := strings.TrimSpace(stderr.String()); err != nil || said != "" {
		return nil, errors.Join(err, fmt.Errorf("rpm says %.500q", said))
	}
	return known, o.agree(known)
}

// agree asks for the same packages in rpm's database as in the list.
func (o *origin) agree(known map[Package]control) error {
	var list Database
	if err := list.readPkglist(o.pkglist); err != nil {
		return err
	}
	for _, p := range list.Packages {
		if _, ok := known[p]; !ok {
			return fmt.Errorf("it does not have %s, which %s has", p, pkglistKey)
		}
	}
	if len(known) > len(list.Packages) {
		for p := range known {
			if !slices.Contains(list.Packages, p) {
				return fmt.Errorf("it has %s, which %s does not have", p, pkglistKey)
			}
		}
	}
	return nil
}

// readRPMs reads what rpm prints. Keys that rpm keeps as packages are left out, as in rpm-ostree's list.
func readRPMs(from io.Reader) (map[Package]control, error) {
	known := map[Package]control{}
	var p *rpmPrinted
	size := 0
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxRPMLine)
	for lines.Scan() {
		if size += len(lines.Bytes()) + 1; size > maxRPMOutput {
			return nil, fmt.Errorf("more than the %d bytes that can be read are printed of it", maxRPMOutput)
		}
		kind, text, _ := strings.Cut(lines.Text(), "\t")
		if kind == "P" {
			p.keep(known)
			next, err := newRPMPrinted(text)
			if err != nil {
				return nil, err
			}
			p = next
			continue
		}
		if p == nil || !p.add(kind, text) {
			return nil, fmt.Errorf("rpm prints %.64q, which is nothing that is known", lines.Text())
		}
	}
	p.keep(known)
	return known, lines.Err()
}

// rpmPrinted is a package that is being read.
type rpmPrinted struct {
	Package
	requires, provides, conflicts, obsoletes, files strings.Builder
}

func newRPMPrinted(text string) (*rpmPrinted, error) {
	words := strings.Split(text, "\t")
	if len(words) != 5 {
		return nil, fmt.Errorf("rpm prints %.64q for name, epoch, version, release and architecture", text)
	}
	p, err := newRPM([5]string(words))
	return &rpmPrinted{Package: p}, err
}

func (p *rpmPrinted) add(kind, text string) (known bool) {
	var into *strings.Builder
	switch kind {
	case "R":
		into = &p.requires
	case "V":
		into = &p.provides
	case "C":
		into = &p.conflicts
	case "O":
		into = &p.obsoletes
	case "F":
		into = &p.files
	default:
		return false
	}
	into.WriteString(text + "\n")
	return true
}

func (p *rpmPrinted) keep(known map[Package]control) {
	if p == nil || p.Name == "gpg-pubkey" {
		return
	}
	known[p.Package] = control{
		depends: p.requires.String(), provides: p.provides.String(), conflictsWith: p.conflicts.String(),
		obsoletes: p.obsoletes.String(), files: p.files.String(),
	}
}
