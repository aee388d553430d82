package fleetlock

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/liveapply/liveapply/internal/fuzztest"
)

// perByte is how much memory an answer may take for each of its bytes.
const perByte = 32

// Whatever a server says, it is one short line that does nothing to a terminal.
func FuzzRefusal(f *testing.F) {
	f.Add(409, []byte(`{"kind": "failed_lock_semaphore_full", "value": "semaphore currently full, all slots are locked already"}`))
	f.Add(500, []byte(`{"kind": "a\nb", "value": "\u001b[2J\u202e"}`))
	f.Add(466, []byte(`{"kind": "a", "value": "`+strings.Repeat("ä", 300)+`"}`))
	f.Add(404, []byte("404 page not found\n"))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		var refusal *Refusal
		fuzztest.Bounded(t, len(body), perByte, func() { refusal = parseRefusal(status, body) })
		if refusal.Status != status || (refusal.Kind == "") != (refusal.Value == "") {
			t.Errorf("%d %q was read as %+v", status, body, refusal)
		}
		said := refusal.Error()
		if !utf8.ValidString(said) || strings.ContainsFunc(said, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q is shown as %q", body, said)
		}
		if n := utf8.RuneCountInString(said); n > maxKind+maxValue+100 {
			t.Errorf("%q is shown as %d characters", body, n)
		}
	})
}
