//go:build qemu

package qemu_test

import (
	"os"
	"testing"

	"github.com/liveapply/liveapply/test/nspawn"
	"github.com/liveapply/liveapply/test/qemu"
)

// lab is shared by all tests of the package; TestMain opens it.
var lab *qemu.Lab

func TestMain(m *testing.M) {
	os.Exit(nspawn.RunAll(m, qemu.Open, &lab))
}
