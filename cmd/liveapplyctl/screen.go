package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// screen is where a verb writes. On a terminal, what does not fit is abbreviated or wrapped; a pipe or a file gets all in full, one
// fact per line.
type screen struct {
	io.Writer
	width   int  // of the terminal, in columns; 0 if it is none
	colours bool // there is a terminal, and it may be coloured
	redraws bool // there is a terminal on which a line can be written again
	marks   marks
}

// marks are the characters that are not letters.
type marks struct {
	live, booted, done, failed, bar, space, ellipsis string
}

var (
	unicodeMarks = marks{"●", "○", "✓", "✗", "█", "░", "…"}
	asciiMarks   = marks{"*", "-", "+", "x", "#", "-", "..."}
)

// defaultWidth is that of a terminal that does not tell.
const defaultWidth = 80

// openScreen looks at what a file is. NO_COLOR (no-color.org), TERM and the locale have their usual meaning.
func openScreen(file *os.File) screen {
	s := screen{Writer: file, marks: asciiMarks}
	if locale := cmp.Or(os.Getenv("LC_ALL"), os.Getenv("LC_CTYPE"), os.Getenv("LANG")); isUTF8(locale) {
		s.marks = unicodeMarks
	}
	if _, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS); err != nil {
		return s
	}
	s.width = defaultWidth
	if size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
		s.width = int(size.Col)
	}
	term := os.Getenv("TERM")
	s.redraws = term != "" && term != "dumb"
	s.colours = s.redraws && os.Getenv("NO_COLOR") == ""
	return s
}

func isUTF8(locale string) bool {
	locale = strings.ToLower(locale)
	return strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8")
}

// isTerminal tells whether somebody is looking.
func (s screen) isTerminal() bool { return s.width > 0 }

// The styles, as parameters of SGR (ECMA-48).
const (
	plain  = ""
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (s screen) style(style, text string) string {
	if !s.colours || style == plain || text == "" {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// cut abbreviates text that is longer than width.
func (s screen) cut(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	keep := width - utf8.RuneCountInString(s.marks.ellipsis)
	if keep <= 0 {
		return ""
	}
	return string([]rune(text)[:keep]) + s.marks.ellipsis
}

// short abbreviates a checksum or the like, on a terminal.
func (s screen) short(id string, digits int) string {
	if !s.isTerminal() || len(id) <= digits {
		return id
	}
	return id[:digits]
}

// wrap breaks text into lines for what a terminal has left beside an indentation.
func (s screen) wrap(text string, indent int) []string {
	if !s.isTerminal() {
		return []string{text}
	}
	room := max(1, s.width-indent)
	var lines []string
	var line []rune
	for word := range strings.FieldsSeq(text) {
		word := []rune(word)
		if len(line) > 0 && len(line)+1+len(word) <= room {
			line = append(append(line, ' '), word...)
			continue
		}
		if len(line) > 0 {
			lines = append(lines, string(line))
		}
		for ; len(word) > room; word = word[room:] {
			lines = append(lines, string(word[:room]))
		}
		line = slices.Clone(word)
	}
	return append(lines, string(line))
}

// printable makes one line of a text that others have written, in which nothing commands the terminal: file names of a commit, say.
func printable(text string) string {
	return harmless(strings.NewReplacer("\n", "; ", "\t", `\u0009`).Replace(strings.TrimSpace(text)))
}

// harmless is a line in which nothing commands the terminal, with its tabs.
func harmless(line string) string {
	var out strings.Builder
	for _, r := range line {
		if unicode.IsPrint(r) || r == '\t' {
			out.WriteRune(r)
		} else {
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.String()
}
