package underlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Stack is what is to be shown at Path: layers above the booted tree.
type Stack struct {
	Source Source
	Layers []string // directories, topmost first; there is one at least, or Upper

	// Upper is the directory of a writable overlay that takes what is written, "" for none, and Work a directory on the same
	// filesystem in which there is one of overlayfs's own for each mount. No other mount may write there.
	Upper, Work string
}

// check returns an error if a stack cannot be mounted, whatever the kernel is.
func (s Stack) check() error {
	if parsed, ok := ParseSource(s.Source.String()); !ok || parsed.Live != s.Source.Live || parsed.Digest != s.Source.Digest {
		return fmt.Errorf("%q is no source that Inspect would know again", s.Source)
	}
	if len(s.Layers) == 0 && s.Upper == "" {
		return errors.New("there is no layer; without one, the tree is the booted one")
	}
	if (s.Upper == "") != (s.Work == "") {
		return errors.New("an upper directory needs a work directory, and the other way round")
	}
	for _, dir := range s.directories() {
		if _, err := os.Lstat(dir); err != nil {
			return fmt.Errorf("layer: %w", err)
		}
	}
	return nil
}

func (s Stack) writable() bool { return s.Upper != "" }

// directories returns the upper and the work directory, if there are any, and the layers.
func (s Stack) directories() []string {
	if !s.writable() {
		return s.Layers
	}
	return append([]string{s.Upper, s.Work}, s.Layers...)
}

// withOwnWork returns the stack with a new directory in Work in the place of Work. Overlayfs makes that empty when it starts, so a tree that uses it
// could not be written any more, should it stay.
func (s Stack) withOwnWork() (Stack, error) {
	if !s.writable() {
		return s, nil
	}
	var err error
	s.Work, err = os.MkdirTemp(s.Work, "")
	return s, err
}

// dropOtherWork removes what withOwnWork has made before: for trees that are no longer written, or never were mounted. What
// cannot be removed is tried again with the next one.
func (s Stack) dropOtherWork() {
	if !s.writable() {
		return
	}
	all, _ := os.ReadDir(filepath.Dir(s.Work))
	for _, entry := range all {
		if entry.Name() != filepath.Base(s.Work) {
			os.RemoveAll(filepath.Join(filepath.Dir(s.Work), entry.Name()))
		}
	}
}

// above returns the stack with the booted tree as its lowest layer.
func (s Stack) above(booted string) Stack {
	s.Layers = append(s.Layers[:len(s.Layers):len(s.Layers)], booted)
	return s
}

// readOnly returns a stack that shows the same and writes nowhere.
func (s Stack) readOnly() Stack {
	if s.writable() {
		s.Layers = append([]string{s.Upper}, s.Layers...)
		s.Upper, s.Work = "", ""
	}
	return s
}

// Base is what a source has in the place of the commit on a system without OSTree.
const Base = "base"

// maxSource is how long a source can be, in bytes: fsconfig(2) takes little more.
const maxSource = 250

// cut is what a list of names ends with that is longer than a source can be.
const cut = "…"

// Source names a stack in the mount table: "liveapply:<live>", or "liveapply:<live>+<digest>:<name>,<name>…". The names are as many as fit;
// the digest tells any two stacks apart.
type Source struct {
	Live   string   // the commit that is live, or Base
	Digest string   // of the overlays, in hexadecimal digits; "" without overlays
	Names  []string // of the overlays, topmost first, of letters, digits, '.', '_' and '-'. The last one is "…" if there are more
}

// String returns the source as the mount table has it.
func (s Source) String() string {
	text := sourcePrefix + s.Live
	if s.Digest == "" {
		return text
	}
	text += "+" + s.Digest + ":"
	for i, name := range s.Names {
		separator, rest := ",", len(","+cut)
		if i == 0 {
			separator = ""
		}
		if i == len(s.Names)-1 {
			rest = 0
		}
		if len(text)+len(separator)+len(name)+rest > maxSource {
			return text + separator + cut
		}
		text += separator + name
	}
	return text
}

// HasMore tells whether there are overlays that Names had no room for.
func (s Source) HasMore() bool { return slices.Contains(s.Names, cut) }

// sourcePrefix starts the source of every overlay that is ours.
const sourcePrefix = "liveapply:"

var sourceFormat = regexp.MustCompile(`^` + sourcePrefix + `([\w.-]+)(?:\+([0-9a-f]+):((?:[\w.-]+,)*(?:[\w.-]+|` + cut + `)))?$`)

// ParseSource reads the source of a mount. It returns false if it is none of ours.
func ParseSource(text string) (Source, bool) {
	parts := sourceFormat.FindStringSubmatch(text)
	if parts == nil {
		return Source{}, false
	}
	source := Source{Live: parts[1], Digest: parts[2]}
	if source.Digest != "" {
		source.Names = strings.Split(parts[3], ",")
	}
	return source, true
}
