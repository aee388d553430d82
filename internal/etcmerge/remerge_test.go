package etcmerge

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// deployAgain has libostree deploy a commit beside the booted one, whose /etc it merges now, and returns the directory.
func (l *lab) deployAgain(branch string) string {
	l.t.Helper()
	sh(l.t, l.sys, "ostree admin --sysroot=. deploy --os=lab "+branch+"; chattr -i ostree/deploy/lab/deploy/*.?")
	return filepath.Dir(l.etcOf(branch))
}

// The oracle is libostree itself, which merges the same /etc where no commit is live.
func TestRemergeIsTheMergeWithoutALiveCommit(t *testing.T) {
	const (
		v1 = `mkdir -p dir/deep same; echo 1 > changed; echo 1 > mine; echo 1 > gone; echo 1 > dir/changed; echo 1 > dir/deep/file; echo 1 > same/file; echo 1 > deleted
			echo 1 > becomes-dir; mkdir becomes-file; echo 1 > becomes-file/x; ln -s 1 link; echo root:x:0:0::/:/bin/sh > passwd; echo 1 > conflict; echo 1 > back`
		v2 = `echo 2 > changed; echo 2 > mine; rm gone; echo 2 > dir/changed; echo 2 > dir/deep/file; mkdir new; echo 2 > new/file; mkdir -p new/deep; echo 2 > new/deep/file
			rm becomes-dir; mkdir becomes-dir; echo 2 > becomes-dir/x; rm -r becomes-file; echo 2 > becomes-file; ln -sfn 2 link; echo live:x:9:9::/:/bin/sh >> passwd; echo 2 > conflict; echo 2 > back`
		v3 = `echo 3 > changed; rm -r dir/deep new; echo 3 > gone; echo 3 > only-3; rm back`
	)
	for name, own := range map[string]string{
		"nothing": "",
		"changes": `echo own > mine; echo own > own; rm deleted; chmod 700 dir; echo own > dir/own; echo own > dir/deep/own; echo me:x:5:5::/:/bin/sh >> passwd; chmod 600 conflict; mkdir -p own-dir/deep; echo own > own-dir/deep/file`,
	} {
		t.Run(name, func(t *testing.T) {
			l, oracle := newTestLab(t, v1, v2, v3), newTestLab(t, v1, v2, v3)
			for _, some := range []*lab{l, oracle} {
				sh(t, some.dirs.Etc, own)
			}
			l.apply(l.plan("v1", "v2"))
			made, want := l.deployAgain("v3"), oracle.deployAgain("v3")
			copied := filepath.Join(t.TempDir(), "etc")
			sh(t, t.TempDir(), "cp -a "+l.dirs.Etc+" "+copied+"; cp -a "+l.dirs.Store+" "+copied+".store")
			if _, err := Reset(context.Background(), Dirs{Etc: copied, Store: copied + ".store"}); err != nil {
				t.Fatal(err)
			}
			booted := filepath.Dir(l.dirs.Etc)
			r := Remerge{Defaults: filepath.Join(booted, "usr/etc"), Merged: l.dirs.Etc, Own: copied, New: filepath.Join(made, "usr/etc"), Etc: filepath.Join(made, "etc")}
			for _, run := range []string{"first", "once more"} {
				result, err := r.Do(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				if len(result.Kept) > 0 || run == "first" && len(result.Restored) == 0 || run != "first" && len(result.Restored) > 0 {
					t.Errorf("%s: %+v", run, result)
				}
				wantSame(t, "/etc of the deployment, "+run, mergedFiles(t, want), mergedFiles(t, made))
			}
			// What a run left that was killed goes.
			left := filepath.Join(made, "etc", temporary("changed"))
			sh(t, made, "echo half > "+left)
			if _, err := r.Do(context.Background()); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(left); err == nil {
				t.Errorf("%s is left", left)
			}
			// What somebody has changed since stays.
			sh(t, filepath.Join(made, "etc"), "echo since > changed")
			if result, err := r.Do(context.Background()); err != nil || !cmp.Equal(result.Kept, []string{"changed"}) {
				t.Errorf("got %+v (%v)", result, err)
			}
		})
	}
}

// TestGeneratedRemergeIsTheMergeWithoutALiveCommit does that with generated trees.
func TestGeneratedRemergeIsTheMergeWithoutALiveCommit(t *testing.T) {
	checkSome(t, checkRemerge)
}

func checkRemerge(t *rapid.T) {
	root, err := os.MkdirTemp("", "etcmerge-remerge-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(root)
	v1 := drawBelow(t, nil, 2)
	v2, v3, own := drawBelow(t, v1, 2), drawBelow(t, v1, 2), drawBelow(t, v1, 2)
	keepUnchanged(v1, v2, own)
	keepUnchanged(v1, v3, own)
	l := newLabWith(t, root, []func(string){
		func(etc string) { writeSpecs(t, etc, nil, v1) },
		func(etc string) { writeSpecs(t, etc, v1, v2) },
		func(etc string) { writeSpecs(t, etc, v2, v3) },
	})
	defer l.close()
	t.Logf("the default, the live one, the next one, and the administrator's: %+v, %+v, %+v, %+v", v1, v2, v3, own)
	writeSpecs(t, l.dirs.Etc, v1, own)
	plan, err := l.tryPlan("v1", "v2")
	if err != nil {
		t.Skip(err)
	}
	administrators := filepath.Join(root, "own")
	sh(t, root, "cp -a "+l.dirs.Etc+" "+administrators)
	l.apply(plan)
	live, made := filepath.Join(root, "live"), filepath.Join(root, "made")
	deploy := func() string {
		if said, err := trySh(root, "ostree admin --sysroot=sys deploy --os=lab v3"); err != nil {
			t.Skip(said) // nor can libostree
		}
		return filepath.Dir(l.etcOf("v3"))
	}
	sh(t, root, "cp -a "+deploy()+" "+made+"; cp -a "+l.dirs.Etc+" "+live+"; ostree admin --sysroot=sys undeploy 0")
	l.reset()
	want := deploy()
	booted := filepath.Dir(l.dirs.Etc)
	r := Remerge{Defaults: filepath.Join(booted, "usr/etc"), Merged: live, Own: administrators, New: filepath.Join(made, "usr/etc"), Etc: filepath.Join(made, "etc")}
	for _, run := range []string{"first", "once more"} {
		result, err := r.Do(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if len(result.Kept) > 0 || run != "first" && len(result.Restored) > 0 {
			t.Errorf("%s: %+v", run, result)
		}
		wantSame(t, "/etc of the deployment, "+run, mergedFiles(t, want), mergedFiles(t, made))
	}
}

// mergedFiles is what a deployment has in /etc.
func mergedFiles(t tester, deployment string) map[string]thing {
	t.Helper()
	return contentOnly(without(scan(t, filepath.Join(deployment, "etc")), notMerged...))
}
