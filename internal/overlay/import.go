package overlay

import (
	"context"
	"errors"
)

// importImage makes a new overlay, or new content of one, from an updates image.
func (d *Draft) importImage(ctx context.Context, op Operation) error { return errors.New("not yet") }
