package report

import (
	"fmt"
	"regexp"
	"strconv"
)

// Counted is the status of a unit that counts: what it does, and how many of all it has done.
func Counted(what string, done int64, all int) string {
	return fmt.Sprintf("%s: %d of %d", what, done, all)
}

// counts are what Counted writes.
var counts = regexp.MustCompile(`: (\d+) of (\d+)$`)

// Share is how much of its work a unit has done, 0 to 1, by its status; false if that does not count.
func Share(status string) (share float64, counted bool) {
	found := counts.FindStringSubmatch(status)
	if found == nil {
		return 0, false
	}
	done, err1 := strconv.Atoi(found[1])
	all, err2 := strconv.Atoi(found[2])
	if err1 != nil || err2 != nil || done > all || all == 0 {
		return 0, false
	}
	return float64(done) / float64(all), true
}
