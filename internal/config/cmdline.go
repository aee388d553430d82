package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// IsOff tells whether the machine was booted with liveapply=off. Units know it by ConditionKernelCommandLine=.
func (d Dirs) IsOff() (bool, error) {
	words, err := d.kernelCommandLine()
	return slices.Contains(words, "liveapply=off"), err
}

// UpdatesImage is an updates image that the kernel command line names by liveapply.updates=.
type UpdatesImage struct {
	Number int    // its place among them, from 1 on
	Text   string // a path or a URL, and maybe a checksum
}

const updatesOption = "liveapply.updates="

func (i UpdatesImage) String() string { return updatesOption + i.Text }

// IsURL tells whether it has to be fetched.
func (i UpdatesImage) IsURL() bool { return strings.Contains(i.Text, "://") }

// UpdatesImages are all that the kernel command line names.
func (d Dirs) UpdatesImages() (images []UpdatesImage, err error) {
	words, err := d.kernelCommandLine()
	for _, word := range words {
		if text, found := strings.CutPrefix(word, updatesOption); found {
			images = append(images, UpdatesImage{len(images) + 1, text})
		}
	}
	return images, err
}

// kernelCommandLine returns its words.
func (d Dirs) kernelCommandLine() ([]string, error) {
	content, err := os.ReadFile(filepath.Join(d.Root, "proc/cmdline"))
	if err != nil {
		return nil, fmt.Errorf("reading the kernel command line: %w", err)
	}
	return strings.Fields(string(content)), nil
}
