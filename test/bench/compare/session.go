package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// session is one run: a failure ends it, and what was made is cleaned up at its end. It is the nspawn.TB of the harness.
type session struct {
	mu       sync.Mutex
	failed   bool
	cleanups []func()
}

// runSession runs f, and cleans up after it, also when a signal ends the run. It reports whether f came to its end.
func runSession(f func(*session)) bool {
	s := &session{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(s)
	}()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	select {
	case <-done:
	case sig := <-signals:
		s.fail("stopped by %v", sig)
	}
	s.cleanup()
	return !s.Failed()
}

func (s *session) cleanup() {
	for {
		s.mu.Lock()
		if len(s.cleanups) == 0 {
			s.mu.Unlock()
			return
		}
		last := s.cleanups[len(s.cleanups)-1]
		s.cleanups = s.cleanups[:len(s.cleanups)-1]
		s.mu.Unlock()
		done := make(chan struct{})
		go func() { // Fatalf ends only this goroutine
			defer close(done)
			last()
		}()
		<-done
	}
}

func (s *session) fail(format string, args ...any) {
	s.mu.Lock()
	s.failed = true
	s.mu.Unlock()
	s.Logf(format, args...)
}

// Helper is for testing.TB, where it marks functions that are no test.
func (s *session) Helper() {}

// Logf tells of progress.
func (s *session) Logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "compare: "+format+"\n", args...)
}

// Fatalf ends the run, as it does in testing.TB.
func (s *session) Fatalf(format string, args ...any) {
	s.fail(format, args...)
	runtime.Goexit()
}

// Failed reports whether the run has failed.
func (s *session) Failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// Cleanup has f called at the end, before those that were given earlier.
func (s *session) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

func (s *session) check(err error) {
	if err != nil {
		s.Fatalf("%v", err)
	}
}

// command runs a program and returns what it printed, without the final newline.
func (s *session) command(name string, args ...string) string {
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		s.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.Bytes())
	}
	return strings.TrimSuffix(string(out), "\n")
}
