package etcmerge

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOriginalsAreWhatWasThereBeforeTheFirstTree(t *testing.T) {
	l := newPutTest(t, "echo first >file; ln -s there link; mkdir dir; echo kept >dir/kept")
	l.put(l.tree("a", "echo a >file; echo a >new; mkdir dir; echo a >dir/new"))
	l.put(l.tree("b", "echo b >file; echo b >link; mkdir dir; mask dir/kept"))
	originals, err := Originals(l.dirs)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for path, saved := range originals {
		if target, err := os.Readlink(saved); err == nil {
			got[path] = "-> " + target
		} else if content, err := os.ReadFile(saved); err == nil {
			got[path] = string(content)
		} else {
			got[path] = saved
		}
	}
	if diff := cmp.Diff(map[string]string{"file": "first\n", "link": "-> there", "dir/kept": "kept\n"}, got); diff != "" {
		t.Errorf("the originals (-want +got):\n%s", diff)
	}
	l.put()
	if originals, err := Originals(l.dirs); err != nil || len(originals) != 0 {
		t.Errorf("when all was taken back: %v, %v", originals, err)
	}
}
