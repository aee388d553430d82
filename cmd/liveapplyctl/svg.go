package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/liveapply/liveapply/internal/state"
)

// The drawing, in pixels.
const (
	svgWidth   = 1000
	svgMargin  = 28
	svgLeft    = 124 // where the time begins; the names of the phases are left of it
	svgRight   = svgWidth - svgMargin
	svgRow     = 36
	svgBar     = 22
	svgStepRow = 18
	svgStepBar = 6
	svgMinBar  = 2 // what took no time is still seen
	svgLine    = 20
	svgLetter  = 7.0 // about what a letter of a label takes
	svgReason  = 130 // letters in a line of the reason
	svgPadding = 8
)

// svgStyle follows the colours of whoever looks, and needs no font in particular.
const svgStyle = `
  text { font: 13px system-ui, "Cantarell", "DejaVu Sans", sans-serif; fill: #1d2733; }
  .title { font-size: 21px; font-weight: 600; }
  .fact { fill: #5b6775; }
  .id { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12px; fill: #5b6775; }
  .name { font-weight: 600; text-anchor: end; }
  .tick { font-size: 11px; fill: #5b6775; text-anchor: middle; }
  .before { text-anchor: end; }
  .label { stroke: #fff; stroke-width: 3px; stroke-linejoin: round; paint-order: stroke; }
  .inside { fill: #fff; }
  .reason { fill: #b3261e; }
  .page { fill: #fff; }
  .stripe { fill: #f4f6f8; }
  .grid { stroke: #dde2e7; }
  .wait { stroke: #9aa5b1; stroke-dasharray: 2 3; }
  .switched { stroke: #c77700; stroke-width: 1.5; stroke-dasharray: 5 3; }
  .switched-label { fill: #a86400; font-weight: 600; }
  .bar { fill: #3b78c3; }
  .bar-prepare { fill: #6b8fb8; }
  .bar-mount { fill: #d98e1f; }
  .bar-services { fill: #3f9168; }
  .step { fill: #8a4fa3; }
  .step-name, .step-name.inside { font-size: 11px; fill: #5b6775; }
  .bar-failed { fill: #c9382f; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e3e8ee; }
    .fact, .id, .tick, .step-name, .step-name.inside { fill: #9aa7b5; }
    .reason { fill: #ff8f86; }
    .page { fill: #14191f; }
    .label { stroke: #14191f; }
    .stripe { fill: #1b222a; }
    .grid { stroke: #2e3843; }
    .switched-label { fill: #f0b356; }
  }
`

// canvas collects the elements of a drawing.
type canvas struct{ bytes.Buffer }

func escaped(text string) string {
	var out bytes.Buffer
	xml.EscapeText(&out, []byte(text)) // a bytes.Buffer takes everything
	return out.String()
}

func (c *canvas) text(x, y float64, class, text string) {
	fmt.Fprintf(c, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">%s</text>\n", x, y, class, escaped(text))
}

func (c *canvas) line(x1, y1, x2, y2 float64, class string) {
	fmt.Fprintf(c, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>\n", x1, y1, x2, y2, class)
}

func (c *canvas) rect(x, y, width, height, radius float64, class, title string) {
	fmt.Fprintf(c, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"%.0f\" class=\"%s\">", x, y, width, height, radius, class)
	if title != "" {
		fmt.Fprintf(c, "<title>%s</title>", escaped(title))
	}
	fmt.Fprint(c, "</rect>\n")
}

// svg draws the transaction: what it was, and its phases below each other on a common scale.
func (t timeline) svg() []byte {
	var body canvas
	y := t.drawHead(&body)
	y = t.drawChart(&body, y)

	var drawing canvas
	fmt.Fprintf(&drawing, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" viewBox=\"0 0 %d %.0f\" role=\"img\">\n",
		svgWidth, y, svgWidth, y)
	fmt.Fprintf(&drawing, "<title>%s</title>\n<style>%s</style>\n", escaped(t.title()), svgStyle)
	drawing.rect(0, 0, svgWidth, y, 0, "page", "")
	drawing.Write(body.Bytes())
	fmt.Fprint(&drawing, "</svg>\n")
	return drawing.Bytes()
}

func (t timeline) title() string {
	commit := "A commit that is not known"
	if !t.entry.Target.IsZero() {
		commit = "Commit " + t.entry.Target.String()[:shortCommit]
	}
	switch t.entry.Result {
	case state.Applied:
		return fmt.Sprintf("%s was applied in %s", commit, seconds(t.length))
	case state.Reset:
		return fmt.Sprintf("Back to the booted tree in %s", seconds(t.length))
	}
	return fmt.Sprintf("%s was %s", commit, strings.ReplaceAll(string(t.entry.Result), "-", " "))
}

// drawHead says what the transaction was, and returns where the next line is.
func (t timeline) drawHead(c *canvas) (y float64) {
	e := t.entry
	y = svgMargin + 16
	c.text(svgMargin, y, "title", t.title())
	y += svgLine + 6
	facts := "started " + e.Started.Local().Format("2006-01-02 15:04:05.000 MST")
	if e.RequestedBy != "" {
		facts += ", requested by " + printable(e.RequestedBy)
	}
	c.text(svgMargin, y, "fact", facts)
	for _, id := range [][2]string{{"from", checksumText(e.From)}, {"to", checksumText(e.Target)}, {"transaction", e.Transaction}} {
		y += svgLine
		c.text(svgMargin, y, "fact", id[0])
		c.text(svgLeft, y, "id", id[1])
	}
	if e.Reason != "" {
		y += 4
		for _, line := range (screen{width: svgReason}).wrap(printable(e.Reason), 0) {
			y += svgLine
			c.text(svgMargin, y, "reason", line)
		}
	}
	return y + svgLine
}

// x is where a time is.
func (t timeline) x(at time.Duration) float64 {
	if t.length == 0 {
		return svgLeft
	}
	return svgLeft + float64(at)/float64(t.length)*(svgRight-svgLeft)
}

// drawChart draws the scale and the phases below y, and returns where the drawing ends.
func (t timeline) drawChart(c *canvas, y float64) (bottom float64) {
	if len(t.spans) == 0 {
		c.text(svgMargin, y+svgLine, "fact", "It ended before its first phase.")
		return y + svgLine + svgMargin
	}
	top := y + svgLine
	bottom = top
	for i, s := range t.spans {
		if i%2 == 0 {
			c.rect(svgMargin, bottom, svgRight-svgMargin, s.height(), 0, "stripe", "")
		}
		bottom += s.height()
	}
	for _, tick := range t.ticks() {
		c.line(t.x(tick), top, t.x(tick), bottom, "grid")
		c.text(t.x(tick), top-6, "tick", tickText(tick))
	}
	if when, ok := t.switched(); ok {
		c.line(t.x(when), top, t.x(when), bottom+6, "switched")
		t.drawLabel(c, t.x(when)-svgPadding, t.x(when), bottom+svgLine, "switched-label", "/usr has changed")
		bottom += svgLine
	}
	for i, s := range t.spans {
		middle := top + svgRow/2
		if i > 0 { // systemd starts the next unit
			before := t.spans[i-1]
			c.line(t.x(before.end), middle-before.height()+svgBar/2, t.x(before.end), middle, "wait")
			c.line(t.x(before.end), middle, t.x(max(s.begin, before.end)), middle, "wait")
		}
		t.drawSpan(c, s, middle)
		top += s.height()
	}
	return bottom + svgMargin
}

func (t timeline) drawSpan(c *canvas, s span, middle float64) {
	c.text(svgLeft-svgPadding-4, middle+4.5, "name", s.name)
	label := seconds(s.end-s.begin) + ", " + s.does
	class := "bar bar-" + barClass(s.name)
	if s.failed {
		class, label = "bar-failed", "failed: "+s.does
	}
	width := max(svgMinBar, t.x(s.end)-t.x(s.begin))
	c.rect(min(t.x(s.begin), svgRight-width), middle-svgBar/2, width, svgBar, 3, class, s.name+": "+label)
	t.drawLabel(c, t.x(s.begin), t.x(s.begin)+width, middle+4.5, "does", label)
	for i, step := range s.steps {
		t.drawStep(c, step, middle+svgRow/2+svgStepRow*(float64(i)+0.5)-svgStepBar/2)
	}
}

func (t timeline) drawStep(c *canvas, step span, middle float64) {
	length := step.end - step.begin
	label := step.name + ", " + seconds(length)
	if length < 10*time.Millisecond {
		label = fmt.Sprintf("%s, %.1f ms", step.name, length.Seconds()*1000)
	}
	width := max(svgMinBar, t.x(step.end)-t.x(step.begin))
	x := min(t.x(step.begin), svgRight-width)
	c.rect(x, middle-svgStepBar/2, width, svgStepBar, 1, "step", label)
	t.drawLabel(c, x, x+width, middle+4, "step-name", label)
}

// height is what a phase and its steps, each on a row of its own below, take.
func (s span) height() float64 { return svgRow + svgStepRow*float64(len(s.steps)) }

// barClass names the class of a phase, and nothing else: the history is a file.
func barClass(phase string) string {
	if _, known := applyDoes[phase]; known {
		return phase
	}
	return "other"
}

// drawLabel writes beside what reaches from x1 to x2, where there is room: right of it, left of it, or on it.
func (t timeline) drawLabel(c *canvas, x1, x2, y float64, class, label string) {
	width := svgLetter * float64(utf8.RuneCountInString(label))
	switch {
	case x2+svgPadding+width <= svgRight:
		c.text(x2+svgPadding, y, class+" label", label)
	case x1-svgPadding-width >= svgLeft:
		c.text(x1-svgPadding, y, class+" label before", label)
	default:
		c.text(x1+svgPadding, y, class+" inside", label)
	}
}

func tickText(d time.Duration) string {
	switch {
	case d == 0:
		return "0"
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%g s", d.Seconds())
}
