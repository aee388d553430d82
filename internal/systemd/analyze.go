package systemd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// TimeSpan parses a time span as systemd does.
func TimeSpan(ctx context.Context, span string) (time.Duration, error) {
	output, err := Analyze(ctx, "timespan", "--", span)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(output) {
		if key, value, _ := strings.Cut(strings.TrimSpace(line), ": "); key == "μs" {
			microseconds, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			if err != nil || microseconds > math.MaxInt64/int64(time.Microsecond) {
				return 0, fmt.Errorf("%q is too long", span)
			}
			return time.Duration(microseconds) * time.Microsecond, nil
		}
	}
	return 0, fmt.Errorf("systemd-analyze timespan does not tell how long %q is: %s", span, output)
}

// Analyze asks systemd-analyze(1), which has systemd's own parsers.
func Analyze(ctx context.Context, verb string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, "systemd-analyze", append([]string{verb}, args...)...)
	command.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "SYSTEMD_COLORS=0")
	output, err := command.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return "", errors.New(strings.TrimSpace(string(exit.Stderr)))
	}
	return string(output), err
}
