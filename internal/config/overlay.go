package config

import (
	"errors"
	"fmt"
	"math"
	"path"
	"strconv"
	"strings"
)

// Overlay is the section [Overlay]: what the content of an overlay may be. It is content.Rules, which the generator does without.
type Overlay struct {
	MaxSize     int64    // MaxSize=: of the files of one overlay, in bytes; 0 for no limit
	AllowPaths  []string // AllowPaths=: patterns of paths, with all below; none allows all
	AllowSetuid bool     // AllowSetuid=: also files that give rights to those who run them
	ContentScan []string // ContentScan=: a command that looks at new content
}

// set takes a key of the section.
func (o *Overlay) set(key, value string) (err error) {
	switch key {
	case "MaxSize":
		o.MaxSize, err = parseSize(value)
	case "AllowPaths":
		o.AllowPaths, err = appendPaths(o.AllowPaths, value)
	case "AllowSetuid":
		o.AllowSetuid, err = parseBool(value)
	case "ContentScan":
		o.ContentScan, err = parseCommand(value)
	default:
		return errUnknown
	}
	return err
}

// parseSize takes a number of bytes as systemd does (parse_size, with the base 1024), but in one part; empty is 0.
func parseSize(s string) (int64, error) {
	number := strings.TrimRight(s, "BKMGTPE")
	unit := map[string]float64{"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50, "E": 1 << 60}[s[len(number):]]
	if s == "" {
		return 0, nil
	}
	value, err := strconv.ParseFloat(number, 64)
	isPlain := !strings.ContainsFunc(number, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if err != nil || !isPlain || unit == 0 || value*unit >= math.MaxInt64 {
		return 0, errors.New("not a size: a number of bytes, or one with K, M, G or T after it")
	}
	return int64(value * unit), nil
}

// appendPaths adds to a list of patterns; an empty value clears it.
func appendPaths(list []string, value string) ([]string, error) {
	paths := appendWords(nil, value)
	for _, pattern := range paths {
		if _, err := path.Match(pattern, ""); err != nil || !path.IsAbs(pattern) {
			return nil, fmt.Errorf("%s is not a pattern of absolute paths", pattern)
		}
	}
	if paths == nil {
		return nil, nil
	}
	return append(list, paths...), nil
}

// parseCommand splits a command at blanks. There is no quoting.
func parseCommand(value string) ([]string, error) {
	words := strings.Fields(value)
	if len(words) > 0 && !path.IsAbs(words[0]) || strings.ContainsAny(value, `"'\\`) {
		return nil, errors.New("not the absolute path of a program, and arguments without quotes")
	}
	return words, nil
}
