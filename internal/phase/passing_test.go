package phase

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/underlay"
)

func TestRefusalsThatPass(t *testing.T) {
	for _, test := range []struct {
		why  error
		want bool
	}{
		{passing{errors.New("no room")}, true},
		{fmt.Errorf("comparing: %w", passing{errors.New("no room")}), true},
		{errors.Join(fmt.Errorf("/usr: %w", underlay.ErrExtended), errors.New("and more")), true},
		{fmt.Errorf("building the layer: %w", &fs.PathError{Op: "link", Path: "usr", Err: unix.ENOSPC}), true},
		{&fs.PathError{Op: "write", Path: "usr", Err: unix.EDQUOT}, true},
		{errors.New("the policy forbids it"), false},
		{fs.ErrNotExist, false},
	} {
		got := refusal(test.why)
		if got.Passing != test.want || got.Reason != test.why.Error() {
			t.Errorf("%v: got %+v", test.why, got)
		}
	}
}
