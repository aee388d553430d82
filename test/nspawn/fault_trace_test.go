//go:build nspawn

package nspawn_test

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// strace counts the calls of each thread alone, and injects at the n-th of whichever comes to it: what a later thread calls after fewer calls is out
// of its reach. Go moves between threads. So the calls are told apart in another way: by their place among all calls of the name, over all
// threads and children. That is the same in each run, and says of each run which call was hit.
//
// Three things make it so. On one processor, without garbage collection and preemption, what a verb does is nearly always on one thread. What must be on
// another (a mount namespace, a working directory) or in a child is told apart by the paths that the call is about (strace -P). And
// what is missed all the same is tried again, without these constraints: Go may choose other threads then.

// steadily makes Go use as few threads as it can; freely, those that it likes. The wrapper says GOMAXPROCS=1.
const (
	steadily = "-E GOGC=off -E GODEBUG=asyncpreemptoff=1"
	freely   = "-E GOMAXPROCS=4"
)

// threadCalls make threads and processes; of them, it is only of interest whose they are.
const threadCalls = "clone,clone3,fork,vfork"

// tracedCall is a system call in a trace.
type tracedCall struct {
	thread, name, text string
	nth                int  // among those of its name, over all threads, from 1
	child              bool // in a program that the helper runs
}

// isSocket tells whether it writes to a socket: it changes no file. What it asks of others, they do or do not, whole.
func (c tracedCall) isSocket() bool {
	return strings.HasPrefix(c.name, "write") && strings.Contains(c.text, "<socket:")
}

func (c tracedCall) String() string { return fmt.Sprintf("%s %d (%.150s)", c.name, c.nth, c.text) }

// parseCalls reads what strace -f -y wrote. The line of a call that another one interrupts ends in "<unfinished ...>", and its rest comes later.
func parseCalls(lines []string) []tracedCall {
	var calls []tracedCall
	counts, children := map[string]int{}, map[string]bool{}
	begun, places := map[string]string{}, map[string]int{} // of a thread: the call that is interrupted, and where it is in calls
	for _, line := range lines {
		thread, text, _ := strings.Cut(line, " ")
		text = strings.TrimSpace(text)
		name, _, isCall := strings.Cut(text, "(")
		makesThread := slices.Contains(strings.Split(threadCalls, ","), name)
		switch {
		case strings.HasPrefix(text, "<... "):
			text = begun[thread] + " " + text
			name, _, _ = strings.Cut(text, "(")
			if makesThread = slices.Contains(strings.Split(threadCalls, ","), name); !makesThread {
				calls[places[thread]].text = text
			}
		case !isCall || strings.HasPrefix(text, "+++") || strings.HasPrefix(text, "---"):
			continue
		case !makesThread:
			counts[name]++
			places[thread] = len(calls)
			calls = append(calls, tracedCall{thread: thread, name: name, text: text, nth: counts[name], child: children[thread]})
		}
		begun[thread] = text
		if _, result, ended := strings.Cut(text, ") = "); makesThread && ended { // the number of what was made
			made, _, _ := strings.Cut(result, "<")
			children[strings.TrimSpace(made)] = children[thread] || !strings.Contains(text, "CLONE_THREAD")
		}
	}
	return calls
}

// hit returns the call that was disturbed; nil if none was.
func hit(lines []string) *tracedCall {
	killed := map[string]bool{}
	for _, line := range lines {
		if thread, text, _ := strings.Cut(line, " "); strings.Contains(text, "+++ killed by SIGKILL") {
			killed[thread] = true
		}
	}
	calls := parseCalls(lines)
	for i, c := range calls {
		if strings.Contains(c.text, "(INJECTED)") {
			return &c
		}
		last := !slices.ContainsFunc(calls[i+1:], func(later tracedCall) bool { return later.thread == c.thread })
		if ended := strings.Contains(c.text, ") = ") && !strings.HasSuffix(c.text, ") = ?"); killed[c.thread] && last && !ended {
			return &c
		}
	}
	return nil
}

// reference is what an undisturbed run of a verb calls.
type reference struct {
	calls []tracedCall
	paths map[string]bool // those that are the same in each run
}

// newReference takes the one of several traces in which most calls are within reach.
func newReference(traces [][]tracedCall) reference {
	var best reference
	common := map[string]int{}
	for _, calls := range traces {
		in := map[string]bool{}
		for _, c := range calls {
			for _, path := range c.paths() {
				in[path] = true
			}
		}
		for path := range in {
			common[path]++
		}
	}
	maps.DeleteFunc(common, func(_ string, n int) bool { return n < len(traces) })
	within := -1
	for _, calls := range traces {
		r := reference{calls, map[string]bool{}}
		for path := range common {
			r.paths[path] = true
		}
		n := 0
		for _, c := range calls {
			if _, _, ok := r.aim(c); ok {
				n++
			}
		}
		if n > within {
			best, within = r, n
		}
	}
	return best
}

// aim says when strace has to inject to hit a call, and which path it has to look for, "" for any; false if another call would be hit before.
func (r reference) aim(c tracedCall) (when int, path string, ok bool) {
	for _, path := range append([]string{""}, c.paths()...) {
		if path != "" && !r.paths[path] {
			continue
		}
		n := map[string]int{}
		for _, other := range r.about(c.name, path) {
			n[other.thread]++
			if other.nth == c.nth {
				break
			}
		}
		before := false
		for thread, count := range n {
			before = before || thread != c.thread && count >= n[c.thread]
		}
		if !before {
			return n[c.thread], path, true
		}
	}
	return 0, "", false
}

// injection returns the options by which strace has a call killed or failing, and the path that it looks for, "" for any. Later attempts leave it to
// chance which thread gets there first.
func (r reference) injection(c tracedCall, how string, attempt int) (options, path string) {
	when, path, within := r.aim(c)
	options = steadily
	if attempt >= attempts/2 || !within {
		when, path, options = c.nth, "", freely
	}
	options += fmt.Sprintf(" -e trace=%s -e inject=%s:%s:when=%d", c.name, c.name, how, when)
	if path != "" {
		options += " -P " + path
	}
	return options, path
}

// about lists the calls of a name that strace -P would select; all of them without a path.
func (r reference) about(name, path string) []tracedCall {
	return slices.DeleteFunc(slices.Clone(r.calls), func(c tracedCall) bool {
		return c.name != name || path != "" && !slices.Contains(c.paths(), path)
	})
}

// pathPattern finds what strace -y shows a call to be about: descriptors, and paths in quotes, which strace -P takes both.
var pathPattern = regexp.MustCompile(`\d<(/[^>]*)>|"([^"]*/[^"]*|[\w.-]+)"`)

func (c tracedCall) paths() []string {
	var all []string
	for _, match := range pathPattern.FindAllStringSubmatch(c.text, -1) {
		all = append(all, match[1]+match[2])
	}
	return all
}
