package etcmerge

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/ostree"
)

// A program may reach /etc and the Store by paths below /proc/self/fd: nobody else can go there.
func TestMessagesNameWhatPeopleCanFind(t *testing.T) {
	const name = "/sysroot/journal"
	for _, tt := range []struct {
		what, damage, want string
	}{
		{"a file in place of the Store", "mv '%[2]s' '%[2]s.away'; echo > '%[2]s'", name},
		{"a Store that is a link", "mv '%[2]s' '%[2]s.away'; ln -s / '%[2]s'", name},
		{"a damaged journal", "echo > '%[2]s/journal.json'", name + "/journal.json"},
		{"a journal that is a directory", "rm '%[2]s/journal.json'; mkdir '%[2]s/journal.json'", name + "/journal.json"},
		{"a missing original", "rm '%[2]s'/saved/*", name + "/journal.json"},
		{"a file in place of a directory of the Store", "rm -r '%[2]s/new'; echo > '%[2]s/new'", name},
		{"no /etc", "mv '%[1]s' '%[1]s.away'", "/etc"},
		{"no objects", "rm -r '%[3]s/ostree/repo/objects'; mkdir '%[3]s/ostree/repo/objects'", "/etc"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			l := newTestLab(t, "echo a > a; echo x:x:1: > group; mkdir d", "echo b > a; echo y:x:2: >> group; echo f > d/f")
			root, err := os.Open(l.sys)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			sys := fmt.Sprintf("/proc/self/fd/%d", root.Fd())
			dirs := Dirs{Etc: filepath.Join(sys, strings.TrimPrefix(l.dirs.Etc, l.sys)), Store: sys + "/ostree/store", StoreName: name}
			repo, err := ostree.OpenRepoAs(sys+"/ostree/repo", "/sysroot/repo")
			if err != nil {
				t.Fatal(err)
			}
			defer repo.Close()
			plan := l.plan("v1", "v2")
			old, new := l.etcTree("v1"), l.etcTree("v2")
			if _, err := Apply(t.Context(), repo, plan, dirs, nil); err != nil {
				t.Fatal(err)
			}
			sh(t, l.root, fmt.Sprintf(tt.damage+" # %[1]s %[2]s %[3]s", l.dirs.Etc, l.dirs.Store, l.sys))

			_, planErr := MakePlan(t.Context(), repo, old, new, dirs)
			_, filesErr := PlanFiles(dirs, []NewFile{{Path: "a", Content: []byte("c")}})
			_, applyErr := Apply(t.Context(), repo, plan, dirs, nil)
			_, pendingErr := Pending(dirs)
			_, rollbackErr := Rollback(t.Context(), dirs)
			commitErr := Fold(dirs)
			_, resetErr := Reset(t.Context(), dirs)
			all := errors.Join(planErr, filesErr, applyErr, pendingErr, rollbackErr, commitErr, resetErr)
			if all == nil || strings.Contains(all.Error(), "/proc/") || !strings.Contains(all.Error(), tt.want) {
				t.Errorf("the messages do not name %s, or name a path of this process:\n%v", tt.want, all)
			}
		})
	}
}
