package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOffIsAWordOfTheKernelCommandLine(t *testing.T) {
	for commandLine, want := range map[string]bool{"quiet liveapply=off rw\n": true, "liveapply=on": false, "xliveapply=off": false, "liveapply=offline": false} {
		got, err := machine(t, map[string]string{"proc/cmdline": commandLine}).IsOff()
		if err != nil || got != want {
			t.Errorf("%q: got %v, %v", commandLine, got, err)
		}
	}
}

func TestUpdatesImagesOfTheKernelCommandLine(t *testing.T) {
	got, err := machine(t, map[string]string{"proc/cmdline": "quiet liveapply.updates=/a,sha256=1 rw xliveapply.updates=/b liveapply.updates=http://c/d\n"}).UpdatesImages()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]UpdatesImage{{1, "/a,sha256=1"}, {2, "http://c/d"}}, got); diff != "" {
		t.Error(diff)
	}
	for i, image := range got {
		if image.IsURL() != (i == 1) {
			t.Errorf("%s: IsURL is %v", image, image.IsURL())
		}
	}
	if _, err := machine(t, nil).UpdatesImages(); err == nil {
		t.Error("no kernel command line is no error")
	}
}
