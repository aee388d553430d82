//go:build nspawn

package nspawn_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
)

// docs/security.md has a row for each service, with its exposure level as systemd 257 sees it.
func TestExposureOfTheUnitsIsDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(liveapply[^`]*\\.service)` \\| ([0-9.]+) \\| .+ \\|$").FindAllStringSubmatch(string(page), -1) {
		documented[row[1]] = row[2]
	}
	m, commit := productMachine(t, nspawn.Trixie, nspawn.Options{})
	level := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+) `)
	for _, unit := range strings.Fields(m.Run("sh", "-c", "cd /usr/lib/systemd/system && ls -d liveapply*.service")) {
		result := m.Try("systemd-analyze", "security", "--no-pager", strings.Replace(unit, "@.", "@"+commit+".", 1))
		found := level.FindStringSubmatch(result.Stdout)
		if result.Code != 0 || result.Stderr != "" || found == nil {
			t.Errorf("systemd-analyze security %s: exit status %d\n%s%s", unit, result.Code, result.Stdout, result.Stderr)
			continue
		}
		if documented[unit] != found[1] {
			t.Errorf("docs/security.md has %q for %s, its exposure level is %s", documented[unit], unit, found[1])
		}
		delete(documented, unit)
	}
	if len(documented) > 0 {
		t.Errorf("docs/security.md has rows for units that are not installed: %s", fmt.Sprint(documented))
	}
}
