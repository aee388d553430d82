package etcmerge

import (
	"maps"
	"slices"
)

// AccountFiles are the names, below /etc, of the files that are merged by entry.
func AccountFiles() []string { return slices.Sorted(maps.Keys(accountFormats)) }

// AddAccounts returns the account files of ours, by name, with the entries that only theirs has. An entry that has a number of another one there
// is a ConflictError.
func AddAccounts(ours, theirs map[string][]byte) (map[string][]byte, error) {
	merges := map[string]*accountMerge{}
	for _, name := range AccountFiles() {
		if ours[name] != nil && theirs[name] != nil {
			merges[name] = &accountMerge{ours: ours[name], theirs: theirs[name]}
		}
	}
	mergeAccounts(merges)
	result := map[string][]byte{}
	var clashes []Conflict
	for _, name := range slices.Sorted(maps.Keys(merges)) {
		result[name] = merges[name].result
		clashes = append(clashes, merges[name].clashes(name)...)
	}
	if len(clashes) > 0 {
		return nil, &ConflictError{clashes}
	}
	return result, nil
}
