package ostree

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// libostree removes the file of its lock before it gives the lock back: whoever has waited has a lock that nobody else asks for.
func TestLockOfTheSysrootIsThatOfTheFileThatIsThere(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "ostree/lock")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	theirs, err := LockSysroot(t.Context(), root, func() {})
	if err != nil {
		t.Fatal(err)
	}
	ours, err := LockSysroot(t.Context(), root, func() {
		theirs.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != unix.EAGAIN {
		t.Errorf("another lock of the file that is there: got %v, want that somebody has it", err)
	}
	ours.Close()
	ours.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the file of the lock that was given back: got %v, want that it is not there", err)
	}
}
