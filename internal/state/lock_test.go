package state

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func lockOf(t *testing.T, d Dirs) *Lock {
	t.Helper()
	lock, err := d.Lock(t.Context(), func() {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lock.Close)
	return lock
}

func TestLockIsHeldByOneUntilItIsClosed(t *testing.T) {
	d := testDirs(t)
	first := lockOf(t, d)
	busy, taken := make(chan bool), make(chan error)
	go func() {
		second, err := d.Lock(context.Background(), func() { close(busy) })
		if err == nil {
			defer second.Close()
		}
		taken <- err
	}()
	<-busy
	select {
	case err := <-taken:
		t.Fatalf("there are two: %v", err)
	default:
	}
	first.Close()
	if err := <-taken; err != nil {
		t.Fatal(err)
	}
}

func TestLockObeysItsContextAndIsLeftToTheNext(t *testing.T) {
	d := testDirs(t)
	first := lockOf(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Lock(ctx, func() {}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	first.Close()
	lockOf(t, d) // whoever gave up does not keep it when it comes
}

func TestTransactionIsEndedByItsID(t *testing.T) {
	d := testDirs(t)
	lock := lockOf(t, d)
	first, err := lock.Begin("liveapply@a.service", "a")
	if err != nil {
		t.Fatal(err)
	}
	second, err := lock.Begin("liveapply@b.service", "b")
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.End(first); err != nil {
		t.Fatal(err)
	}
	if current, err := d.Transaction(); err != nil || current == nil || current.ID != second.ID || current.Unit != "liveapply@b.service" || current.Request != "b" {
		t.Errorf("under way is %+v (%v)", current, err)
	}
	if err := lock.End(second); err != nil {
		t.Fatal(err)
	}
	if current, err := d.Transaction(); current != nil || err != nil {
		t.Errorf("under way is %+v (%v)", current, err)
	}
}

func TestTransactionTakesThePlaceOfADamagedOne(t *testing.T) {
	d := testDirs(t)
	writeFile(t, d.transactionPath(), "noise")
	if _, err := lockOf(t, d).Begin("liveapply-reset.service", ResetRequest); err != nil {
		t.Fatal(err)
	}
	if current, err := d.Transaction(); err != nil || current.Request != ResetRequest {
		t.Errorf("under way is %+v (%v)", current, err)
	}
}

// asked leaves a request, whose unit is started as job.
func asked(t *testing.T, d Dirs, unit, content string, job uint32, jobs ...uint32) error {
	t.Helper()
	return d.Ask(t.Context(), unit, func(path string) error { return os.WriteFile(path, []byte(content), 0o600) },
		func() ([]uint32, error) { return jobs, nil }, func() (uint32, error) {
			if job == 0 {
				return 0, errors.New("the start failed")
			}
			return job, nil
		})
}

func taken(t *testing.T, d Dirs, unit string, job uint32) (content string, err error) {
	t.Helper()
	err = d.TakeRequest(t.Context(), unit, func() (uint32, error) { return job, nil }, func(path string) error {
		if path == "" {
			return nil
		}
		text, err := os.ReadFile(path)
		content = string(text)
		return err
	})
	return content, err
}

func TestRequestIsOfOneJob(t *testing.T) {
	d := testDirs(t)
	const unit = "liveapply@a.service"
	if err := asked(t, d, unit, "force", 7); err != nil {
		t.Fatal(err)
	}
	for _, other := range []uint32{0, 8} {
		if content, err := taken(t, d, unit, other); content != "" || err != nil {
			t.Errorf("job %d got %q (%v)", other, content, err)
		}
	}
	if content, err := taken(t, d, unit, 7); content != "force" || err != nil {
		t.Errorf("got %q (%v)", content, err)
	}
	if content, err := taken(t, d, unit, 7); content != "" || err != nil {
		t.Errorf("once more, got %q (%v)", content, err)
	}
}

func TestRequestGoesWithAStartThatFails(t *testing.T) {
	d := testDirs(t)
	const unit = "liveapply@a.service"
	if err := asked(t, d, unit, "force", 0); err == nil {
		t.Error("no error")
	}
	if content, err := taken(t, d, unit, 7); content != "" || err != nil {
		t.Errorf("the next start got %q (%v)", content, err)
	}
}

func TestRequestThatNobodyTookGoesWithTheNext(t *testing.T) {
	d := testDirs(t)
	for job := range uint32(3) {
		if err := asked(t, d, "liveapply@a.service", "force", 7+job, 8); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(d.jobRequests())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if want := []string{"8.conf", "9.conf"}; !slices.Equal(names, want) {
		t.Errorf("there are %v, want %v", names, want)
	}
}

func TestRequestOfWhomWasKilledWhileAskingIsRefusedOnce(t *testing.T) {
	d := testDirs(t)
	const unit = "liveapply@a.service"
	writeFile(t, d.askingPath(unit), "force")
	if _, err := taken(t, d, unit, 7); !errors.Is(err, ErrUnclaimed) || !strings.Contains(err.Error(), "ask again") {
		t.Errorf("got %v", err)
	}
	if content, err := taken(t, d, unit, 8); content != "" || err != nil {
		t.Errorf("the next start got %q (%v)", content, err)
	}
	if _, err := os.Stat(filepath.Join(d.requests(), "job")); err != nil {
		t.Error(err)
	}
}

func TestSettledDeploymentsAreToldOnceEach(t *testing.T) {
	d := testDirs(t)
	for _, one := range []Settled{{Deployment: "gone.0"}, {Deployment: "a.0", Failure: "no space"}, {Deployment: "b.0", Kept: []string{"x"}}, {Deployment: "a.0", Restored: []string{"y"}}, {Deployment: "a.0", Restored: []string{"x"}}} {
		if err := d.NoteSettled(one, func(id string) bool { return id != "gone.0" }); err != nil {
			t.Fatal(err)
		}
	}
	all, err := d.Settled()
	if err != nil || len(all) != 2 || all[0].Failure != "" || !slices.Equal(all[0].Restored, []string{"x", "y"}) || !slices.Equal(all[1].Kept, []string{"x"}) {
		t.Errorf("got %+v (%v)", all, err)
	}
}
