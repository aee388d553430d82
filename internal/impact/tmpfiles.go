package impact

import (
	"path"
	"slices"
	"strings"

	"github.com/liveapply/liveapply/internal/treediff"
)

// tmpfilesChanging are the types of lines of tmpfiles.d(5) that change or remove what is there, and tmpfilesReplacing those that do with a +.
const (
	tmpfilesChanging  = "wFzZmtThHaArRD"
	tmpfilesReplacing = "fLCpbc"
)

// TmpfilesPlaces are where systemd-tmpfiles is let while a commit is applied: wherever the boot would complete something beside /usr and /etc. On OSTree systems, most of
// them lead into /var.
var TmpfilesPlaces = []string{"/run", "/var", "/home", "/media", "/mnt", "/opt", "/root", "/srv", "/tmp"}

// tmpfilesSpecifiers stand for places there.
var tmpfilesSpecifiers = []string{"%t", "%S", "%C", "%L", "%V", "%T", "%h"}

// TmpfilesChanges returns the lines of a fragment of tmpfiles.d that do more in these places than add what is missing.
func TmpfilesChanges(content string) []string {
	var lines []string
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(line, "#") {
			continue
		}
		if does, where := unquoted(fields[0]), unquoted(fields[1]); isChanging(does) && isInPlace(where) {
			lines = append(lines, line)
		}
	}
	return lines
}

func isChanging(does string) bool {
	if does == "" {
		return false
	}
	return strings.Contains(tmpfilesChanging, does[:1]) || strings.Contains(does, "=") ||
		strings.Contains(tmpfilesReplacing, does[:1]) && strings.Contains(does, "+")
}

func isInPlace(where string) bool {
	where = path.Clean(where)
	return slices.ContainsFunc(slices.Concat(TmpfilesPlaces, tmpfilesSpecifiers), func(prefix string) bool { return treediff.Within(where, prefix) })
}

// unquoted takes the quotes off a word; the end of one with spaces is not needed.
func unquoted(word string) string { return strings.Trim(word, `"'`) }
