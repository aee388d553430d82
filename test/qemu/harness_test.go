//go:build qemu

package qemu_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/liveapply/liveapply/test/qemu"
)

// lab is shared by all tests of the package; TestMain opens it.
var lab *qemu.Lab

func TestMain(m *testing.M) {
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	var err error
	if lab, err = qemu.Open(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	status := m.Run()
	if err := lab.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status
}
