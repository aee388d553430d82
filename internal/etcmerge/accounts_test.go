package etcmerge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestAccountsMergeByEntry(t *testing.T) {
	cases := []struct{ name, path, base, ours, theirs, want string }{
		{"arrives behind its neighbour", "passwd", "root:0\nnobody:9\n", "root:0\nnobody:9\nbob:1\n", "root:0\npg:5\nnobody:9\nng:6\n", "root:0\npg:5\nnobody:9\nng:6\nbob:1\n"},
		{"goes", "passwd", "root:0\ngames:5\n", "root:0\ngames:5\nbob:1\n", "root:0\n", "root:0\nbob:1\n"},
		{"goes, but was changed here", "passwd", "root:0\ngames:5\n", "root:0\ngames:5:sh\nbob:1\n", "root:0\n", "root:0\ngames:5:sh\nbob:1\n"},
		{"deleted here", "passwd", "root:0\ngames:5\n", "root:0\n", "root:0\ngames:5:new\npg:6\n", "root:0\npg:6\n"},
		{"changed there", "passwd", "root:0\ngames:5\n", "root:0\ngames:5\nbob:1\n", "root:0\ngames:5:new\n", "root:0\ngames:5:new\nbob:1\n"},
		{"changed on both sides", "passwd", "root:0:sh\n", "root:0:zsh\n", "root:0:bash\nx:1\n", "root:0:zsh\nx:1\n"},
		{"added on both sides", "passwd", "root:0\n", "root:0\npg:1000\n", "root:0\npg:5\nng:6\n", "root:0\npg:1000\nng:6\n"},
		{"comments and NIS lines stay where they are", "passwd", "root:0\n", "# mine\nroot:0\n\n-eve\n+::::::\n", "root:0\npg:5\n", "# mine\nroot:0\npg:5\n\n-eve\n+::::::\n"},
		{"never behind a NIS line", "passwd", "root:0\n+::::::\n", "root:0\nbob:1\n+::::::\n", "root:0\n+::::::\npg:5\n", "root:0\npg:5\nbob:1\n+::::::\n"},
		{"members", "group", "wheel:x:10:root,old\n", "wheel:x:10:root,old,bob\n", "wheel:x:10:root,ann\nnew:x:5:\n", "wheel:x:10:root,bob,ann\nnew:x:5:\n"},
		{"members of a group on both sides", "group", "", "docker:x:5:bob\n", "docker:x:7:svc\n", "docker:x:5:bob,svc\n"},
		{"members, and the id changes there", "group", "g:x:5:a\n", "g:x:5:a,b\n", "g:x:6:a\n", "g:x:6:a,b\n"},
		{"administrators and members", "gshadow", "g:!:a:m\n", "g:!:a,bob:m\n", "g:!::m,n\n", "g:!:bob:m,n\n"},
		{"no newline at the end", "passwd", "root:0", "root:0\nbob:1", "root:0\npg:5", "root:0\npg:5\nbob:1\n"},
		{"several ranges of an owner", "subuid", "a:1:2\n", "a:1:2\na:5:6\n", "a:1:2\nb:9:9\n", "a:1:2\nb:9:9\na:5:6\n"},
		{"a range goes", "subuid", "a:1:2\na:5:6\n", "a:1:2\na:5:6\nbob:9:9\n", "a:5:6\n", "a:5:6\nbob:9:9\n"},
		{"the same arrives", "passwd", "root:0\n", "root:0\npg:5\nbob:1\n", "root:0\npg:5\n", "root:0\npg:5\nbob:1\n"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := mergeEntries(c.path, []byte(c.base), []byte(c.ours), []byte(c.theirs))
			if diff := cmp.Diff(c.want, string(got)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestShadowFollowsPasswd(t *testing.T) {
	cases := []struct{ name, passwdOurs, passwdTheirs, shadowOurs, shadowTheirs, want string }{
		{"arrives in both", "root:0\ngames:5\nbob:1\n", "root:0\ngames:5\npg:6\n", "root:*\ngames:*\nbob:h\n", "root:*\ngames:*\npg:!\n", "root:*\ngames:*\npg:!\nbob:h\n"},
		{"stays in passwd, so in shadow", "root:0\ngames:5:sh\n", "root:0\n", "root:*\ngames:*\n", "root:*\n", "root:*\ngames:*\n"},
		{"goes from passwd, so from shadow", "root:0\ngames:5\n", "root:0\n", "root:*\ngames:secret\n", "root:*\n", "root:*\n"},
		{"deleted here, changed there", "root:0\n", "root:0\ngames:7\n", "root:*\n", "root:*\ngames:new\n", "root:*\n"},
		{"no shadow entry here, on purpose", "root:0\ngames:5\n", "root:0\ngames:5\npg:6\n", "root:*\n", "root:*\ngames:*\npg:!\n", "root:*\npg:!\n"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]*accountMerge{
				"passwd": {base: []byte("root:0\ngames:5\n"), ours: []byte(c.passwdOurs), theirs: []byte(c.passwdTheirs)},
				"shadow": {base: []byte("root:*\ngames:*\n"), ours: []byte(c.shadowOurs), theirs: []byte(c.shadowTheirs)},
			}
			mergeAccounts(files)
			if diff := cmp.Diff(c.want, string(files["shadow"].result)); diff != "" {
				t.Errorf("shadow, -want +got:\n%s", diff)
			}
		})
	}
}

func TestClashesOfIDs(t *testing.T) {
	cases := []struct{ name, path, base, ours, theirs, want string }{
		{"users", "passwd", "root:x:0\n", "root:x:0\nbob:x:998\n", "root:x:0\npg:x:998\n", "the target's user pg and the local user bob both have the uid 998"},
		{"groups", "group", "root:x:0:\n", "root:x:0:\nbob:x:998:\n", "root:x:0:\npg:x:998:\n", "the target's group pg and the local group bob both have the gid 998"},
		{"ranges", "subuid", "", "bob:100000:65536\n", "pg:165535:10\n", "the target gives pg the ids 165535 to 165544, but the local owner bob has 100000 to 165535"},
		{"range within a range", "subuid", "", "bob:100:1000\nann:5000:10\n", "pg:500:1\n", "but the local owner bob"},
		{"range of another within one's own", "subuid", "", "pg:100:1000\nann:150:10\n", "pg:155:5\n", "but the local owner ann"},
		{"range around a range", "subuid", "", "bob:500:1\n", "pg:100:1000\n", "but the local owner bob"},
		{"number changes", "passwd", "root:x:0\npg:x:5\n", "root:x:0\npg:x:5\nbob:x:998\n", "root:x:0\npg:x:998\n", "user pg"},
		{"the target's own", "passwd", "root:x:0\n", "root:x:0\nbob:x:1\n", "root:x:0\ntoor:x:0\n", ""},
		{"two local ones", "passwd", "root:x:0\n", "root:x:0\na:x:1\nb:x:1\n", "root:x:0\npg:x:5\n", ""},
		{"neighbours", "subuid", "", "bob:100:100\n", "pg:200:1\nng:99:1\n", ""},
		{"the same user", "passwd", "root:x:0\n", "root:x:0\npg:x:5:local\n", "root:x:0\npg:x:5\nng:x:6\n", ""},
		{"not a number", "passwd", "root:x:0\n", "root:x:0\nbob:x:\n", "root:x:0\npg:x:\nx:y:4294967296\n", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m := &accountMerge{base: []byte(c.base), ours: []byte(c.ours), theirs: []byte(c.theirs)}
			m.result = mergeEntries(c.path, m.base, m.ours, m.theirs)
			conflicts := m.clashes(c.path)
			if c.want == "" && len(conflicts) > 0 || c.want != "" && (len(conflicts) != 1 || !strings.Contains(conflicts[0].Reason, c.want)) {
				t.Errorf("conflicts: %+v, want %q", conflicts, c.want)
			}
		})
	}
}

// One name is told of with everyone whom it clashes with: it must not take memory each time.
func TestClashesOfALongName(t *testing.T) {
	var many strings.Builder
	for i := range 500 {
		fmt.Fprintf(&many, "u%d:x:7:7::/:\n", i)
	}
	m := &accountMerge{ours: []byte(strings.Repeat("l", 20000) + ":x:7:7::/:\n"), theirs: []byte(many.String())}
	m.result = mergeEntries("passwd", m.base, m.ours, m.theirs)
	size := 0
	for _, c := range m.clashes("passwd") {
		size += len(c.Reason)
	}
	if size == 0 || size > 500*1000 {
		t.Errorf("%d bytes of messages", size)
	}
}

func checkMerge(t tester, path string, base, ours, theirs []byte) {
	t.Helper()
	if got := mergeEntries(path, base, ours, base); !bytes.Equal(got, ours) {
		t.Errorf("without a change there: %q, want %q", got, ours)
	}
	if got := mergeEntries(path, base, base, theirs); !bytes.Equal(got, theirs) {
		t.Errorf("without a change here: %q, want %q", got, theirs)
	}
	merged := mergeEntries(path, base, ours, theirs)
	if again := mergeEntries(path, base, merged, theirs); !bytes.Equal(again, merged) {
		t.Errorf("merged again: %q, want %q (base %q, ours %q, theirs %q)", again, merged, base, ours, theirs)
	}
	m := &accountMerge{base: base, ours: ours, theirs: theirs}
	shadow := &accountMerge{base: theirs, ours: base, theirs: ours}
	mergeAccounts(map[string]*accountMerge{"passwd": m, "shadow": shadow, "group": shadow, "gshadow": m})
	for _, file := range []string{"passwd", "group", "subuid"} {
		m.clashes(file)
	}
}

// The files of an account database as programs write them: what came goes again, and nothing else does.
func TestAccountsThatCameGoAgain(t *testing.T) {
	name := rapid.StringMatching(`[a-d]`)
	file := rapid.Custom(func(t *rapid.T) []byte {
		var b strings.Builder
		for _, name := range rapid.SliceOfNDistinct(name, 0, 4, rapid.ID[string]).Draw(t, "names") {
			b.WriteString(name + ":x:" + rapid.StringMatching(`[12]`).Draw(t, "id") + ":" +
				strings.Join(rapid.SliceOfNDistinct(name_, 0, 3, rapid.ID[string]).Draw(t, "members"), ",") + "\n")
		}
		return []byte(b.String())
	})
	rapid.Check(t, func(t *rapid.T) {
		base, ours, theirs := file.Draw(t, "base"), file.Draw(t, "ours"), file.Draw(t, "theirs")
		for _, path := range []string{"passwd", "group"} {
			checkMerge(t, path, base, ours, theirs)
			put := mergeEntries(path, base, ours, theirs)
			if back := mergeEntries(path, put, put, ours); !bytes.Equal(back, ours) {
				t.Errorf("%s went back to %q, not to %q", path, back, ours)
			}
			local := []byte("zoe:x:9:\n")
			live := append(slices.Clone(put), local...)
			back := mergeEntries(path, put, live, ours)
			sortLines := func(b []byte) string {
				lines := strings.Split(string(b), "\n")
				slices.Sort(lines)
				return strings.Join(lines, "\n")
			}
			if sortLines(back) != sortLines(append(slices.Clone(ours), local...)) {
				t.Errorf("%s with a user added meanwhile went back to %q, not to %q and %q", path, back, ours, local)
			}
		}
	})
}

var name_ = rapid.StringMatching(`[a-d]`)

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
