package main

import (
	"fmt"
	"slices"
	"strings"
)

// samples are measured values of one kind.
type samples []float64

// median of an even number of samples is the mean of the two in the middle; of none, 0.
func (s samples) median() float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// plus adds sample by sample: the sum of things that were measured in the same rounds.
func (s samples) plus(other samples) samples {
	var sum samples
	for i := range s {
		sum = append(sum, s[i]+other[i])
	}
	return sum
}

// row is one thing that was measured.
type row struct {
	name string
	time samples // in seconds
	data int64   // bytes of file data written; unknown if negative
	peak samples // largest resident set, in KiB; not measured if empty
}

// comparison is a figure and what it is held to.
type comparison struct {
	name  string
	value float64
	unit  string
	held  held
	limit float64
}

// held is how a figure is held to its limit.
type held string

const (
	notHeld held = "no limit"
	atMost  held = "at most"
	under   held = "under"
)

func (c comparison) holds() bool {
	switch c.held {
	case atMost:
		return c.value <= c.limit
	case under:
		return c.value < c.limit
	}
	return true
}

// group is rows that belong together, and what follows from them.
type group struct {
	name        string
	rows        []row
	comparisons []comparison
}

// section is a part of the table.
type section struct {
	title  string
	groups []group
}

// table is what is printed.
type table struct{ sections []section }

func (t *table) add(s section) { t.sections = append(t.sections, s) }

// broken counts the limits that do not hold.
func (t *table) broken() int {
	n := 0
	for _, section := range t.sections {
		for _, group := range section.groups {
			for _, c := range group.comparisons {
				if !c.holds() {
					n++
				}
			}
		}
	}
	return n
}

// width is that of the table, in characters.
const width = 100

// String returns the table as text.
func (t *table) String() string {
	var out strings.Builder
	for i, section := range t.sections {
		if i > 0 {
			out.WriteByte('\n')
		}
		section.write(&out)
	}
	return out.String()
}

func (s section) write(out *strings.Builder) {
	fmt.Fprintf(out, "%-54s %9s %9s %9s %7s %7s\n", s.title, "median", "min", "max", "data", "memory")
	out.WriteString(strings.Repeat("-", width) + "\n")
	for _, group := range s.groups {
		fmt.Fprintf(out, "%s\n", group.name)
		for _, r := range group.rows {
			fmt.Fprintf(out, "  %-52s %9s %9s %9s %7s %7s\n", r.name,
				duration(r.time.median()), duration(slices.Min(r.time)), duration(slices.Max(r.time)), r.written(), r.memory())
		}
		for _, c := range group.comparisons {
			fmt.Fprintf(out, "  = %-50s %9s  %s\n", c.name, c.figure(), c.verdict())
		}
	}
}

func (c comparison) figure() string { return fmt.Sprintf("%.3g%s", c.value, c.unit) }

func (c comparison) verdict() string {
	if c.held == notHeld {
		return string(notHeld)
	}
	verdict := "holds"
	if !c.holds() {
		verdict = "DOES NOT HOLD"
	}
	return fmt.Sprintf("limit: %s %.3g%s: %s", c.held, c.limit, c.unit, verdict)
}

func (r row) written() string {
	switch {
	case r.data < 0:
		return ""
	case r.data < 1<<10:
		return fmt.Sprint(r.data)
	case r.data < 1<<20:
		return digits(float64(r.data)/(1<<10)) + "K"
	}
	return digits(float64(r.data)/(1<<20)) + "M"
}

func (r row) memory() string {
	if len(r.peak) == 0 {
		return ""
	}
	return digits(r.peak.median()/1024) + "M"
}

// duration shows three digits.
func duration(seconds float64) string {
	switch {
	case seconds < 1e-3:
		return digits(seconds*1e6) + "us"
	case seconds < 1:
		return digits(seconds*1e3) + "ms"
	}
	return digits(seconds) + "s"
}

// digits shows three digits of a number of at least 0.1, and all those before the point.
func digits(value float64) string {
	switch {
	case value < 10:
		return fmt.Sprintf("%.2f", value)
	case value < 100:
		return fmt.Sprintf("%.1f", value)
	}
	return fmt.Sprintf("%.0f", value)
}
