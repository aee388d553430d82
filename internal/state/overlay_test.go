package state

import (
	"os"
	"path/filepath"
	"testing"
)

func TestOverlayRequestIsTakenOnceAndGoesWithItsContent(t *testing.T) {
	d := testDirs(t)
	if err := d.WriteOverlayRequest("1", []byte("request")); err != nil {
		t.Fatal(err)
	}
	dir, err := d.MakeOverlayContent("1")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "0"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{d.overlayRequestPath("1"), dir} {
		if info, err := os.Stat(path); err != nil || info.Mode()&0o077 != 0 {
			t.Errorf("%s is not for root alone: %v, %v", path, info.Mode(), err)
		}
	}
	if content, err := d.TakeOverlayRequest("1"); err != nil || string(content) != "request" {
		t.Errorf("got %q, %v", content, err)
	}
	if content, err := d.TakeOverlayRequest("1"); err == nil {
		t.Errorf("it was taken twice: %q", content)
	}
	for range 2 {
		if err := d.RemoveOverlayRequest("1"); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) != 0 {
		t.Errorf("there is %v, %v left", left, err)
	}
}

func TestRequestOutsideOfItsDirectoryIsNone(t *testing.T) {
	d := testDirs(t)
	outside := filepath.Join(d.Run, "other.json")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(d.Run, "overlay"), 0o700); err != nil {
		t.Fatal(err)
	}
	if content, err := d.TakeOverlayRequest("../other"); err == nil {
		t.Errorf("got %q", content)
	}
	if err := d.RemoveOverlayRequest("../other"); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(outside); err != nil {
		t.Error(err)
	}
}
