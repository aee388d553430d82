package ostree

import (
	"encoding/hex"
	"fmt"
)

// Checksum is a SHA-256: the name of an object, or of a commit. The zero value means "none".
type Checksum [32]byte

// ParseChecksum parses 64 lower-case hexadecimal digits, the only form that libostree takes
// (ostree_validate_structureof_checksum_string).
func ParseChecksum(s string) (Checksum, error) {
	var c Checksum
	if len(s) != 2*len(c) {
		return Checksum{}, fmt.Errorf("%q is not a checksum: it has %d characters, not 64", s, len(s))
	}
	for i := range len(s) {
		if !isHex(s[i]) {
			return Checksum{}, fmt.Errorf("%q is not a checksum: character %d is not one of 0-9a-f", s, i+1)
		}
	}
	if _, err := hex.Decode(c[:], []byte(s)); err != nil {
		return Checksum{}, fmt.Errorf("%q is not a checksum: %w", s, err)
	}
	return c, nil
}

// String returns the 64 hexadecimal digits.
func (c Checksum) String() string { return hex.EncodeToString(c[:]) }

// IsZero tells whether c names nothing.
func (c Checksum) IsZero() bool { return c == Checksum{} }

// MarshalText returns the 64 hexadecimal digits, or nothing for the zero value.
func (c Checksum) MarshalText() ([]byte, error) {
	if c.IsZero() {
		return []byte{}, nil
	}
	return hex.AppendEncode(nil, c[:]), nil
}

// UnmarshalText is the inverse of MarshalText: the empty text is the zero value.
func (c *Checksum) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*c = Checksum{}
		return nil
	}
	parsed, err := ParseChecksum(string(text))
	if err != nil {
		return err
	}
	*c = parsed
	return nil
}

func isHex(b byte) bool { return b >= '0' && b <= '9' || b >= 'a' && b <= 'f' }
