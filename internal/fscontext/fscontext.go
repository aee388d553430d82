// Package fscontext reads what the kernel writes to a filesystem context (see fsopen(2)).
package fscontext

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Log returns what the kernel has to say about the last failure on a filesystem context, with ": " before it.
func Log(fs int) string {
	var text strings.Builder
	line := make([]byte, 1024)
	for range 32 { // the kernel keeps eight
		n, err := unix.Read(fs, line)
		if err != nil || n == 0 {
			break // ENODATA: that was all
		}
		text.WriteString(": " + strings.TrimSpace(strings.TrimPrefix(string(line[:n]), "e ")))
	}
	return text.String()
}
