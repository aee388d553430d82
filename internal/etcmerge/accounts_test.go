package etcmerge

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// accountsLab has a target that brings postgres, and a local user.
func accountsLab(t *testing.T) *lab {
	t.Helper()
	l := newTestLab(t, `
		printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' > passwd
		printf 'root:*:1::::::\nnobody:*:1::::::\n' > shadow; chmod 640 shadow; chgrp 42 shadow
		printf 'root:x:0:\nssl:x:105:\nnogroup:x:65534:\n' > group; printf 'root:*::\nssl:!::\nnogroup:*::\n' > gshadow; chmod 640 gshadow; chgrp 42 gshadow`,
		`sed -i '$ i postgres:x:998:998::/var/lib/postgresql:/bin/bash' passwd; sed -i '$ i postgres:!:2::::::' shadow
		sed -i 's/^ssl.*/ssl:x:105:postgres/; $ i postgres:x:998:' group; sed -i 's/^ssl.*/ssl:!::postgres/; $ i postgres:!::' gshadow`)
	l.local(`touch .pwd.lock; chmod 600 .pwd.lock
		echo 'bob:x:1000:1000::/home/bob:/bin/sh' >> passwd; echo 'bob:$6$secret:1::::::' >> shadow
		sed -i 's/^ssl.*/ssl:x:105:bob/' group; echo bob:x:1000: >> group; echo 'bob:!::' >> gshadow`)
	return l
}

func TestNewSystemUserArrivesBesideALocalOneAndGoesAgain(t *testing.T) {
	l := accountsLab(t)
	start := l.etc()
	plan := l.plan("v1", "v2")
	var kinds []string
	for _, c := range plan.Changes {
		kinds = append(kinds, c.Kind()+" "+c.Path)
	}
	wantPaths(t, "changes", kinds, "merge group", "merge gshadow", "merge passwd", "merge shadow")
	l.apply(roundTrip(t, plan))
	for path, want := range map[string]string{
		"passwd":  "root:x:0:0::/root:/bin/sh\npostgres:x:998:998::/var/lib/postgresql:/bin/bash\nnobody:x:65534:65534::/:/bin/false\nbob:x:1000:1000::/home/bob:/bin/sh\n",
		"shadow":  "root:*:1::::::\npostgres:!:2::::::\nnobody:*:1::::::\nbob:$6$secret:1::::::\n",
		"group":   "root:x:0:\nssl:x:105:bob,postgres\npostgres:x:998:\nnogroup:x:65534:\nbob:x:1000:\n",
		"gshadow": "root:*::\nssl:!::postgres\npostgres:!::\nnogroup:*::\nbob:!::\n",
	} {
		if diff := cmp.Diff(want, l.read(path)); diff != "" {
			t.Errorf("%s, -want +got:\n%s", path, diff)
		}
	}
	if got, want := l.etc()["shadow"].What[:16], start["shadow"].What[:16]; got != want {
		t.Errorf("shadow is %s, was %s", got, want)
	}
	l.reset()
	wantSame(t, "/etc after reset", start, l.etc())
}

func TestUserThatWasAddedWhileLiveSurvives(t *testing.T) {
	l := accountsLab(t)
	before := map[string]string{}
	for _, path := range []string{"passwd", "shadow", "group", "gshadow"} {
		before[path] = l.read(path)
	}
	l.apply(l.plan("v1", "v2"))
	l.commitJournal()
	add := map[string]string{"passwd": "ann:x:1001:1001::/:/bin/sh\n", "shadow": "ann:h:1::::::\n", "group": "ann:x:1001:\n", "gshadow": "ann:!::\n"}
	for path, line := range add {
		l.local("echo '" + strings.TrimSpace(line) + "' >> " + path)
	}
	l.local("sed -i 's/^postgres.*/&,ann/' group; sed -i 's/:bob,postgres/:bob,postgres,ann/' group")
	result := l.reset()
	wantPaths(t, "kept", result.Kept, "group", "gshadow", "passwd", "shadow")
	for path, line := range add {
		want := before[path] + line
		if path == "group" {
			// What the administrator did to the group of the target keeps it.
			want = "root:x:0:\nssl:x:105:bob,ann\npostgres:x:998:,ann\nnogroup:x:65534:\nbob:x:1000:\nann:x:1001:\n"
		}
		if path == "gshadow" {
			want = "root:*::\nssl:!::\nnogroup:*::\nbob:!::\nann:!::\npostgres:!::\n"
		}
		if diff := cmp.Diff(want, l.read(path)); diff != "" {
			t.Errorf("%s, -want +got:\n%s", path, diff)
		}
	}
	if what := l.etc()["shadow"].What; !strings.HasPrefix(what, "-rw-r----- 0:42") {
		t.Errorf("shadow is %s", what)
	}
}

func TestUserThatWasAddedBetweenPlanAndApplySurvives(t *testing.T) {
	l := accountsLab(t)
	plan := l.plan("v1", "v2")
	l.local("echo 'ann:x:1001:1001::/:/bin/sh' >> passwd; chmod 600 passwd; echo 'ann:h:1::::::' >> shadow")
	start := l.etc()
	wantPaths(t, "kept", l.apply(plan).Kept)
	if got := l.read("passwd"); !strings.Contains(got, "\nann:") || !strings.Contains(got, "\npostgres:") || !strings.Contains(got, "\nbob:") {
		t.Errorf("passwd is\n%s", got)
	}
	if what := l.etc()["passwd"].What; !strings.HasPrefix(what, "-rw------- ") {
		t.Errorf("passwd is %s", what)
	}
	l.reset()
	wantSame(t, "/etc after reset", start, l.etc())
}

func TestUserThatWasAddedBetweenTwoTransactionsSurvives(t *testing.T) {
	l := accountsLab(t)
	before := l.read("passwd")
	l.apply(l.plan("v1", "v2"))
	l.commitJournal()
	ann := "ann:x:1001:1001::/:/bin/sh\n"
	for i, line := range []string{"systemd-x:x:990:990::/:/bin/false\n", "systemd-y:x:991:991::/:/bin/false\n"} {
		l.local("echo '" + strings.TrimSpace(strings.Replace(ann, "ann", []string{"ann", "eve"}[i], 1)) + "' >> passwd")
		base := l.read("passwd")
		plan, err := PlanFiles(l.dirs, []NewFile{{Path: "passwd", Content: []byte(base + line), Base: []byte(base)}})
		if err != nil {
			t.Fatal(err)
		}
		l.apply(plan)
	}
	l.commitJournal()
	if got := l.read("passwd"); !strings.Contains(got, "systemd-x") || !strings.Contains(got, "systemd-y") {
		t.Errorf("passwd is\n%s", got)
	}
	l.reset()
	if diff := cmp.Diff(before+ann+strings.Replace(ann, "ann", "eve", 1), l.read("passwd")); diff != "" {
		t.Errorf("passwd after reset, -want +got:\n%s", diff)
	}
}

func TestToolThatBeganBeforeAUserWasAdded(t *testing.T) {
	l := accountsLab(t)
	base := l.read("passwd")
	l.local("echo 'ann:x:1001:1001::/:/bin/sh' >> passwd")
	start := l.etc()
	plan, err := PlanFiles(l.dirs, []NewFile{{Path: "passwd", Base: []byte(base), Content: []byte(base + "svc:x:990:990::/:/bin/false\n")}})
	if err != nil {
		t.Fatal(err)
	}
	l.apply(plan)
	if got := l.read("passwd"); !strings.Contains(got, "\nann:") || !strings.Contains(got, "\nsvc:") {
		t.Errorf("passwd is\n%s", got)
	}
	l.rollback()
	wantSame(t, "/etc", start, l.etc())
}

func TestClashOfIDsIsAConflict(t *testing.T) {
	l := accountsLab(t)
	l.local("echo 'eve:x:998:998::/:/bin/sh' >> passwd; echo eve:x:998: >> group")
	start := l.etc()
	_, err := l.tryPlan("v1", "v2")
	var conflict *ConflictError
	if !errors.As(err, &conflict) || len(conflict.Conflicts) != 2 || conflict.Conflicts[0].Path != "group" || conflict.Conflicts[1].Path != "passwd" {
		t.Errorf("MakePlan: %v", err)
	}
	l.local("sed -i /eve/d passwd group")
	plan := l.plan("v1", "v2")
	l.local("echo 'eve:x:998:998::/:/bin/sh' >> passwd")
	if _, err := Apply(t.Context(), l.repo, plan, l.dirs, nil); !errors.As(err, &conflict) {
		t.Errorf("Apply: %v", err)
	}
	l.local("sed -i /eve/d passwd")
	wantSame(t, "/etc", contentOnly(start)["."].asMap(), contentOnly(l.etc())["."].asMap())
}

func (x thing) asMap() map[string]thing { return map[string]thing{"": x} }

func TestOneSidedAccountChangesFollowThePlainRule(t *testing.T) {
	l := newTestLab(t, "echo root:x:0:0 > passwd; echo root:x:0: > group; echo 'root:*' > shadow; touch subuid; echo root:x:0: > gshadow",
		"printf 'root:x:0:0\npg:x:5:5\n' > passwd; printf 'root:*\npg:!\n' > shadow; chmod 600 subuid; echo pg:1:2 > subgid; rm gshadow")
	l.local("echo bob:x:1: >> group; rm shadow; ln -s /nonexistent shadow; echo bob:1:2 > subuid")
	l.apply(l.plan("v1", "v2"))
	for path, want := range map[string]string{
		"passwd": "-rw-r--r-- 0:0 \"root:x:0:0\\npg:x:5:5\\n\"", "group": "-rw-r--r-- 0:0 \"root:x:0:\\nbob:x:1:\\n\"",
		"shadow": "Lrwxrwxrwx 0:0 -> /nonexistent", "subuid": "-rw------- 0:0 \"bob:1:2\\n\"", "subgid": "-rw-r--r-- 0:0 \"pg:1:2\\n\"", "gshadow": "",
	} {
		if got := l.etc()[path].What; got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
}

func TestAccountsWaitForTheirLock(t *testing.T) {
	l := accountsLab(t)
	plan := l.plan("v1", "v2")
	start := l.etc()
	release := l.other(t, "lock") // what lckpwdf(3) does
	ctx, cancel := context.WithTimeout(t.Context(), 5*lockPoll)
	defer cancel()
	if _, err := Apply(ctx, l.repo, plan, l.dirs, nil); err == nil || !strings.Contains(err.Error(), "/etc/.pwd.lock is held") {
		t.Errorf("Apply with a locked database: %v", err)
	}
	release()
	wantSame(t, "/etc", start, l.etc())
	l.apply(plan)
	etc, err := openRoot(l.dirs.Etc, l.dirs.name())
	if err != nil {
		t.Fatal(err)
	}
	defer etc.close()
	unlock, err := lockAccounts(t.Context(), etc)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if out, err := l.otherCommand("trylock").CombinedOutput(); err == nil {
		t.Errorf("another program gets the lock, too: %s", out)
	}
}

// Whoever waits for the lock gives up after some seconds, which a sync may take.
func TestNothingIsSyncedUnderTheLockOfTheAccounts(t *testing.T) {
	l := accountsLab(t)
	l.apply(l.plan("v1", "v2"))
	l.commitJournal()
	l.local("echo ann:x:1001:1001::/:/bin/sh >> passwd; echo ann:h:1:::::: >> shadow")
	trace, ok := l.traced("reset", "-e", "trace=fcntl,close,fsync,syncfs")
	if !ok || !strings.Contains(l.read("passwd"), "\nann:") || strings.Contains(l.read("passwd"), "postgres") {
		t.Fatalf("reset leaves this passwd:\n%s", l.read("passwd"))
	}
	var lock string // its file descriptor
	var before, under, after int
	for line := range strings.Lines(trace) {
		_, call, _ := strings.Cut(line, " ")
		name, args, _ := strings.Cut(strings.TrimSpace(call), "(")
		switch {
		case name == "fcntl" && strings.Contains(args, "F_OFD_SETLK"):
			lock, _, _ = strings.Cut(args, ",")
		case name == "close" && lock != "" && strings.HasPrefix(args, lock+")"):
			lock = "closed"
		case !strings.HasSuffix(name, "sync") && name != "syncfs":
		case lock == "":
			before++
		case lock == "closed":
			after++
		default:
			under++
		}
	}
	if before == 0 || under > 0 || after == 0 {
		t.Errorf("syncs before the lock, under it, after it: %d, %d, %d, in\n%s", before, under, after, trace)
	}
}
