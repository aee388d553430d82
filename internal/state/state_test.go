package state

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

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

func TestWithoutStampTheBootedCommitIsLive(t *testing.T) {
	deployment := ostree.Deployment{Commit: checksum(t, "a")}
	stamp, err := testDirs(t).Stamp(deployment)
	if err != nil {
		t.Fatal(err)
	}
	if stamp.Live != deployment.Commit || stamp.IsApplied() {
		t.Errorf("got live %s, applied %v", stamp.Live, stamp.IsApplied())
	}
}

func TestDamagedStateIsSaidWithItsPathAndAWayOut(t *testing.T) {
	for name, content := range map[string]string{"empty": "", "noise": "\x00\xff", "cut": `{"version": 1, "bo`, "other version": `{"version": 2}`} {
		t.Run(name, func(t *testing.T) {
			d := testDirs(t)
			deployment := ostree.Deployment{Commit: checksum(t, "a")}
			path := d.stampPath(deployment)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := d.Stamp(deployment)
			if err == nil {
				t.Fatal("no error")
			}
			if message := err.Error(); !strings.Contains(message, path) || !strings.Contains(message, "liveapply-reset.service") && !strings.Contains(message, "reboot") {
				t.Errorf("got %q, want it to name %s and a way out", message, path)
			}
		})
	}
}

func TestSecondClaimWaitsForTheFirstToEnd(t *testing.T) {
	d := testDirs(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	first, err := d.Claim(ctx, "first", func(*Transaction) { t.Error("the first had to wait") })
	if err != nil {
		t.Fatal(err)
	}

	second, err := d.Claim(ctx, "second", func(other *Transaction) {
		if other.ID != first.ID {
			t.Errorf("waiting for %s, want %s", other.ID, first.ID)
		}
		go func() {
			if err := d.EndTransaction(); err != nil {
				t.Error(err)
			}
		}()
	})
	if err != nil {
		t.Fatal(err)
	}
	if second.Request != "second" || second.ID == first.ID {
		t.Errorf("the second got %+v", second)
	}
}

func TestClaimGivesUpWithItsContextAndSaysWhatToDo(t *testing.T) {
	d := testDirs(t)
	if _, err := d.Claim(context.Background(), "first", nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	_, err := d.Claim(ctx, "second", func(*Transaction) { cancel() })
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "liveapplyctl reset") {
		t.Errorf("got %v", err)
	}
}

func TestPhaseThatRunsAgainContinuesItsTransaction(t *testing.T) {
	d := testDirs(t)
	first, err := d.Claim(context.Background(), "request", nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := d.Claim(context.Background(), "request", nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.ID != first.ID {
		t.Errorf("got transaction %s, want %s", again.ID, first.ID)
	}
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
	if err := d.WritePlan(&Plan{Transaction: "one"}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Plan(&Transaction{ID: "one"}); err != nil {
		t.Error(err)
	}
	if _, err := d.Plan(&Transaction{ID: "two"}); err == nil {
		t.Error("the plan of another transaction was taken")
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
		if err := d.WriteStamp(deployment, &Stamp{Phase: next[0]}); err != nil {
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
