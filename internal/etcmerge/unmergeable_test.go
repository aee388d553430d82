package etcmerge

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// libostree is the judge: what is found is what it refuses to merge, and it refuses nothing else of this kind.
func TestReplacedDirectoriesAreWhatOSTreeCannotMerge(t *testing.T) {
	const defaults = "mkdir -p a/deep b c; echo 1 > a/file; echo 1 > a/deep/file; echo 1 > b/file; echo 1 > c/file; echo 1 > file"
	for _, test := range []struct {
		name, edit string
		want       []string
	}{
		{"nothing", "", nil},
		{"a file for a directory", "rm -r b; echo mine > b", []string{"b"}},
		{"a link for a directory below", "rm -r a/deep; ln -s ../b a/deep", []string{"a/deep"}},
		{"a directory deleted", "rm -r a", nil},
		{"a file changed", "echo mine > a/file", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newTestLab(t, defaults, "echo 2 > file")
			sh(t, l.dirs.Etc, test.edit)
			got, err := ReplacedDirectories(filepath.Join(filepath.Dir(l.dirs.Etc), "usr/etc"), l.dirs.Etc)
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("got %v (%v), want %v", got, err, test.want)
			}
			output, err := exec.Command("ostree", "admin", "--sysroot="+l.sys, "deploy", "--os=lab", "v2").CombinedOutput()
			sh(t, l.sys, "chattr -i ostree/deploy/lab/deploy/*.?")
			if refused := err != nil && strings.Contains(string(output), "cannot merge"); refused != (test.want != nil) || err != nil && !refused {
				t.Errorf("libostree: %v: %s", err, output)
			}
		})
	}
}
