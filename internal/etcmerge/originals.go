package etcmerge

import "path/filepath"

// Originals tells, of each path that the journal has, where what a Reset would bring back can be looked at: a file or a link, with its owner and mode. It
// is "" where nothing was, or a directory. It reads the journal and nothing else, also while somebody changes /etc.
func Originals(dirs Dirs) (map[string]string, error) {
	j, err := readJournal(dirs)
	if err != nil {
		return nil, err
	}
	originals := map[string]string{}
	for _, section := range []section{j.Current, j.Committed} { // what both have was there first as the latter says
		for _, r := range section.Records {
			originals[r.Path] = ""
			if r.Saved != "" {
				originals[r.Path] = filepath.Join(dirs.Store, savedName, r.Saved)
			}
		}
	}
	return originals, nil
}
