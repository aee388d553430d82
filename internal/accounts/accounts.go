// Package accounts merges account files (passwd(5), group(5), shadow(5), gshadow(5), subuid(5), subgid(5)) three ways, by entry. All of it is pure: bytes in, bytes
// out.
package accounts

import (
	"bytes"
	"maps"
	"slices"
	"strings"
)

// format is how the entries of an account file are told apart and merged.
type format struct {
	lists  []int  // fields that are lists of names: members are merged one by one
	shadow string // the file that has the passwords of this one's entries
	ids    idField
}

// idField says where an entry has the numbers that no other entry may have.
type idField int

const (
	noID     idField = iota
	oneID            // field 2: passwd(5), group(5)
	idRanges         // fields 1 and 2, start and count: subuid(5), subgid(5); an owner may have several
)

var formats = map[string]format{
	"passwd":  {shadow: "shadow", ids: oneID},
	"group":   {lists: []int{3}, shadow: "gshadow", ids: oneID},
	"shadow":  {},
	"gshadow": {lists: []int{2, 3}},
	"subuid":  {ids: idRanges},
	"subgid":  {ids: idRanges},
}

// Files are the names, below /etc, of the files that are merged by entry.
func Files() []string { return slices.Sorted(maps.Keys(formats)) }

// ShadowOf names the file that has the passwords of the entries of another one; "" if there is none.
func ShadowOf(path string) string { return formats[path].shadow }

// Is tells whether a path below /etc is an account file.
func Is(path string) bool {
	_, ok := formats[path]
	return ok
}

// File is a three-way merge of one account file. Going forth: base is the old default, ours what is in /etc, theirs the new
// default. Going back: base is what was put, ours what is in /etc, theirs what was there before.
type File struct {
	Base, Ours, Theirs []byte
	Result             []byte // set by Merge
}

// Merge fills in the results, by path. A user or group that comes or goes does so in passwd and shadow, group and gshadow alike.
func Merge(files map[string]*File) {
	for path, f := range files {
		f.Result = mergeEntries(path, f.Base, f.Ours, f.Theirs)
	}
	for path, format := range formats {
		names, shadow := files[path], files[format.shadow]
		if names != nil && shadow != nil {
			alignShadow(names, shadow)
		}
	}
}

// entry is a line of an account file.
type entry struct {
	key  entryKey // tells which lines of two files are about the same
	name string   // "" for comments, NIS lines ("+", "-@group") and whatever else is no entry
	text string
}

// entryKey is an entry's name, or the whole line where a name may have several or there is none.
type entryKey struct {
	text  string
	named bool
}

// parseEntries splits an account file into lines.
func parseEntries(path string, content []byte) []entry {
	if len(content) == 0 {
		return nil
	}
	lines := strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
	entries := make([]entry, 0, len(lines))
	for _, line := range lines {
		e := entry{key: entryKey{text: line}, text: line}
		name, _, ok := strings.Cut(line, ":")
		if ok && name != "" && !strings.ContainsAny(name[:1], "+-#") {
			e.name = name
			if formats[path].ids != idRanges {
				e.key = entryKey{text: name, named: true}
			}
		}
		entries = append(entries, e)
	}
	return entries
}

// byKey finds entries. Of several with one key the first counts, as it does for getpwnam(3).
func byKey(entries []entry) map[entryKey]entry {
	m := make(map[entryKey]entry, len(entries))
	for _, e := range slices.Backward(entries) {
		m[e.key] = e
	}
	return m
}

func formatEntries(entries []entry) []byte {
	var b bytes.Buffer
	for _, e := range entries {
		b.WriteString(e.text)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// mergeEntries merges an account file three ways, by entry. An entry that ours changed, added or removed against base is as in ours; all others
// are as in theirs. Ours keeps its order; what arrives comes behind the entry that it follows in theirs.
func mergeEntries(path string, base, ours, theirs []byte) []byte {
	switch {
	case bytes.Equal(theirs, base), bytes.Equal(theirs, ours):
		return ours
	case bytes.Equal(ours, base):
		return theirs
	}
	baseLines, ourLines, theirLines := parseEntries(path, base), parseEntries(path, ours), parseEntries(path, theirs)
	if slices.Equal(ourLines, baseLines) { // only the newline at the end is another one
		return theirs
	}
	inBase, inOurs, inTheirs := byKey(baseLines), byKey(ourLines), byKey(theirLines)

	behind := map[entryKey][]entry{}   // what arrives, by the key of the line before it
	beginning := entryKey{named: true} // no line's: no name is empty
	anchor := beginning
	arrived := map[entryKey]bool{}
	for _, t := range theirLines {
		_, wasThere := inBase[t.key]
		_, isOurs := inOurs[t.key]
		switch {
		case isOurs && (t.name != "" || strings.HasPrefix(t.text, "#")):
			anchor = t.key // never behind a NIS line: what follows one is not seen by all readers
		case !isOurs && !wasThere && !arrived[t.key]:
			arrived[t.key] = true
			behind[anchor] = append(behind[anchor], t)
		}
	}

	result := slices.Clone(behind[beginning])
	for _, o := range ourLines {
		b, wasThere := inBase[o.key]
		t, isTheirs := inTheirs[o.key]
		if isTheirs {
			o.text = mergeEntry(formats[path].lists, b.text, o.text, t.text)
		}
		if isTheirs || !wasThere || o.text != b.text {
			result = append(result, o)
		}
		result = append(result, behind[o.key]...)
		delete(behind, o.key)
	}
	return formatEntries(result)
}

// mergeEntry merges one entry that ours and theirs have. base is "" if it had none.
func mergeEntry(lists []int, base, ours, theirs string) string {
	switch {
	case ours == base:
		return theirs
	case theirs == base, theirs == ours, len(lists) == 0:
		return ours
	}
	b, o, t := strings.Split(base, ":"), strings.Split(ours, ":"), strings.Split(theirs, ":")
	if base == "" {
		b = make([]string, len(o))
	}
	if len(o) != len(t) || len(o) != len(b) {
		return ours
	}
	for i := range o {
		switch {
		case slices.Contains(lists, i):
			o[i] = mergeNames(b[i], o[i], t[i])
		case o[i] == b[i]:
			o[i] = t[i]
		}
	}
	return strings.Join(o, ":")
}

// mergeNames merges lists of names: what theirs added comes, what theirs removed goes.
func mergeNames(base, ours, theirs string) string {
	b, o, t := splitNames(base), splitNames(ours), splitNames(theirs)
	inBase, inOurs, inTheirs := setOf(b), setOf(o), setOf(t)
	var result []string
	for _, name := range o {
		if inTheirs[name] || !inBase[name] {
			result = append(result, name)
		}
	}
	for _, name := range t {
		if !inBase[name] && !inOurs[name] {
			result = append(result, name)
			inOurs[name] = true
		}
	}
	return strings.Join(result, ",")
}

func splitNames(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

func setOf(names []string) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, name := range names {
		set[name] = true
	}
	return set
}

// alignShadow makes the shadow file follow what the merge decided about the names: an entry that one side changed in one file and the other
// removed from both would otherwise stay in one only.
func alignShadow(names, shadow *File) {
	had, has := namesIn(names.Ours), namesIn(names.Result)
	var kept []entry
	in := map[string]bool{}
	for _, e := range parseEntries("shadow", shadow.Result) {
		if e.name != "" && had[e.name] && !has[e.name] {
			continue
		}
		in[e.name] = true
		kept = append(kept, e)
	}
	arrive := func(from []byte, wanted func(name string) bool) {
		for _, e := range parseEntries("shadow", from) {
			if e.name != "" && has[e.name] && !in[e.name] && wanted(e.name) {
				in[e.name] = true
				kept = append(kept, e)
			}
		}
	}
	arrive(shadow.Ours, func(string) bool { return true })
	arrive(shadow.Theirs, func(name string) bool { return !had[name] })
	if result := formatEntries(kept); !bytes.Equal(result, formatEntries(parseEntries("shadow", shadow.Result))) {
		shadow.Result = result
	}
}

// namesIn returns the users or groups that a file has.
func namesIn(content []byte) map[string]bool {
	names := map[string]bool{}
	for _, e := range parseEntries("passwd", content) {
		if e.name != "" {
			names[e.name] = true
		}
	}
	return names
}
