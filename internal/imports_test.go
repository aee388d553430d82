package internal_test

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const prefix = "github.com/liveapply/liveapply/internal/"

// The list of packages in docs/architecture.md says which may import which, and is complete.
func TestImportsPointDownTheListOfPackages(t *testing.T) {
	page, err := os.ReadFile("../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(page), "    internal/\n")
	list, _, _ = strings.Cut(list, "    test/")
	var order []string
	for _, line := range regexp.MustCompile(`(?m)^ {6}(\S+/(?:, \S+/)*) `).FindAllStringSubmatch(list, -1) {
		for _, name := range strings.Split(line[1], ", ") {
			order = append(order, strings.TrimSuffix(name, "/"))
		}
	}
	output, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	knowSystemd := []string{"bus", "report", "services", "systemd", "config"}
	looked := 0
	for line := range strings.Lines(string(output)) {
		imports := strings.Fields(line)
		name, isOurs := strings.CutPrefix(imports[0], prefix)
		if !isOurs || name == "ostree/ostreetest" { // for tests
			continue
		}
		at := slices.Index(order, name)
		if at < 0 {
			t.Errorf("%s is not in the list", name)
			continue
		}
		looked++
		for _, path := range imports[1:] {
			if imported, isOurs := strings.CutPrefix(path, prefix); isOurs && imported != "ostree/ostreetest" && slices.Index(order, imported) < at {
				t.Errorf("%s imports %s, which is above it in the list", name, imported)
			}
			if (strings.Contains(path, "go-systemd/") || strings.Contains(path, "godbus/")) && !slices.Contains(knowSystemd, name) {
				t.Errorf("%s imports %s", name, path)
			}
		}
	}
	if looked < 20 {
		t.Errorf("only %d packages were found", looked)
	}
}
