package fleetlock

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func writeID(t *testing.T, content string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "machine-id")
	if err := os.WriteFile(path, []byte(content), 0o444); err != nil {
		t.Fatal(err)
	}
	return path
}

// What systemd-id128 machine-id --app-specific=08296e0d11e54fd4acba49b0a2cd6899 says (systemd 252).
func TestMachineIDIsSystemds(t *testing.T) {
	for machine, want := range map[string]string{
		"0123456789abcdef0123456789abcdef": "9164c68a21d3499a843f0ec16b8ea40c",
		"ffffffffffffffffffffffffffffffff": "badc3595466a457fbb4d37aaa46ea893",
		"6f1c5e2a9b0d4e7f8a3b2c1d0e9f8a7b": "ee1e8810deaf4e2eaf37074b8a042f7f",
	} {
		if got, err := MachineID(writeID(t, machine+"\n")); got != want || err != nil {
			t.Errorf("of %s: got %s (%v), want %s", machine, got, err, want)
		}
	}
}

func TestMachineWithoutAnIDHasNone(t *testing.T) {
	for _, content := range []string{"", "\n", "uninitialized\n", strings.Repeat("0", 32) + "\n", "0123456789abcdef\n", strings.Repeat("f", 34)} {
		path := writeID(t, content)
		if got, err := MachineID(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("of %q: got %q (%v)", content, got, err)
		}
	}
	if _, err := MachineID("/nowhere/machine-id"); err == nil {
		t.Error("of no file: no error")
	}
}
