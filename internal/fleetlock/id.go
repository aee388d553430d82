package fleetlock

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)

// application is liveapply's own id for sd_id128_get_machine_app_specific(3): no other client of the lock server on this machine has the
// same id, and gives liveapply's slot back.
const application = "08296e0d11e54fd4acba49b0a2cd6899"

// MachineID returns the id under which this machine owns a slot: 32 hexadecimal digits that belong to the machine for good, and from which
// its machine id, in the file at path, cannot be told (machine-id(5) asks not to show that on a network).
func MachineID(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the machine id: %w", err)
	}
	machine, err := parseID(strings.TrimSpace(string(content)))
	if err != nil {
		return "", fmt.Errorf("the machine id in %s: %w; see systemd-machine-id-setup(1)", path, err)
	}
	app, err := parseID(application)
	if err != nil {
		return "", err
	}
	return appSpecific(machine, app), nil
}

// parseID reads an sd-id128(3).
func parseID(s string) ([]byte, error) {
	id, err := hex.DecodeString(s)
	if err != nil || len(id) != 16 || strings.Count(s, "0") == 2*len(id) {
		return nil, fmt.Errorf("%.40q is not a 128 bit id", s)
	}
	return id, nil
}

// appSpecific is sd_id128_get_app_specific(3): a keyed hash, of which the first half becomes a UUID of version 4.
func appSpecific(base, app []byte) string {
	hash := hmac.New(sha256.New, base)
	hash.Write(app)
	id := hash.Sum(nil)[:16]
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return hex.EncodeToString(id)
}
