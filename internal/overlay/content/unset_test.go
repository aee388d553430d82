package content

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveapply/liveapply/internal/overlay"
)

// What was put below a masked directory can be taken out again, and the directory stays masked.
func TestUnsetBelowAMaskLeavesTheMask(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "usr/share/doc/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	content := filepath.Join(dir, "content")
	if err := os.WriteFile(content, []byte("new\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	store := overlay.Store{Dir: filepath.Join(dir, "store"), Path: filepath.Join(dir, "store")}
	under := Under{Root: root, Base: func(string) (overlay.Base, error) { return overlay.Base{}, nil }}
	change := func(operations ...overlay.Operation) (found []string) {
		t.Helper()
		draft, err := NewDraft(store, under, Rules{})
		if err != nil {
			t.Fatal(err)
		}
		defer draft.Close()
		for _, op := range operations {
			if err := draft.Do(context.Background(), op); err != nil {
				t.Fatal(err)
			}
		}
		if err := draft.Finish(context.Background(), false); err != nil {
			t.Fatal(err)
		}
		if err := draft.Commit(); err != nil {
			t.Fatal(err)
		}
		entries, err := overlay.ListTree(store.Tree(*draft.Index.Find("fix")), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			found = append(found, string(e.Kind)+" "+e.Path)
		}
		return found
	}
	mask := []string{"mask usr/share/doc"}
	got := change(overlay.Operation{Verb: overlay.Create, Name: "fix"}, overlay.Operation{Verb: overlay.Mask, Name: "fix", Path: "/usr/share/doc"})
	if diff := cmp.Diff(mask, got); diff != "" {
		t.Errorf("masked (-want +got):\n%s", diff)
	}
	got = change(overlay.Operation{Verb: overlay.Set, Name: "fix", Path: "/usr/share/doc/deep/file", From: content})
	if diff := cmp.Diff([]string{"directory usr/share/doc", "file usr/share/doc/deep/file"}, got); diff != "" {
		t.Errorf("with a file (-want +got):\n%s", diff)
	}
	got = change(overlay.Operation{Verb: overlay.Unset, Name: "fix", Path: "/usr/share/doc/deep/file"})
	if diff := cmp.Diff(mask, got); diff != "" {
		t.Errorf("without it (-want +got):\n%s", diff)
	}
}
