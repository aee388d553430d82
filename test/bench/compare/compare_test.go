package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		samples samples
		want    float64
	}{{nil, 0}, {samples{3}, 3}, {samples{9, 1, 2}, 2}, {samples{4, 1, 3, 2}, 2.5}} {
		if got := test.samples.median(); got != test.want {
			t.Errorf("median of %v: got %v, want %v", test.samples, got, test.want)
		}
	}
}

func TestALimitThatIsReachedHoldsUnlessItMustNotBe(t *testing.T) {
	for _, test := range []struct {
		held  held
		value float64
		want  bool
	}{
		{notHeld, 100, true},
		{atMost, 0.9, true}, {atMost, 1, true}, {atMost, 1.1, false},
		{under, 0.9, true}, {under, 1, false}, {under, 1.1, false},
	} {
		c := comparison{value: test.value, held: test.held, limit: 1}
		if got := c.holds(); got != test.want {
			t.Errorf("%v, %s 1: holds is %t", test.value, test.held, got)
		}
	}
}

func TestTableFitsItsWidthAndCountsWhatIsBroken(t *testing.T) {
	long := row{name: strings.Repeat("n", 52), time: samples{0.9999, 0.0009999}, data: 1 << 32, peak: samples{1 << 19}}
	table := table{[]section{{title: "TITLE", groups: []group{{
		name: "group",
		rows: []row{long, {name: "short", time: samples{12.3}, data: -1}},
		comparisons: []comparison{
			{name: "broken", value: 2, held: atMost, limit: 1},
			{name: "kept", value: 0.5, unit: " bytes", held: under, limit: 1},
			{name: "free", value: 3, held: notHeld},
		},
	}}}}}
	text := table.String()
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
			t.Errorf("%d characters in a line: %q", n, line)
		}
	}
	if got := table.broken(); got != 1 {
		t.Errorf("broken limits: got %d, want 1", got)
	}
	for _, want := range []string{"DOES NOT HOLD", "under 1 bytes: holds", "no limit", "12.3s", "512M"} {
		if !strings.Contains(text, want) {
			t.Errorf("the table lacks %q:\n%s", want, text)
		}
	}
}

func TestDurationShowsThreeDigits(t *testing.T) {
	got := []string{duration(0.0000123), duration(0.000999), duration(0.0345), duration(0.5), duration(2.345), duration(42)}
	if diff := cmp.Diff([]string{"12.3us", "999us", "34.5ms", "500ms", "2.35s", "42.0s"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestFiguresAreReadFromLinesOfANameAndANumber(t *testing.T) {
	got := parseFigures("M    /usr/bin\ntotal 0.25\npeak 12\nA    /usr/share/a name\n")
	if diff := cmp.Diff(map[string]float64{"total": 0.25, "peak": 12}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestInventoryCountsCopiesAndNotLinks(t *testing.T) {
	dir := t.TempDir()
	layer, object := filepath.Join(dir, "layer"), filepath.Join(dir, "object")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(layer, "sub"), 0o755),
		os.WriteFile(object, []byte("shared"), 0o644),
		os.Link(object, filepath.Join(layer, "link")),
		os.Symlink("nowhere", filepath.Join(layer, "symlink")),
		os.WriteFile(filepath.Join(layer, "sub", "copy"), []byte("copied"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err := takeInventory(layer)
	if err != nil {
		t.Fatal(err)
	}
	if want := (inventory{files: 3, data: 6}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestTheEmptyChainHasTheShapeOfThePhases(t *testing.T) {
	for i, want := range map[int]string{
		0:               "[Unit]\n[Service]\n",
		3:               "[Unit]\nRequires=bench-2@%i.service\nAfter=bench-2@%i.service\n[Service]\n",
		chainLength - 1: "[Unit]\nWants=bench-5@%i.service\nAfter=bench-5@%i.service\n[Service]\n",
	} {
		if got := plainChain.service(i); got != want+"Type=oneshot\nExecStart=/bin/true\n" {
			t.Errorf("%s: got %q, want a beginning of %q", plainChain.unit(i, ""), got, want)
		}
	}
	want := strings.Replace(strings.ReplaceAll(plainChain.service(reloadingChain.reloader), "bench-", "bench-reload-"), "/bin/true", "systemctl daemon-reload", 1)
	if got := reloadingChain.service(reloadingChain.reloader); got != want {
		t.Errorf("the service that reloads: got %q, want %q", got, want)
	}
}

func TestArguments(t *testing.T) {
	for _, test := range []struct {
		args []string
		want options
	}{
		{nil, options{usualRounds, parts}},
		{[]string{"--quick"}, options{quickRounds, parts}},
		{[]string{"--rounds=5", "--quick", "--only=trees,usr"}, options{5, []string{"trees", "usr"}}},
	} {
		got, err := parse(test.args)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(options{})); diff != "" {
			t.Errorf("%q: -want +got:\n%s", test.args, diff)
		}
	}
	for _, args := range [][]string{{"--rounds=0"}, {"--only=nothing"}, {"word"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
}
