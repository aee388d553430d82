package phase

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/underlay"
)

// passing is a reason to refuse that is of the machine at that time, and not of the commit: the same request may be carried out later.
type passing struct{ error }

func (p passing) Unwrap() error { return p.error }

// isPassing tells whether it is worth trying again what was refused.
func isPassing(why error) bool {
	return errors.As(why, new(passing)) || errors.Is(why, underlay.ErrExtended) || errors.Is(why, unix.ENOSPC) || errors.Is(why, unix.EDQUOT)
}
