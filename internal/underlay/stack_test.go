package underlay

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestSourceOfAMountIsReadAsItWasWritten(t *testing.T) {
	commit := strings.Repeat("0123456789abcdef", 4)
	for text, want := range map[string]Source{
		"liveapply:" + commit:           {Live: commit},
		"liveapply:base+0a1b2c:hotfix":  {Live: Base, Digest: "0a1b2c", Names: []string{"hotfix"}},
		"liveapply:abc+012345:b,a-1_2.": {Live: "abc", Digest: "012345", Names: []string{"b", "a-1_2."}},
		"liveapply:abc+012345:b,…":      {Live: "abc", Digest: "012345", Names: []string{"b", "…"}},
		"liveapply:abc+012345:…":        {Live: "abc", Digest: "012345", Names: []string{"…"}},
	} {
		if got := want.String(); got != text {
			t.Errorf("%+v is written %q, want %q", want, got, text)
		}
		got, ok := ParseSource(text)
		if diff := cmp.Diff(want, got); !ok || diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
	for _, text := range []string{
		"", "overlay", "liveapply", "liveapply:", "liveapply:+12:a", "liveapply:a+", "liveapply:a+12", "liveapply:a+12:", "liveapply:a+xy:b",
		"liveapply:a+12:b,", "liveapply:a+12:…,b", "liveapply:a+12:b…", "liveapply:a b", "liveapply:a+12:b c", "xliveapply:a", "liveapply:a\n",
	} {
		if source, ok := ParseSource(text); ok {
			t.Errorf("%q is read as %+v", text, source)
		}
	}
}

func TestLongSourcesAreCutBetweenNames(t *testing.T) {
	for length := range 120 {
		source := Source{Live: strings.Repeat("c", 64), Digest: "0123456789ab"}
		for range 10 {
			source.Names = append(source.Names, strings.Repeat("n", length+1))
		}
		text := source.String()
		whole := len("liveapply:")+64+1+12+1+10*(length+2)-1 <= maxSource
		if len(text) > maxSource || whole == strings.HasSuffix(text, cut) {
			t.Errorf("names of %d: %d bytes: %s", length+1, len(text), text)
		}
		parsed, ok := ParseSource(text)
		if !ok || parsed.Live != source.Live || parsed.Digest != source.Digest || parsed.String() != text {
			t.Errorf("%q is read as %+v", text, parsed)
		}
		for i, name := range parsed.Names {
			if name != source.Names[i] && (name != cut || i != len(parsed.Names)-1) {
				t.Errorf("%q: name %d is %q", text, i, name)
			}
		}
	}
}

// writable returns a stack with an upper directory, above a layer.
func (m *machine) writable(name string) Stack {
	m.t.Helper()
	stack := stackOf(name, m.layer(name))
	stack.Source.Digest, stack.Source.Names = "0123", []string{"scratch"}
	m.mkdir("scratch/upper")
	m.mkdir("scratch/work")
	stack.Upper, stack.Work = filepath.Join(m.dir, "scratch/upper"), filepath.Join(m.dir, "scratch/work")
	return stack
}

func TestStackOfOverlaysOnly(t *testing.T) {
	forEachLayout(t, func(t *testing.T, m *machine) {
		stack := m.writable("layer")
		stack.Source.Live = Base
		_, err := m.usr.Switch(stack)
		m.check(err)
		state := m.inspect()
		if diff := cmp.Diff(stack.Source, state.Shown); diff != "" || state.Live != "" || state.Source != "liveapply:base+0123:scratch" {
			t.Errorf("Inspect says %+v\n%s", state, diff)
		}
		sources, err := MountedSources()
		m.check(err)
		if !containsSource(sources, stack.Source) {
			t.Errorf("%+v is not among the mounted sources, %+v", stack.Source, sources)
		}
		m.detach()
		if state := m.inspect(); state.Shown.Live != "" {
			t.Errorf("Inspect says %+v", state)
		}
	})
}

func TestMountsBelowADirectoryAreFoundInAnyNamespace(t *testing.T) {
	forEachLayout(t, func(t *testing.T, m *machine) {
		_, err := m.usr.Switch(stackOf("one", m.layer("one")))
		m.check(err)
		for path, want := range map[string]bool{m.dir: true, m.usr.Path: true, m.dir[:len(m.dir)-1]: false, filepath.Join(m.dir, "none"): false} {
			if got, err := IsMountedBelow(path); got != want || err != nil {
				t.Errorf("%s: got %v, %v", path, got, err)
			}
		}
	})
}

func containsSource(sources []Source, want Source) bool {
	for _, source := range sources {
		if cmp.Equal(source, want) {
			return true
		}
	}
	return false
}

func TestWritableStackTakesWhatIsWritten(t *testing.T) {
	forEachLayout(t, func(t *testing.T, m *machine) {
		before := m.table()
		stack := m.writable("one")
		_, err := m.usr.Switch(stack)
		m.check(err)
		m.check(os.WriteFile(filepath.Join(m.usr.Path, "new"), []byte("written"), 0o644))
		m.check(os.Remove(filepath.Join(m.usr.Path, "lib/os-release")))
		m.check(m.usr.Detach())
		if diff := cmp.Diff(before, m.table()); diff != "" {
			t.Errorf("the mount table differs afterwards (-before +after):\n%s", diff)
		}
		if got := m.read("new") + m.read("lib/os-release"); got != "booted" {
			t.Errorf("the booted tree shows %q", got)
		}
		_, err = m.usr.Switch(stack)
		m.check(err)
		if got := m.read("new") + m.read("lib/os-release"); got != "written" {
			t.Errorf("the writable overlay shows %q when it comes back", got)
		}
		m.shows("one")
		m.detach()
	})
}

func TestUpperDirectoriesOfAnyName(t *testing.T) {
	for _, name := range []string{`a:b,c\d=e f`, strings.Repeat("d", 200) + "/" + strings.Repeat("e", 200)} {
		forEachLayout(t, func(t *testing.T, m *machine) {
			stack := m.writable("one")
			m.mkdir("scratch/" + name)
			m.check(os.Rename(stack.Upper, filepath.Join(m.dir, "scratch", name, "upper")))
			m.check(os.Rename(stack.Work, filepath.Join(m.dir, "scratch", name, "work")))
			stack.Upper, stack.Work = filepath.Join(m.dir, "scratch", name, "upper"), filepath.Join(m.dir, "scratch", name, "work")
			_, err := m.usr.Switch(stack)
			m.check(err)
			m.check(os.WriteFile(filepath.Join(m.usr.Path, "new"), []byte("written"), 0o644))
			if content, err := os.ReadFile(filepath.Join(stack.Upper, "new")); string(content) != "written" {
				t.Errorf("the upper directory has %q, %v", content, err)
			}
			m.detach()
		})
	}
}

func TestOnlyAWritableStackIsWritable(t *testing.T) {
	m := newMachine(t, ownGroup)
	m.check(unix.Mount("", m.usr.Path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NODEV|unix.MS_RELATIME, ""))
	for _, writable := range []bool{false, true, true, false} {
		stack := stackOf("one", m.layer("one"))
		if writable {
			stack = m.writable("one")
		}
		_, err := m.usr.Switch(stack)
		m.check(err)
		want := map[bool]string{false: "ro,nodev,relatime", true: "rw,nodev,relatime"}[writable]
		if got := m.options(); got != want {
			t.Errorf("writable: %v: the attributes are %q, want %q", writable, got, want)
		}
	}
	m.detach()
	if got, want := m.options(), "ro,nodev,relatime"; got != want {
		t.Errorf("the attributes are %q after detach, want %q", got, want)
	}
}

func TestTryDoesNotWriteToAnUpperDirectory(t *testing.T) {
	forEachLayout(t, func(t *testing.T, m *machine) {
		stack := m.writable("one")
		m.write("scratch/upper/bin/tool", "#!/bin/sh\n(: >"+m.usr.Path+"/new) && echo written\ncat "+m.usr.Path+"/version\nexit 3\n")
		err := m.usr.Try(t.Context(), stack, Program{Name: filepath.Join(m.usr.Path, "bin/tool")})
		if err == nil || !strings.Contains(err.Error(), "Read-only file system") || !strings.HasSuffix(err.Error(), `one"`) {
			t.Errorf("the error is %v", err)
		}
		if _, err := m.usr.Switch(Stack{Source: stack.Source, Layers: stack.Layers, Upper: stack.Upper}); err == nil {
			t.Error("an upper directory without a work directory was accepted")
		}
		m.detach()
	})
}

func TestManyLayers(t *testing.T) {
	forEachLayout(t, func(t *testing.T, m *machine) {
		many := func(n int) Stack {
			stack := m.writable("0")
			for i := range n - 1 {
				stack.Layers = append(stack.Layers, m.layer(fmt.Sprint(i+1)))
				m.write(fmt.Sprintf("layers/%d/of-%d", i+1, i+1), "")
			}
			return stack
		}
		_, err := m.usr.Switch(many(11)) // ten overlays and a commit
		m.check(err)
		m.shows("0")
		for i := range 10 {
			if _, err := os.Lstat(fmt.Sprintf("%s/of-%d", m.usr.Path, i+1)); err != nil {
				t.Error(err)
			}
		}
		m.check(m.usr.Detach())
		_, err = m.usr.Switch(many(30))
		if m.usr.noLowerdirAdd {
			if err == nil || !strings.Contains(err.Error(), "31 layers, the booted tree among them, are too many for a kernel before 6.8") {
				t.Errorf("the error is %v", err)
			}
		} else {
			m.check(err)
			m.shows("0")
		}
		m.detach()
	})
}
