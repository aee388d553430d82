package pkgdb

import (
	"cmp"
	"strings"
)

// CompareDpkg orders two Debian versions, [epoch:]upstream[-revision], as dpkg --compare-versions does (deb-version(7);
// dpkg_version_compare). It takes any text, because dpkg's database can have versions that no policy allows, and numbers of any length:
// go-deb-version refuses the former, and takes all numbers above 2⁶³ for one. The result is -1, 0 or 1.
func CompareDpkg(a, b string) int {
	epochA, upstreamA, revisionA := splitDpkg(a)
	epochB, upstreamB, revisionB := splitDpkg(b)
	return cmp.Or(compareNumbers(epochA, epochB), verrevcmp(upstreamA, upstreamB), verrevcmp(revisionA, revisionB))
}

func splitDpkg(version string) (epoch, upstream, revision string) {
	epoch, upstream, ok := strings.Cut(version, ":")
	if !ok {
		epoch, upstream = "", version
	}
	if i := strings.LastIndexByte(upstream, '-'); i >= 0 {
		upstream, revision = upstream[:i], upstream[i+1:]
	}
	return epoch, upstream, revision
}

// verrevcmp compares what is no number and what is one in turn (verrevcmp in dpkg's version.c).
func verrevcmp(a, b string) int {
	for a != "" || b != "" {
		var wordA, wordB, numberA, numberB string
		wordA, a = span(a, isNoDigit)
		wordB, b = span(b, isNoDigit)
		numberA, a = span(a, isDigit)
		numberB, b = span(b, isDigit)
		if c := cmp.Or(compareWords(wordA, wordB), compareNumbers(numberA, numberB)); c != 0 {
			return c
		}
	}
	return 0
}

func compareWords(a, b string) int {
	for i := range max(len(a), len(b)) {
		if c := cmp.Compare(weight(a, i), weight(b, i)); c != 0 {
			return c
		}
	}
	return 0
}

// weight is the order of a character: a tilde is before the end, letters are before all others.
func weight(s string, i int) int {
	switch {
	case i >= len(s):
		return 0
	case s[i] == '~':
		return -1
	case isLetter(s[i]):
		return int(s[i])
	}
	return int(s[i]) + 256
}

// CompareRPM orders two versions [epoch:]version[-release] as rpm does (rpm-version(7); rpmverCmp): no epoch is 0, and no release is before
// any. The result is -1, 0 or 1.
func CompareRPM(a, b string) int {
	epochA, versionA, releaseA := splitRPM(a)
	epochB, versionB, releaseB := splitRPM(b)
	return cmp.Or(compareNumbers(epochA, epochB), rpmvercmp(versionA, versionB),
		cmp.Compare(min(1, len(releaseA)), min(1, len(releaseB))), rpmvercmp(releaseA, releaseB))
}

// splitRPM follows parseEVR: what is before a colon is an epoch only if it is a number. The release has its hyphen, which is nothing to
// rpmvercmp.
func splitRPM(evr string) (epoch, version, release string) {
	digits, rest := span(evr, isDigit)
	if strings.HasPrefix(rest, ":") {
		epoch, evr = digits, rest[1:]
	}
	if i := strings.LastIndexByte(evr, '-'); i >= 0 {
		return epoch, evr[:i], evr[i:]
	}
	return epoch, evr, ""
}

// compareReleases is CompareRPM for a relation, whose version may have no release (rpmverOverlap): then it is about every release of it, if
// it is about that version. The same goes for the version that is compared, with its operator.
func compareReleases(operator, version string, r relation) (order int, every bool) {
	epochA, versionA, releaseA := splitRPM(version)
	epochB, versionB, releaseB := splitRPM(r.version)
	if (releaseA == "") == (releaseB == "") {
		return CompareRPM(version, r.version), false
	}
	order = cmp.Or(compareNumbers(epochA, epochB), rpmvercmp(versionA, versionB))
	if releaseA == "" {
		return order, order == 0 && strings.Contains(operator, "=")
	}
	return order, order == 0 && strings.Contains(r.operator, "=")
}

// rpmvercmp compares segments of digits and of letters; what is between them only divides, but for a tilde, which is before the end,
// and a caret, which is after the end and before everything else (rpmvercmp.c).
func rpmvercmp(a, b string) int {
	for a != "" || b != "" {
		_, a = span(a, isSeparator)
		_, b = span(b, isSeparator)
		if special, c := compareSpecial(a, b); c != 0 {
			return c
		} else if special {
			a, b = a[1:], b[1:]
			continue
		}
		if a == "" || b == "" {
			break
		}
		kind := isLetter
		if isDigit(a[0]) {
			kind = isDigit
		}
		var segmentA, segmentB string
		segmentA, a = span(a, kind)
		segmentB, b = span(b, kind)
		if c := compareSegments(segmentA, segmentB); c != 0 {
			return c
		}
	}
	return min(1, len(a)) - min(1, len(b))
}

// compareSpecial compares tilde and caret; special means that both begin with the same of them.
func compareSpecial(a, b string) (special bool, order int) {
	for _, mark := range []struct {
		char       string
		againstEnd int
	}{{"~", -1}, {"^", 1}} {
		inA, inB := strings.HasPrefix(a, mark.char), strings.HasPrefix(b, mark.char)
		switch {
		case inA && inB:
			return true, 0
		case inA && b == "":
			return false, mark.againstEnd
		case inB && a == "":
			return false, -mark.againstEnd
		case inA:
			return false, -1
		case inB:
			return false, 1
		}
	}
	return false, 0
}

// compareSegments compares segments of one kind, that of the first: if the second has none, it is letters against a number, which is newer.
func compareSegments(a, b string) int {
	switch {
	case b == "" && isDigit(a[0]):
		return 1
	case b == "":
		return -1
	case isDigit(a[0]):
		return compareNumbers(a, b)
	}
	return strings.Compare(a, b)
}

// compareNumbers compares numbers of any length; nothing is 0.
func compareNumbers(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

// span divides s after the characters of a kind that it begins with.
func span(s string, is func(byte) bool) (head, tail string) {
	for i := range len(s) {
		if !is(s[i]) {
			return s[:i], s[i:]
		}
	}
	return s, ""
}

func isDigit(c byte) bool     { return c >= '0' && c <= '9' }
func isNoDigit(c byte) bool   { return !isDigit(c) }
func isLetter(c byte) bool    { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
func isSeparator(c byte) bool { return !isDigit(c) && !isLetter(c) && c != '~' && c != '^' }
