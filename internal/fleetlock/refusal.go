package fleetlock

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"unicode"
)

// kindFull is the one kind of refusal that the protocol names: all slots are taken.
const kindFull = "failed_lock_semaphore_full"

// Refusal is an answer other than 200. The protocol leaves the status and the kind to the server.
type Refusal struct {
	Status int
	Kind   string // what went wrong, in a word for programs; empty if the server did not say
	Value  string // the same for people
}

func (r *Refusal) Error() string {
	answer := fmt.Sprintf("the server answers %d", r.Status)
	if text := http.StatusText(r.Status); text != "" {
		answer += " " + text
	}
	if r.Kind == "" {
		return answer
	}
	return fmt.Sprintf("%s: %s (%s)", answer, r.Value, r.Kind)
}

// Is makes an ErrWait of a refusal that is about the server or its slots, not about the request.
func (r *Refusal) Is(target error) bool { return target == ErrWait && r.passes() }

func (r *Refusal) passes() bool {
	switch r.Status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusLocked, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return r.Status >= 500 || r.Kind == kindFull
}

// parseRefusal reads an answer that is not 200. A proxy on the way may have written it, so it need not be the protocol's.
func parseRefusal(status int, body []byte) *Refusal {
	var said struct{ Kind, Value string }
	if err := json.Unmarshal(body, &said); err != nil {
		return &Refusal{Status: status}
	}
	kind, value := printable(said.Kind, maxKind), printable(said.Value, maxValue)
	if kind == "" || value == "" {
		return &Refusal{Status: status}
	}
	return &Refusal{status, kind, value}
}

// What is shown of an answer, in characters.
const (
	maxKind  = 64
	maxValue = 256
)

// printable makes one line of at most n characters out of what a stranger says: it goes to the journal and to terminals.
func printable(s string, n int) string {
	var line strings.Builder
	for _, r := range s {
		if n == 0 {
			line.WriteString("…")
			break
		}
		if !unicode.IsPrint(r) {
			r = ' '
		}
		line.WriteRune(r)
		n--
	}
	return strings.TrimSpace(line.String())
}
