package state

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/ostree"
)

func testDirs(t *testing.T) Dirs {
	t.Helper()
	root := t.TempDir()
	d := Dirs{Run: filepath.Join(root, "run"), Deployments: filepath.Join(root, "deployment-state"), Lib: filepath.Join(root, "lib")}
	if err := d.Make(); err != nil {
		t.Fatal(err)
	}
	return d
}

func checksum(t *testing.T, digit string) ostree.Checksum {
	t.Helper()
	c, err := ostree.ParseChecksum(strings.Repeat(digit, 64))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStampHasTheFieldsThatOthersRelyOn(t *testing.T) {
	d := testDirs(t)
	deployment := ostree.Deployment{Commit: checksum(t, "a"), Serial: 1}
	err := d.WriteStamp(deployment, &Stamp{
		Booted: checksum(t, "a"), Live: checksum(t, "b"), Previous: checksum(t, "a"), Transaction: "id",
		Applied: time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC), Layers: []string{"/layer"},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.Deployments, strings.Repeat("a", 64)+".1", "liveapply.json")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if link, err := os.ReadFile(filepath.Join(d.Run, "stamp")); err != nil || !bytes.Equal(link, content) {
		t.Errorf("by its other name it is %q (%v)", link, err)
	}
	var got map[string]any
	if err := json.Unmarshal(content, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"version": 1.0, "booted": strings.Repeat("a", 64), "live": strings.Repeat("b", 64), "previous": strings.Repeat("a", 64),
		"target": "", "phase": "", "transaction": "id", "transient": false, "applied": "2026-11-21T10:00:00Z",
		"layers": []any{"/layer"}, "reboot_required": []any{},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the stamp differs (-want +got):\n%s", diff)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the stamp's mode is %v (%v), want it world-readable", info.Mode(), err)
	}
}

func TestNewStampSaysThatTheBootedCommitIsLive(t *testing.T) {
	deployment := ostree.Deployment{Commit: checksum(t, "a")}
	if stamp, err := testDirs(t).Stamp(deployment); stamp != nil || err != nil {
		t.Errorf("got %+v, %v where there is none", stamp, err)
	}
	if stamp := NewStamp(deployment); stamp.Live != deployment.Commit || stamp.IsApplied() {
		t.Errorf("got live %s, applied %v", stamp.Live, stamp.IsApplied())
	}
}

// damages are ways in which a file can be other than it was written.
var damages = map[string]string{"empty": "", "noise": "\x00\xff", "cut": `{"version": 1, "bo`, "something else": "{}", "nothing": "null"}

// stateFiles are the files of the state below /run, each with a way to read it.
func stateFiles(d Dirs, deployment ostree.Deployment) map[string]func() error {
	return map[string]func() error{
		d.stampPath(deployment): func() error { _, err := d.Stamp(deployment); return err },
		d.transactionPath():     func() error { _, err := d.Transaction(); return err },
		d.planPath():            func() error { _, err := d.Plan(&Transaction{ID: "id"}); return err },
		d.stagingPath():         func() error { _, err := d.Staging(); return err },
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedStateIsSaidWithItsPathAndAWayOut(t *testing.T) {
	d := testDirs(t)
	for path, read := range stateFiles(d, ostree.Deployment{Commit: checksum(t, "a")}) {
		for name, content := range damages {
			t.Run(filepath.Base(path)+" "+name, func(t *testing.T) {
				writeFile(t, path, content)
				err := read()
				if !errors.Is(err, ErrDamaged) {
					t.Fatalf("got %v, want ErrDamaged", err)
				}
				if message := err.Error(); !strings.Contains(message, path) || !strings.Contains(message, "liveapplyctl reset") {
					t.Errorf("got %q, want it to name %s and a way out", message, path)
				}
			})
		}
	}
}

func TestStampOfAnotherVersionIsNotDamaged(t *testing.T) {
	d := testDirs(t)
	deployment := ostree.Deployment{Commit: checksum(t, "a")}
	path := d.stampPath(deployment)
	writeFile(t, path, strings.ReplaceAll(`{"version": 2, "booted": "C", "live": "C"}`, "C", strings.Repeat("a", 64)))
	if _, err := d.Stamp(deployment); err == nil || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func TestDamagedOutcomeIsNone(t *testing.T) {
	d := testDirs(t)
	for name, content := range damages {
		writeFile(t, d.outcomePath("request"), content)
		if outcome, err := d.TakeOutcome("request"); outcome != nil || err != nil {
			t.Errorf("%s: got %+v, %v", name, outcome, err)
		}
	}
}

// What is accepted is what was written: written again, it is read as the same.
func FuzzState(f *testing.F) {
	c := "\"" + strings.Repeat("a", 64) + "\""
	for _, content := range []string{
		`{"version":1,"booted":` + c + `,"live":` + c + `,"previous":"","target":"","phase":"","transaction":"","transient":true,"applied":"2026-11-21T10:00:00Z","layers":["/a"],"reboot_required":["kernel"]}`,
		`{"transaction":"id","request":"os/debian","from":` + c + `,"target":` + c + `,"started":"2026-11-21T10:00:00.5Z","phases":[{"name":"etc","seconds":0.5}],"staged":{"deployed":` + c + `,"replaced":{"commit":` + c + `,"origin":"[origin]"},"staging":{"commit":` + c + `}}}`,
		`{"transaction":"id","target":` + c + `,"layers":["/a"],"reload":{"units":true},"etc":{"changes":[{"path":"a/b","text":"YQ=="}]}}`,
		`{"commit":` + c + `,"replaced":{"commit":"","origin":"[origin]\nrefspec=a\n","kernel_args":["quiet"],"locked":true}}`,
		`{"result":"refused","reason":"why","phase":"prepare"}`,
		`{"transaction":"id","from":` + c + `,"target":` + c + `,"result":"applied","phases":[]}`,
	} {
		f.Add([]byte(content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, value := range []interface{ check() error }{&Stamp{}, &Transaction{}, &Plan{}, &Staging{}, &Outcome{}} {
			path := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			found, err := readJSON(path, value)
			if err != nil && !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			if !found {
				continue
			}
			if err := writeJSON(path, 0o600, value); err != nil {
				t.Fatalf("what was read cannot be written: %v", err)
			}
			again := reflect.New(reflect.TypeOf(value).Elem()).Interface().(interface{ check() error })
			if _, err := readJSON(path, again); err != nil {
				t.Fatalf("what was written cannot be read: %v", err)
			}
			if diff := cmp.Diff(value, again, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("-written +read:\n%s", diff)
			}
		}
	})
}

// Whatever the history holds, a line is added to it once, and nothing else changes.
func FuzzHistory(f *testing.F) {
	for _, content := range []string{"", "\n", "{}\n", `{"transaction":"one"}` + "\n", `{"transaction":"two"}`, "noise\x00\xff\n\n"} {
		f.Add([]byte(content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		d := Dirs{Lib: t.TempDir()}
		path := filepath.Join(d.Lib, "history.jsonl")
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		entry := NewEntry(&Transaction{ID: "mine"}, Applied, "")
		var after []byte
		for range 2 {
			if err := d.AppendHistory(entry); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if after == nil {
				after = got
			}
			if !bytes.Equal(got, after) {
				t.Errorf("the second time it became %q", got)
			}
		}
		rest, had := bytes.CutPrefix(after, content)
		if !had {
			t.Fatalf("%q became %q", content, after)
		}
		var last Entry
		if err := json.Unmarshal(bytes.TrimSpace(rest), &last); len(bytes.TrimSpace(rest)) > 0 && (err != nil || last.Transaction != "mine") {
			t.Errorf("added was %q (%v)", rest, err)
		}
	})
}

func TestWatchLooksWhereThereIsNoInotifyLeft(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	writeFile(t, path, "")
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	if _, err := openEvents(dir, unix.IN_DELETE); !isExhausted(err) {
		t.Fatalf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	looks := 0
	err := watch(ctx, dir, unix.IN_DELETE, func() (bool, error) {
		if looks++; looks == 2 {
			return false, os.Remove(path)
		}
		_, err := os.Lstat(path)
		return errors.Is(err, os.ErrNotExist), nil
	})
	if err != nil || looks != 3 {
		t.Errorf("looked %d times: %v", looks, err)
	}
	cancel()
	if err := watch(ctx, dir, unix.IN_DELETE, func() (bool, error) { return false, nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestPhaseThatRunsAgainTakesThePlaceOfItsFirstRun(t *testing.T) {
	again := &Transaction{}
	again.Begin("prepare")
	again.Begin("prepare")
	again.End()
	if len(again.Phases) != 1 || again.Phases[0].Seconds <= 0 {
		t.Errorf("got phases %+v, want one with its time", again.Phases)
	}
}

func TestHistoryContinuesOnANewLineAfterATornOne(t *testing.T) {
	d := testDirs(t)
	path := filepath.Join(d.Lib, "history.jsonl")
	if err := os.WriteFile(path, []byte(`{"transaction": "torn`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"one", "two", "two"} { // the same transaction again is not written twice
		transaction := &Transaction{ID: id, From: checksum(t, "a"), Target: checksum(t, "b")}
		if err := d.AppendHistory(NewEntry(transaction, Applied, "")); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
	if len(lines) != 3 {
		t.Fatalf("got %d lines, want 3:\n%s", len(lines), content)
	}
	for i, id := range []string{"one", "two"} {
		var entry Entry
		if err := json.Unmarshal([]byte(lines[i+1]), &entry); err != nil || entry.Transaction != id || entry.Result != Applied {
			t.Errorf("got %+v, %v from %s", entry, err, lines[i+1])
		}
	}
}

func TestLastEntryIsTheLastThatCanBeRead(t *testing.T) {
	d := testDirs(t)
	if entry, err := d.LastEntry(); entry != nil || err != nil {
		t.Errorf("without a history: got %+v, %v", entry, err)
	}
	for _, content := range []string{"", "noise\n", "{}\n"} {
		writeFile(t, filepath.Join(d.Lib, "history.jsonl"), content)
		if entry, err := d.LastEntry(); entry != nil || err != nil {
			t.Errorf("%q: got %+v, %v", content, entry, err)
		}
	}
	for _, id := range []string{"one", "two"} {
		if err := d.AppendHistory(NewEntry(&Transaction{ID: id}, Refused, "why")); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(d.Lib, "history.jsonl")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, string(content)+`{"transaction": "torn`)
	if entry, err := d.LastEntry(); err != nil || entry == nil || entry.Transaction != "two" || entry.Reason != "why" {
		t.Errorf("got %+v, %v", entry, err)
	}
}

func TestOutcomeIsTakenOnce(t *testing.T) {
	d := testDirs(t)
	request := "remote:os/debian/13"
	if err := d.SetOutcome(request, Outcome{Result: Refused, Reason: "why", Phase: "prepare"}); err != nil {
		t.Fatal(err)
	}
	first, err := d.TakeOutcome(request)
	if err != nil || first == nil || first.Reason != "why" {
		t.Fatalf("got %+v, %v", first, err)
	}
	if second, err := d.TakeOutcome(request); err != nil || second != nil {
		t.Errorf("got %+v, %v the second time", second, err)
	}
}

func TestPlanOfAnotherTransactionIsNotUsed(t *testing.T) {
	d := testDirs(t)
	if err := d.WritePlan(&Plan{Transaction: "one", From: checksum(t, "a"), Target: checksum(t, "a"), Live: checksum(t, "a")}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Plan(&Transaction{ID: "one"}); err != nil {
		t.Error(err)
	}
	if _, err := d.Plan(&Transaction{ID: "two"}); err == nil {
		t.Error("the plan of another transaction was taken")
	}
}

func TestSummaryHasNoContentOfFiles(t *testing.T) {
	plan := &Plan{Target: checksum(t, "b"), Layers: []string{"/layer"}, TmpfilesChanges: []string{"r /run/a"}, Etc: &etcmerge.Plan{
		Changes: []etcmerge.Change{{Path: "shadow", Base: []byte("root:hash"), Text: []byte("root:hash"), Merged: true}},
		Local:   []etcmerge.Local{{Path: "hosts", Kind: etcmerge.LocalChanged}},
	}}
	got := plan.Summary()
	want := Summary{
		Target: plan.Target, Layers: plan.Layers,
		Etc: []EtcChange{{"shadow", "merge"}}, EtcLocal: plan.Etc.Local,
		TmpfilesChanges: plan.TmpfilesChanges,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	plan.Etc = nil
	if got := plan.Summary(); got.Etc != nil || got.EtcLocal != nil {
		t.Errorf("without a plan of /etc: %+v", got)
	}
}

func TestWatchStampShowsEachPhase(t *testing.T) {
	d := testDirs(t)
	deployment := ostree.Deployment{Commit: checksum(t, "a")}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	next := []string{"prepare", "mount", "etc"}
	var seen []string
	err := d.WatchStamp(ctx, deployment, func(stamp *Stamp) {
		if stamp.Phase != "" {
			seen = append(seen, stamp.Phase)
		}
		if len(next) == 0 {
			cancel()
			return
		}
		stamp.Phase = next[0]
		if err := d.WriteStamp(deployment, stamp); err != nil {
			t.Error(err)
		}
		next = next[1:]
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"prepare", "mount", "etc"}, seen); diff != "" {
		t.Errorf("phases seen (-want +got):\n%s", diff)
	}
}
