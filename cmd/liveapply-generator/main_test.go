package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestGenerate(t *testing.T) {
	const left = "ostree/deploy/debian/backing/c0ffee.0/liveapply"
	for _, test := range []struct {
		name  string
		files []string
		want  bool
	}{
		{"not booted from OSTree", []string{left + "/layers"}, false},
		{"nothing to recover", []string{"run/ostree-booted", "ostree/deploy/debian/backing/c0ffee.0/work"}, false},
		{"something to recover", []string{"run/ostree-booted", left + "/etc"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			root, dir := t.TempDir(), t.TempDir()
			for _, file := range test.files {
				if err := os.MkdirAll(filepath.Join(root, file), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := generate(root, dir); err != nil {
				t.Fatal(err)
			}
			link := filepath.Join(dir, "sysinit.target.wants/liveapply-recover.service")
			if target, err := os.Readlink(link); test.want && (err != nil || target != filepath.Join(unitDir, "liveapply-recover.service")) {
				t.Errorf("%s leads to %q (%v)", link, target, err)
			}
			if made, err := os.ReadDir(dir); err != nil || len(made) > 0 != test.want {
				t.Errorf("made %v (%v)", made, err)
			}
		})
	}
}

func TestGenerateFailsWithoutItsDirectory(t *testing.T) {
	root := t.TempDir()
	for _, file := range []string{"run/ostree-booted", "ostree/deploy/debian/backing/c0ffee.0/liveapply"} {
		if err := os.MkdirAll(filepath.Join(root, file), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := generate(root, dir); err == nil {
		t.Error("no error")
	}
}
