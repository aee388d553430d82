//go:build nspawn

package nspawn_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/test/nspawn"
)

// overlayRelease has files that the overlays of the test replace, mask and stand beside, some of which come and go with the release.
func overlayRelease(number string) func(*nspawn.Tree) {
	return func(tree *nspawn.Tree) {
		for _, dir := range []string{"usr/lib/lab", "usr/etc/lab"} {
			tree.Write(dir+"/same", "same\n", 0o644)
			tree.Write(dir+"/changing", number+"\n", 0o640)
			tree.Write(dir+"/folder/same", "same\n", 0o755)
			tree.Write(dir+"/folder/changing", number+"\n", 0o644)
			tree.Write(dir+"/closed/file", "same\n", 0o600)
			tree.Chmod(dir+"/closed", 0o750)
			tree.Symlink("same", dir+"/link")
			tree.Write(dir+"/only-in-"+number, number+"\n", 0o644)
			tree.Write(dir+"/only-in-"+number+"-folder/file", number+"\n", 0o644)
		}
	}
}

// soakFiles and soakFolders are what overlays have in the test, below both of soakDirs.
var (
	soakDirs  = []string{"usr/lib/lab", "etc/lab"}
	soakFiles = strings.Fields(`same changing folder/same folder/changing folder/new closed/file link new-folder/file new-folder/deep/file new
		only-in-1 only-in-2 only-in-3 only-in-1-folder/file only-in-2-folder/file only-in-2-folder/new only-in-3-folder/new`)
	soakFolders = strings.Fields(`folder new-folder only-in-1-folder only-in-2-folder`)
)

// overlaySoak is a machine, and what it should show.
type overlaySoak struct {
	m        *nspawn.Machine
	random   *rand.Rand
	booted   string
	live     string
	commits  []string                   // to be applied
	bases    map[string]nspawn.Snapshot // of each commit, without overlays
	overlays []*modelOverlay
	contents int
}

func newOverlaySoak(t *testing.T) *overlaySoak {
	t.Helper()
	s := &overlaySoak{random: seeded(t), bases: map[string]nspawn.Snapshot{}}
	s.booted = lab.Derive(t, product(t, nspawn.Trixie), overlayRelease("1"))
	s.live = s.booted
	s.m = lab.Machine(t, s.booted, nspawn.Options{})
	s.m.Boot()
	makeTransient(s.m)
	s.m.Write("/etc/liveapply/liveapply.conf", "[Apply]\nTransient=yes\nAllow=force\n")
	s.m.Write("/etc/lab/new", "the administrator's own\n")
	s.bases[s.booted] = usrAndEtc(s.m)
	for _, number := range []string{"2", "3"} {
		// Each from the product: none has what only the other one has.
		commit := derived(t, s.m, product(t, nspawn.Trixie), overlayRelease(number))
		apply(t, s.m, commit)
		s.bases[commit] = usrAndEtc(s.m)
		s.commits = append(s.commits, commit)
	}
	reset(t, s.m)
	return s
}

// want is what the machine should show.
func (s *overlaySoak) want() nspawn.Snapshot { return stacked(s.bases[s.live], s.overlays) }

// create makes the overlays, each with some content. The stores take turns, and so do some priorities.
func (s *overlaySoak) create(t *testing.T, count int) {
	t.Helper()
	for i := range count {
		made := overlay.Operation{Verb: overlay.Create, Name: fmt.Sprintf("overlay-%c", 'a'+(i*7)%count), Priority: s.random.IntN(3)}
		switch i % 3 {
		case 1:
			made.Runtime = true
		case 2:
			made.Scope = overlay.Global
		}
		o := &modelOverlay{made: made, enabled: true, content: map[string]nspawn.Entry{}}
		s.overlays = append(s.overlays, o)
		operations := []overlay.Operation{made}
		system := s.want()
		for range 4 {
			operations = append(operations, s.change(o, overlay.Set, system))
		}
		overlays(t, s.m, operations...)
	}
}

// change draws what a verb is done to, and does it in the model; an operation without a verb if it can be done to nothing.
func (s *overlaySoak) change(o *modelOverlay, verb overlay.Verb, system nspawn.Snapshot) overlay.Operation {
	var candidates []string
	for _, dir := range soakDirs {
		for _, name := range slices.Concat(soakFiles, soakFolders) {
			at := dir + "/" + name
			_, shown := system[at]
			_, own := o.content[at]
			isFolder := slices.Contains(soakFolders, name)
			switch verb {
			case overlay.Set:
				shown = !isFolder
			case overlay.Add:
				shown = isFile(system[at])
			case overlay.Mask:
				shown = shown || own
			case overlay.Unset:
				shown = own
			}
			if shown {
				candidates = append(candidates, at)
			}
		}
	}
	if len(candidates) == 0 {
		return overlay.Operation{}
	}
	op := overlay.Operation{Verb: verb, Name: o.made.Name, Path: "/" + candidates[s.random.IntN(len(candidates))]}
	s.contents++
	content := fmt.Sprintf("%s %d\n", o.made.Name, s.contents)
	if verb == overlay.Set {
		op = set(s.m, op.Name, op.Path, content)
		op.Mode = []uint32{0o644, 0o600, 0o755}[s.random.IntN(3)]
	}
	o.do(op, content, system)
	return op
}

// step does one thing: an application, a reset, or one request with up to three operations. It returns what it was.
func (s *overlaySoak) step(t *testing.T) string {
	t.Helper()
	switch s.random.IntN(8) {
	case 0:
		s.live = s.commits[s.random.IntN(len(s.commits))]
		if tried := tryApply(s.m, s.live); tried.Code != 0 {
			t.Fatalf("applying %s: %s\n%s", s.live, tried.Stderr, s.m.Journal("--unit=liveapply*", "--output=short-monotonic"))
		}
		return "apply " + s.live
	case 1:
		s.live = s.booted
		reset(t, s.m)
		return "reset"
	}
	operations := s.operations()
	overlays(t, s.m, operations...)
	return fmt.Sprintf("%+v", operations)
}

// operations draws those of one request, which are about the overlays of one store.
func (s *overlaySoak) operations() (operations []overlay.Operation) {
	system := s.want()
	first := s.overlays[s.random.IntN(len(s.overlays))]
	together := slices.DeleteFunc(slices.Clone(s.overlays), func(o *modelOverlay) bool {
		return o.made.Scope != first.made.Scope || o.made.Runtime != first.made.Runtime
	})
	for range 1 + s.random.IntN(3) {
		o := together[s.random.IntN(len(together))]
		verb := []overlay.Verb{"", "", "", overlay.Set, overlay.Add, overlay.Mask, overlay.Unset}[s.random.IntN(7)]
		if verb != "" {
			if op := s.change(o, verb, system); op.Verb != "" {
				operations = append(operations, op)
				continue
			}
		}
		op := overlay.Operation{Verb: overlay.Enable, Name: o.made.Name}
		if o.enabled {
			op.Verb = overlay.Disable
		}
		o.do(op, "", system)
		operations = append(operations, op)
	}
	return operations
}

// requireShown compares what is below some paths with the model.
func (s *overlaySoak) requireShown(t *testing.T, dirs ...string) {
	t.Helper()
	requireTree(t, "what the enabled overlays show", usrAndEtc(s.m, dirs...), only(s.want(), dirs...))
}

// overlayMounts counts the mounts that come with overlays. The machine itself may be on a loop device.
func overlayMounts(m *nspawn.Machine) int {
	count, disk := 0, m.MountsAt("/")[0].Source
	for _, mount := range m.Mounts() {
		if mount.FSType == "overlay" || strings.HasPrefix(mount.Source, "/dev/loop") && mount.Source != disk {
			count++
		}
	}
	return count
}

func TestOverlaysAtRandomAreWhatAModelSays(t *testing.T) {
	t.Parallel()
	s := newOverlaySoak(t)
	for _, made := range []overlay.Operation{{}, {Runtime: true}} { // from now on there are indexes
		made.Verb, made.Name = overlay.Create, "overlay-z"
		overlays(t, s.m, made)
		overlays(t, s.m, overlay.Operation{Verb: overlay.Remove, Name: made.Name})
	}
	before, mounts := factsOf(t, s.m), overlayMounts(s.m)

	s.create(t, 10)
	s.requireShown(t, "usr", "etc")
	for i := range sampled(200, 1000) {
		did := s.step(t)
		s.requireShown(t, "usr/lib/lab", "etc")
		if i%20 == 0 {
			s.requireShown(t, "usr", "etc")
		}
		requireTidy(t, s.m)
		if now := overlayMounts(s.m); now > mounts+1 {
			t.Errorf("there are %d overlays mounted, before the test there were %d:\n%s", now, mounts, mountTable(s.m))
		}
		if t.Failed() {
			for _, o := range s.overlays {
				t.Logf("%+v enabled=%t has %q", o.made, o.enabled, slices.Sorted(maps.Keys(o.content)))
			}
			t.Fatalf("after step %d: %s", i, did)
		}
	}
	s.requireShown(t, "usr", "etc")
	for _, o := range s.overlays {
		overlays(t, s.m, overlay.Operation{Verb: overlay.Remove, Name: o.made.Name})
	}
	reset(t, s.m)
	requireTidy(t, s.m)
	requireSame(t, s.m, before)
}
