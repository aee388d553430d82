package etcmerge

import (
	"maps"
	"slices"

	"github.com/liveapply/liveapply/internal/accounts"
)

// AddAccounts returns the account files of ours, by name, with the entries that only theirs has. An entry that has a number of another one there
// is a ConflictError.
func AddAccounts(ours, theirs map[string][]byte) (map[string][]byte, error) {
	merges := map[string]*accounts.File{}
	for _, name := range accounts.Files() {
		if ours[name] != nil && theirs[name] != nil {
			merges[name] = &accounts.File{Ours: ours[name], Theirs: theirs[name]}
		}
	}
	accounts.Merge(merges)
	result := map[string][]byte{}
	var clashes []Conflict
	for _, name := range slices.Sorted(maps.Keys(merges)) {
		result[name] = merges[name].Result
		clashes = append(clashes, conflictsIn(merges[name], name)...)
	}
	if len(clashes) > 0 {
		return nil, &ConflictError{clashes}
	}
	return result, nil
}
