package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A oneshot has no time limit unless it says so (TimeoutStartSec= of systemd.service(5)): a phase that hangs would hold the machine's lock for good.
func TestUnitsOfTheHelperHaveATimeLimit(t *testing.T) {
	units, err := filepath.Glob("../../units/*.service.in")
	if err != nil || len(units) == 0 {
		t.Fatalf("there are %d units (%v)", len(units), err)
	}
	looked := 0
	for _, unit := range units {
		content, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		text := string(content)
		for command, limit := range map[string]string{"\nExecStart=@helper@ ": "\nTimeoutStartSec=", "\nExecStop=@helper@ ": "\nTimeoutStopSec="} {
			if !strings.Contains(text, command) || strings.Contains(text, "ExecStart=@helper@ staged") { // which waits for others
				continue
			}
			looked++
			if !strings.Contains(text, limit) {
				t.Errorf("%s has a command of the helper, and no %s", unit, strings.TrimSpace(limit))
			}
		}
	}
	if looked < 10 {
		t.Errorf("only %d units of the helper were found", looked)
	}
}
