package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// field is a fact with a name in front of it.
type field struct {
	label, style string
	values       []string // each on a line of its own
}

// printFields shows facts below each other, the names right-aligned.
func (s screen) printFields(w io.Writer, fields []field) {
	width := 0
	for _, f := range fields {
		width = max(width, len(f.label))
	}
	indent := strings.Repeat(" ", width+2)
	for _, f := range fields {
		lead := fmt.Sprintf("%*s: ", width, f.label)
		for _, value := range f.values {
			for _, line := range s.wrap(value, len(indent)) {
				fmt.Fprintf(w, "%s%s\n", lead, s.style(f.style, line))
				lead = indent
			}
		}
	}
}

// table has rows of cells below headings.
type table struct {
	columns []column
	rows    []row
}

type column struct {
	heading string
	right   bool // aligned to the right
}

type row struct {
	cells []cell
	note  cell // below the row
}

type cell struct{ text, style string }

// columnGap is what is between columns.
const columnGap = "  "

// print shows the table. On a terminal the last column gets what is left.
func (t table) print(s screen, w io.Writer) {
	widths := t.widths(s)
	headings := make([]cell, len(t.columns))
	for i, column := range t.columns {
		headings[i] = cell{column.heading, bold}
	}
	t.printRow(s, w, widths, headings)
	for _, row := range t.rows {
		t.printRow(s, w, widths, row.cells)
		if row.note.text == "" {
			continue
		}
		for _, line := range s.wrap(row.note.text, len(columnGap)) {
			fmt.Fprintf(w, "%s%s\n", columnGap, s.style(row.note.style, line))
		}
	}
}

func (t table) widths(s screen) []int {
	widths := make([]int, len(t.columns))
	for i, column := range t.columns {
		widths[i] = utf8.RuneCountInString(column.heading)
		for _, row := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row.cells[i].text))
		}
	}
	if !s.isTerminal() {
		return widths
	}
	last := len(widths) - 1
	left := s.width
	for _, width := range widths[:last] {
		left -= width + len(columnGap)
	}
	widths[last] = max(0, min(widths[last], left))
	return widths
}

func (t table) printRow(s screen, w io.Writer, widths []int, cells []cell) {
	var line strings.Builder
	for i, cell := range cells {
		text := s.cut(cell.text, widths[i])
		padding := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
		if t.columns[i].right {
			line.WriteString(padding)
		}
		line.WriteString(s.style(cell.style, text))
		if !t.columns[i].right && i < len(cells)-1 {
			line.WriteString(padding)
		}
		if i < len(cells)-1 {
			line.WriteString(columnGap)
		}
	}
	fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
}
