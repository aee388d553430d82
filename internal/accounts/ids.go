package accounts

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// idRange is a range of numbers that an entry of an account file has for itself.
type idRange struct {
	first, last uint64
	owner       string
	arrives     bool // it was not in ours
	local       bool // it is not in theirs
}

// Clash is a number that two entries of a merged file would have.
type Clash struct {
	Path   string // of the file, below /etc
	Reason string // what is wrong, and what to do
}

// Clashes tells where an entry that arrives has a number that a local one has already. Two entries of the target, or two local ones, that
// share a number do so on purpose.
func (f *File) Clashes(path string) []Clash {
	format := formats[path]
	if format.ids == noID {
		return nil
	}
	ours, theirs := rangesIn(path, f.Ours), rangesIn(path, f.Theirs)
	var all []idRange
	for r := range rangesIn(path, f.Result) {
		_, isOurs := ours[r]
		_, isTheirs := theirs[r]
		r.arrives, r.local = !isOurs, !isTheirs
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b idRange) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.last, b.last), strings.Compare(a.owner, b.owner))
	})
	var found []Clash
	var arrived, local reach
	for i := range all {
		r := &all[i]
		if other := local.into(r); r.arrives && other != nil {
			found = append(found, format.clash(path, *r, *other))
		}
		if other := arrived.into(r); r.local && other != nil {
			found = append(found, format.clash(path, *other, *r))
		}
		if r.arrives {
			arrived.add(r)
		}
		if r.local {
			local.add(r)
		}
	}
	return found
}

// reach is how far the ranges of a sort reach, of those that begin no later than the present one.
type reach struct {
	far   *idRange // the one that reaches farthest
	other *idRange // the one of another owner than far that does
}

func (x *reach) add(r *idRange) {
	switch {
	case x.far == nil, r.last > x.far.last && r.owner == x.far.owner:
		x.far = r
	case r.owner == x.far.owner:
	case r.last > x.far.last:
		x.far, x.other = r, x.far
	case x.other == nil || r.last > x.other.last:
		x.other = r
	}
}

// into returns a range of another owner that reaches into r, nil if none does.
func (x *reach) into(r *idRange) *idRange {
	found := x.far
	if found != nil && found.owner == r.owner {
		found = x.other
	}
	if found == nil || found.last < r.first {
		return nil
	}
	return found
}

// rangesIn returns the numbers that a file gives to its entries. What is no number has none.
func rangesIn(path string, content []byte) map[idRange]struct{} {
	set := map[idRange]struct{}{}
	for _, e := range parseEntries(path, content) {
		fields := strings.Split(e.text, ":")
		if e.name == "" || len(fields) < 3 {
			continue
		}
		r := idRange{owner: e.name}
		if formats[path].ids == idRanges {
			start, err := strconv.ParseUint(fields[1], 10, 32)
			count, err2 := strconv.ParseUint(fields[2], 10, 32)
			if err != nil || err2 != nil || count == 0 {
				continue
			}
			r.first, r.last = start, start+count-1
		} else {
			id, err := strconv.ParseUint(fields[2], 10, 32)
			if err != nil {
				continue
			}
			r.first, r.last = id, id
		}
		set[r] = struct{}{}
	}
	return set
}

// clash says what to do. Names are cut where no real one is as long (LOGIN_NAME_MAX): one is told of many times.
func (f format) clash(path string, arriving, local idRange) Clash {
	arriving.owner, local.owner = fmt.Sprintf("%.256s", arriving.owner), fmt.Sprintf("%.256s", local.owner)
	if f.ids == idRanges {
		return Clash{path, fmt.Sprintf("the target gives %s the ids %d to %d, but the local owner %s has %d to %d: give %s another range, and apply again",
			arriving.owner, arriving.first, arriving.last, local.owner, local.first, local.last, local.owner)}
	}
	what, id, command := "user", "uid", "usermod -u"
	if path == "group" {
		what, id, command = "group", "gid", "groupmod -g"
	}
	return Clash{path, fmt.Sprintf("the target's %s %s and the local %s %s both have the %s %d: give %s another one (%s), change the owner of its files, and apply again",
		what, arriving.owner, what, local.owner, id, arriving.first, local.owner, command)}
}
