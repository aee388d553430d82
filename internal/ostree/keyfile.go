package ostree

import (
	"fmt"
	"strings"
)

// keyfile is a parsed GKeyFile: group → key → value.
type keyfile map[string]map[string]string

// parseKeyfile reads what GKeyFile reads: groups in brackets, key=value with optional space around the equals
// sign, comments after #. A later key replaces an earlier one. Values stay escaped.
func parseKeyfile(data []byte) (keyfile, error) {
	file, group := keyfile{}, ""
	for number, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if line[0] == '[' && strings.HasSuffix(line, "]") {
			group = line[1 : len(line)-1]
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || group == "" {
			return nil, fmt.Errorf("line %d is neither a [group] nor a key=value in one", number+1)
		}
		if file[group] == nil {
			file[group] = map[string]string{}
		}
		file[group][strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	return file, nil
}

// get returns the value of a key, or "" when the file does not have it.
func (k keyfile) get(group, key string) string { return k[group][key] }
