// Package fuzztest has what fuzz targets have in common.
package fuzztest

import (
	"runtime"
	"testing"
)

// slack is what may be allocated whatever the input, in bytes: error messages, caches that are filled once, the test itself.
const slack = 256 << 10

// Bounded fails t if f allocates more than perByte bytes for each of n bytes of input: a small input must not be able to take much
// memory.
func Bounded(t testing.TB, n, perByte int, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	if got, most := after.TotalAlloc-before.TotalAlloc, uint64(slack+n*perByte); got > most {
		t.Errorf("%d bytes of input took %d bytes of memory, more than %d", n, got, most)
	}
}
