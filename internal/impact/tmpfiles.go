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

// tmpfilesPrefixes are where systemd-tmpfiles is let, as they are and by the specifiers that stand for places there.
var tmpfilesPrefixes = []string{"/run", "/var", "%t", "%S", "%C", "%L", "%V"}

// TmpfilesChanges returns the lines of a fragment of tmpfiles.d that do more below /run and /var than add what is missing.
func TmpfilesChanges(content string) []string {
	var lines []string
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(line, "#") {
			continue
		}
		if does, where := unquoted(fields[0]), unquoted(fields[1]); isChanging(does) && isBelowRunOrVar(where) {
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

func isBelowRunOrVar(where string) bool {
	where = path.Clean(where)
	return slices.ContainsFunc(tmpfilesPrefixes, func(prefix string) bool { return treediff.Within(where, prefix) })
}

// unquoted takes the quotes off a word; the end of one with spaces is not needed.
func unquoted(word string) string { return strings.Trim(word, `"'`) }
