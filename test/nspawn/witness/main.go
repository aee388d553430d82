// Command witness runs inside a machine while commits are applied to it, and tells what a process sees of that. It
// is linked statically, so it depends on no file of the trees that it watches.
//
//	witness watch STEP VERSION FILE...   reads all files, again and again, until STEP says "stop"
//	witness hold DIR                     works in DIR, and keeps DIR/version open and mapped, until SIGTERM
//
// Both say "ready", and fail with what they saw that must not be.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) > 3 && args[0] == "watch":
		return watch(args[1], args[2], args[3:])
	case len(args) == 2 && args[0] == "hold":
		return hold(args[1])
	}
	return errors.New("usage: witness watch STEP VERSION FILE... | hold DIR")
}

// watch reads the version, and files that every version has. The file step, replaced by rename, says "<number> <version before>
// <version after>": while it stays the same, the one before may be seen, then the one after, and never again the one before.
func watch(step, version string, files []string) error {
	fmt.Println("ready")
	seen := map[string]bool{}
	arrived := "" // the step in which the version after was seen
	for {
		began, err := os.ReadFile(step)
		if err != nil {
			return err
		}
		if string(began) == "stop" {
			fmt.Printf("saw %d versions\n", len(seen))
			return nil
		}
		content, err := os.ReadFile(version)
		if err != nil {
			return err
		}
		for _, file := range files {
			if _, err := os.ReadFile(file); err != nil {
				return err
			}
		}
		if err := exec.Command("/usr/bin/true").Run(); err != nil {
			return err
		}
		now := strings.TrimSpace(string(content))
		seen[now] = true
		ended, err := os.ReadFile(step)
		if err != nil {
			return err
		}
		if string(began) != string(ended) {
			continue
		}
		var number int
		var before, after string
		if _, err := fmt.Sscan(string(began), &number, &before, &after); err != nil {
			return fmt.Errorf("step %q: %w", began, err)
		}
		if now != before && now != after {
			return fmt.Errorf("in step %q version %s was seen", began, now)
		}
		if now == after {
			arrived = string(began)
		} else if arrived == string(began) {
			return fmt.Errorf("in step %q version %s was seen after %s", began, now, after)
		}
	}
}

// hold keeps what it has of a tree, and in the end tells what that is.
func hold(dir string) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	if err := os.Chdir(dir); err != nil {
		return err
	}
	file, err := os.Open("version")
	if err != nil {
		return err
	}
	mapped, err := syscall.Mmap(int(file.Fd()), 0, 1, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	<-stop
	open := make([]byte, 1)
	if _, err := file.ReadAt(open, 0); err != nil {
		return err
	}
	inDir, err := os.ReadFile("version")
	if err != nil {
		return err
	}
	now, err := os.ReadFile(dir + "/version")
	if err != nil {
		return err
	}
	fmt.Printf("open %s mapped %s directory %c path %c\n", open, mapped, inDir[0], now[0])
	return nil
}
