package pkgdb

import (
	"errors"
	"fmt"
	"strings"

	"github.com/liveapply/liveapply/internal/ostree"
)

// readStatus reads the status file, and status.d, in which images without dpkg (distroless) have a file for each package. Where
// both have a package, the status file counts, which is dpkg's own.
func (db *Database) readStatus() error {
	o := db.origin
	if o.status.Kind != ostree.KindNone {
		if err := db.readStanzas(o.status.Checksum, false); err != nil {
			return err
		}
	}
	if o.parts.Kind == ostree.KindNone {
		return nil
	}
	type key struct{ name, arch string }
	whole := map[key]bool{}
	for _, p := range db.Packages {
		whole[key{p.Name, p.Arch}] = true
	}
	n := len(db.Packages)
	if err := db.readParts(); err != nil {
		return err
	}
	packages, controls := db.Packages[:n], db.controls[:n]
	for i := n; i < len(db.Packages); i++ {
		if p := db.Packages[i]; !whole[key{p.Name, p.Arch}] {
			packages, controls = append(packages, p), append(controls, db.controls[i])
		}
	}
	db.Packages, db.controls = packages, controls
	return nil
}

// readParts reads the files of status.d. Beside <package> is <package>.md5sums.
func (db *Database) readParts() error {
	dirtree, err := db.origin.dirtree(db.origin.parts)
	if err != nil {
		return err
	}
	for _, file := range dirtree.Files {
		if strings.HasSuffix(file.Name, ".md5sums") {
			continue
		}
		if err := db.readStanzas(file.Checksum, true); err != nil {
			return fmt.Errorf("status.d/%s: %w", file.Name, err)
		}
	}
	return nil
}

func (db *Database) readStanzas(c ostree.Checksum, part bool) error {
	data, err := db.origin.repo.ReadFile(c, maxStatus)
	if err != nil {
		return err
	}
	return db.parseStatus(string(data), part)
}

// parseStatus adds the packages of a status file (deb-control(5); dpkg's parsedb): stanzas with an empty line between them, of fields
// "Name: value", which a line that begins with a blank continues. A part, a file of status.d, says nothing about the state of a
// package: it is installed.
func (db *Database) parseStatus(text string, part bool) error {
	return eachStanza(text, part, func(s *stanza, _ string) error {
		p, installed, err := s.parse()
		if err == nil && installed {
			db.Packages, db.controls = append(db.Packages, p), append(db.controls, s.control())
		}
		return err
	})
}

// eachStanza calls a function with each stanza of a text, and with the lines that it consists of.
func eachStanza(text string, part bool, call func(s *stanza, lines string) error) error {
	s := stanza{text: text, part: part}
	for line, begin, next := 1, 0, 0; next < len(text); line++ {
		start, end := next, len(text)
		if n := strings.IndexByte(text[start:], '\n'); n >= 0 {
			end = start + n
		}
		next = end + 1
		err := s.add(start, end)
		if err == nil && (start == end || next >= len(text)) {
			err = call(&s, text[begin:end])
			s, begin = stanza{text: text, part: part}, next
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", line, err)
		}
	}
	return nil
}

// field is a field that is read. The others, of which only the form is looked at, are unread.
type field int

const (
	packageField field = iota
	statusField
	versionField
	archField
	multiArchField
	preDependsField
	dependsField
	providesField
	breaksField
	conflictsField
	unread
)

// fieldOf knows a field by its name, in any case. Most lines are those of descriptions, so the length decides first.
func fieldOf(name string) field {
	for f, known := range [unread]string{
		"Package", "Status", "Version", "Architecture", "Multi-Arch", "Pre-Depends", "Depends", "Provides", "Breaks", "Conflicts",
	} {
		if len(known) == len(name) && strings.EqualFold(known, name) {
			return field(f)
		}
	}
	return unread
}

// stanza is one that is being read. Values are parts of the text, so that reading takes no more memory than the packages do.
type stanza struct {
	text   string
	part   bool
	begun  bool
	last   field // which a line that begins with a blank continues
	from   int   // where its value begins
	values [unread]string
	given  [unread]bool
}

// add takes the line from start to end.
func (s *stanza) add(start, end int) error {
	line := s.text[start:end]
	if line == "" {
		return nil
	}
	if line[0] == ' ' || line[0] == '\t' {
		return s.continued(line, end)
	}
	name, _, ok := strings.Cut(line, ":")
	if !ok || strings.ContainsAny(name, " \t\r") || name == "" {
		return fmt.Errorf("%.64q is no field", line)
	}
	s.begun, s.last, s.from = true, fieldOf(name), start+len(name)+1
	if s.last == unread {
		return nil
	}
	if s.given[s.last] {
		return fmt.Errorf("a second field %s", name)
	}
	s.given[s.last], s.values[s.last] = true, s.value(end)
	return nil
}

// value is that of the field whose last line, so far, ends at end.
func (s *stanza) value(end int) string { return strings.Trim(s.text[s.from:end], " \t\r\n") }

func (s *stanza) continued(line string, end int) error {
	switch {
	case !s.begun:
		return fmt.Errorf("%.64q continues no field", line)
	case s.last == unread:
		return nil
	case s.last < preDependsField:
		return fmt.Errorf("%.64q continues a field of one line", line)
	}
	s.values[s.last] = s.value(end)
	return nil
}

// parse returns the package, and whether it is installed. Of one that is not, dpkg keeps what is left of its configuration.
func (s *stanza) parse() (p Package, installed bool, err error) {
	if !s.begun {
		return Package{}, false, nil
	}
	p = Package{Name: s.values[packageField], Version: s.values[versionField], Arch: s.values[archField]}
	if p.Name == "" {
		return Package{}, false, errors.New("the stanza that ends here names no package")
	}
	if installed, err = s.installed(); err != nil || !installed {
		return Package{}, false, err
	}
	if p.Arch == "" {
		return Package{}, false, fmt.Errorf("package %.64q has no architecture", p.Name)
	}
	return p, true, p.check()
}

// installed tells whether the tree has the package's files. Its state is the last of three words; that of one whose triggers, or whose
// configuration, is left for the first boot is not "installed".
func (s *stanza) installed() (bool, error) {
	if s.part && !s.given[statusField] {
		return true, nil
	}
	words := strings.Fields(s.values[statusField])
	if len(words) != 3 {
		return false, fmt.Errorf("package %.64q has the status %.64q, which is not three words", s.values[packageField], s.values[statusField])
	}
	switch words[2] {
	case "installed", "triggers-pending", "triggers-awaited", "half-configured", "unpacked":
		return true, nil
	case "not-installed", "config-files", "half-installed":
		return false, nil
	}
	return false, fmt.Errorf("package %.64q has the state %.64q, which is unknown", s.values[packageField], words[2])
}

func (s *stanza) control() control {
	return control{
		multiArch:     s.values[multiArchField],
		preDepends:    s.values[preDependsField],
		depends:       s.values[dependsField],
		provides:      s.values[providesField],
		breaks:        s.values[breaksField],
		conflictsWith: s.values[conflictsField],
	}
}

// check refuses what no package is called: names and versions are shown on terminals.
func (p Package) check() error {
	if p.Name == "" || p.Version == "" {
		return fmt.Errorf("a package is named %.64q and has version %.64q", p.Name, p.Version)
	}
	for _, text := range []string{p.Name, p.Version, p.Arch} {
		if strings.IndexFunc(text, notGraphic) >= 0 {
			return fmt.Errorf("package %.64q, version %.64q, architecture %.64q: not only of ASCII characters that show", p.Name, p.Version, p.Arch)
		}
	}
	return nil
}

func notGraphic(r rune) bool { return r <= ' ' || r > '~' }
