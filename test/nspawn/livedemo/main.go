// Command livedemo is what test/nspawn/demo runs: a live apply on a real OSTree Debian, step by step, with
// each command as one would type it on that machine, and what it answers.
package main

import (
	"fmt"
	"log"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/liveapply/liveapply/test/nspawn"
)

func main() {
	suite := nspawn.Trixie
	switch {
	case len(os.Args) == 2 && slices.Contains([]string{"trixie", "bookworm"}, os.Args[1]):
		suite = nspawn.Suite(os.Args[1])
	case len(os.Args) > 1:
		fmt.Fprintln(os.Stderr, "usage: demo [trixie|bookworm]")
		os.Exit(2)
	}
	log.SetFlags(0)
	lab, err := nspawn.Open()
	if err != nil {
		log.Fatal(err)
	}
	d := &demo{lab: lab}
	d.run(suite)
	d.finish()
}

// topMountOfUsr shows what the visible mount on /usr is made from: a directory of the booted deployment,
// or an overlay that names the live commit.
const topMountOfUsr = "findmnt --noheadings --output SOURCE /usr | tail -1 | sed 's,.*/ostree/deploy,…/ostree/deploy,'"

func (d *demo) run(suite nspawn.Suite) {
	d.step("Build the project and two commits of Debian %s: one with the project, one that adds nginx and PostgreSQL.", suite)
	v1 := d.lab.WithProduct(d, d.lab.Base(d, suite, nspawn.Minimal))
	v2 := d.lab.WithProduct(d, d.lab.Base(d, suite, nspawn.Servers))
	d.say("%s  the system", v1)
	d.say("%s  with nginx and PostgreSQL", v2)

	d.step("Boot the first one, in a container.")
	d.machine = d.lab.Machine(d, v1, nspawn.Options{})
	d.machine.Boot()
	d.shows("ostree admin status", v1)
	d.shows(topMountOfUsr, "ostree/deploy")
	started := d.machine.Run("ps", "-o", "lstart=", "-p", "1")
	d.shows("ps -o lstart= -p 1", started)
	d.shows("systemctl cat nginx.service 2>&1 || true", "No files found")
	booted := d.machine.Snapshot("/usr")
	etc := d.machine.Snapshot("/etc")

	d.step("Bring the second commit into its repo, as ostree pull would.")
	d.machine.Pull(v2)
	d.say("done")

	d.step("Apply it to the running system.")
	took := d.shows("systemctl start liveapply@"+v2+".service", "")
	d.say("This took %.2f s.", took.Seconds())

	d.step("The same machine, without a reboot: /usr is the new tree, and the servers serve.")
	d.shows("ostree admin status", v1)
	d.shows(topMountOfUsr, "liveapply:"+v2)
	d.shows("liveapplyctl status", v2[:8])
	d.shows("systemctl start nginx postgresql", "")
	d.shows("curl --silent http://localhost/ | grep title", "Welcome to nginx")
	d.shows(`runuser -u postgres -- psql -tAc "SELECT 'six times seven is ' || 6 * 7"`, "six times seven is 42")
	d.shows("ps -o lstart= -p 1", started)

	d.step("Take it back.")
	d.shows("systemctl stop nginx postgresql", "")
	took = d.shows("liveapplyctl reset", "")
	d.say("This took %.2f s.", took.Seconds())
	d.shows(topMountOfUsr, "ostree/deploy")
	d.shows("ostree admin status", v1)
	d.shows("ls /usr/sbin/nginx 2>&1 || true", "No such file")
	d.same("/usr", booted)
	d.same("/etc", etc)
}

// demo tells what happens, and stops at the first thing that does not work.
type demo struct {
	lab      *nspawn.Lab
	machine  *nspawn.Machine
	steps    int
	failed   bool
	cleanups []func()
}

// step begins a numbered step.
func (d *demo) step(format string, args ...any) {
	d.steps++
	fmt.Printf("\n%d. %s\n\n", d.steps, fmt.Sprintf(format, args...))
}

func (d *demo) say(format string, args ...any) {
	fmt.Printf("   %s\n", fmt.Sprintf(format, args...))
}

// shows runs a shell command on the machine and shows both; its output must contain want.
func (d *demo) shows(command, want string) time.Duration {
	d.say("# %s", command)
	start := time.Now()
	result := d.machine.Try("sh", "-c", "exec 2>&1\n"+command) // in the order in which a terminal would show it
	took := time.Since(start)
	for line := range strings.Lines(result.Stdout) {
		if line = strings.TrimRight(line, " \n"); line != "" {
			d.say("%s", line)
		}
	}
	if result.Code != 0 {
		d.Fatalf("this failed, with exit status %d", result.Code)
	}
	if !strings.Contains(result.Stdout, want) {
		d.Fatalf("this should say %q", want)
	}
	return took
}

// same compares a directory of the machine, file by file, with what it was.
func (d *demo) same(dir string, before nspawn.Snapshot) {
	if diff := nspawn.Diff(before, d.machine.Snapshot(dir)); diff != "" {
		d.Fatalf("%s is not as it was before:\n%s", dir, diff)
	}
	d.say("%s: all %d paths are as they were before.", dir, len(before))
}

// The methods that nspawn.TB asks for.

func (d *demo) Helper()                      {}
func (d *demo) Failed() bool                 { return d.failed }
func (d *demo) Cleanup(f func())             { d.cleanups = append(d.cleanups, f) }
func (d *demo) Logf(format string, a ...any) { d.say(format, a...) }

func (d *demo) Fatalf(format string, args ...any) {
	if !d.failed {
		d.failed = true
		fmt.Fprintf(os.Stderr, "\nIT DID NOT WORK: %s\n", fmt.Sprintf(format, args...))
		d.finish()
	}
	os.Exit(1)
}

// finish undoes what was set up, the last thing first.
func (d *demo) finish() {
	for _, cleanup := range slices.Backward(d.cleanups) {
		cleanup()
	}
	if err := d.lab.Close(); err != nil {
		log.Fatal(err)
	}
}
