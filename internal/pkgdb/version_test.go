package pkgdb

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// rpmCases are those of rpm's own tests (tests/rpmvercmp.at), and the carets that came later: each line in order, "=" between equal ones.
const rpmCases = `
1.0 < 2.0
2.0 < 2.0.1
2.0.1 < 2.0.1a
5.5p1 < 5.5p2
5.5p1 < 5.5p10
10xyz < 10.1xyz
xyz10 < xyz10.1
xyz.4 < 8
xyz.4 < 2
5.5p2 < 5.6p1
5.6p1 < 6.5p1
6.0 < 6.0.rc1
10a1 < 10b2
10a2 < 10b2
1.0a < 1.0aa
10.0001 = 10.1
10.0001 < 10.0039
4.999.9 < 5.0
20101121 < 20101122
2_0 = 2.0
a = a
a+ = a_
+a = _a
+_ = _+
+ = _
1.0~rc1 < 1.0
1.0~rc1 < 1.0~rc2
1.0~rc1~git123 < 1.0~rc1
1.0 < 1.0^
1.0^ < 1.0^git1
1.0^git1 < 1.0^git2
1.0^git1 < 1.01
1.0^20160101 < 1.0.1
1.0^20160101^git1 = 1.0^20160101^git1
1.0^20160101 < 1.0^20160101^git1
1.0^20160102 < 1.0^20160102^git1
1.0~rc1 < 1.0~rc1^git1
1.0~rc1^git1 < 1.0
1.0^git1~pre < 1.0^git1
1b.fc17 < 1.fc17
1.fc17 < 1g.fc17
`

// dpkgCases are what deb-version(7) and the policy promise, and what real versions have made go wrong.
const dpkgCases = `
1.0 < 1.1
1.0-1 < 1.0-2
1.0~rc1-1 < 1.0-1
1.0~~ < 1.0~~a
1.0~~a < 1.0~
1.0~ < 1.0
1.0 < 1.0+b1
1.0a < 1.0+
1.2 < 1.10
1.0 = 1.0-0
1.0 = 0:1.0
1.00 = 1.0
1:0.1 < 2:0.0
9.9 < 1:0.1
1.0-1 < 1.0-1+deb13u1
1.0-1+b1 < 1.0-1+b2
1.0-1-2 < 1.0-2-1
7.4.052-1ubuntu3 < 7.4.052-1ubuntu3.1
0~20240101 < 0.1
1.20241231235959123456 < 1.20241231235959123457
1.99999999999999999999 < 1.100000000000000000000
v1 < v2
`

// pair is two versions and how they compare.
type pair struct {
	a, b string
	want int
}

func casesOf(t *testing.T, table string) (pairs []pair) {
	t.Helper()
	for line := range strings.Lines(strings.TrimSpace(table)) {
		words := strings.Fields(line)
		want, ok := map[string]int{"<": -1, "=": 0}[words[1]]
		if !ok || len(words) != 3 {
			t.Fatalf("no case: %q", line)
		}
		pairs = append(pairs, pair{words[0], words[2], want}, pair{words[2], words[0], -want}, pair{words[0], words[0], 0})
	}
	return pairs
}

func TestVersionsCompareAsTheCasesOfTheirWorldSay(t *testing.T) {
	for format, table := range map[Format]string{RPM: rpmCases, Dpkg: dpkgCases} {
		for _, p := range casesOf(t, table) {
			if got := format.Compare(p.a, p.b); got != p.want {
				t.Errorf("%s: %s and %s compare as %d, want %d", format, p.a, p.b, got, p.want)
			}
		}
	}
}

// generated returns pairs of versions that often share what they begin with.
func generated(n int, part *rapid.Generator[string], epoch string) (pairs []pair) {
	version := rapid.Custom(func(t *rapid.T) string {
		text := rapid.SampledFrom([]string{"", "", epoch + ":", "0:"}).Draw(t, "epoch") + "1"
		text += strings.Join(rapid.SliceOfN(part, 0, 4).Draw(t, "upstream"), "")
		if rapid.Bool().Draw(t, "has a revision") {
			text += "-" + strings.Join(rapid.SliceOfN(part, 1, 3).Draw(t, "revision"), "")
		}
		return text
	})
	pairOf := rapid.Custom(func(t *rapid.T) pair {
		p := pair{a: version.Draw(t, "a"), b: version.Draw(t, "b")}
		if rapid.Bool().Draw(t, "one begins with the other") {
			p.b = p.a + part.Draw(t, "more")
		}
		return p
	})
	for seed := range n {
		pairs = append(pairs, pairOf.Example(seed))
	}
	return pairs
}

const generatedPairs = 600

// output runs a command and returns a number for each line that it prints.
func output(t *testing.T, cmd *exec.Cmd, n int) []int {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd.Path, err, stderr.String())
	}
	var numbers []int
	for line := range strings.Lines(strings.TrimSpace(string(out))) {
		var number int
		if _, err := fmt.Sscan(line, &number); err != nil {
			t.Fatalf("%s: %q is no number", cmd.Path, line)
		}
		numbers = append(numbers, number)
	}
	if len(numbers) != n {
		t.Fatalf("%s compared %d pairs of %d", cmd.Path, len(numbers), n)
	}
	return numbers
}

// requireAgreement compares what a format makes of pairs with what its own tool does.
func requireAgreement(t *testing.T, format Format, pairs []pair, want []int) {
	t.Helper()
	orders := map[int]int{}
	for i, p := range pairs {
		orders[want[i]]++
		if got := format.Compare(p.a, p.b); got != want[i] {
			t.Errorf("%s and %s compare as %d, %s says %d", p.a, p.b, got, format, want[i])
		}
		if got := format.Compare(p.b, p.a); got != -want[i] {
			t.Errorf("%s and %s compare as %d, the other way round as %d", p.b, p.a, got, want[i])
		}
	}
	if orders[-1] < 50 || orders[0] < 20 || orders[1] < 50 {
		t.Errorf("the pairs are of little worth: %v", orders)
	}
}

func TestDebianVersionsCompareAsDpkgSays(t *testing.T) {
	part := rapid.OneOf(rapid.SampledFrom([]string{".", "~", "+", "-1", "-a", "a", "b", "Z", "rc", "+deb13u", "~bpo12+", "0", "00", "1", "10", "9"}),
		rapid.StringMatching(`[0-9]{1,25}|[a-zA-Z]{1,3}`))
	pairs := append(casesOf(t, dpkgCases), generated(generatedPairs, part, "1")...)
	var stdin strings.Builder
	for _, p := range pairs {
		fmt.Fprintln(&stdin, p.a, p.b)
	}
	cmd := exec.Command("bash", "-c", `while read -r a b; do
		if dpkg --compare-versions "$a" lt "$b" 2>/dev/null; then echo -1
		elif dpkg --compare-versions "$a" gt "$b" 2>/dev/null; then echo 1
		elif dpkg --compare-versions "$a" eq "$b" 2>/dev/null; then echo 0
		else echo "dpkg does not compare $a and $b"; fi
	done`)
	cmd.Stdin = strings.NewReader(stdin.String())
	requireAgreement(t, Dpkg, pairs, output(t, cmd, len(pairs)))
}

func TestRPMVersionsCompareAsRPMSays(t *testing.T) {
	part := rapid.OneOf(rapid.SampledFrom([]string{".", "~", "^", "+", "_", "a", "b", "Z", "rc", ".fc", ".el9_", "git", "0", "00", "1", "10", "9", "..", "~~", "^^"}),
		rapid.StringMatching(`[0-9]{1,25}|[a-zA-Z]{1,3}`))
	pairs := append(casesOf(t, rpmCases), generated(generatedPairs, part, "1")...)
	var script strings.Builder
	for _, p := range pairs {
		fmt.Fprintf(&script, "io.write(rpm.vercmp(%q, %q), \"\\n\")\n", p.a, p.b)
	}
	cmd := exec.Command("rpm", "--eval", "%{lua:"+script.String()+"}")
	requireAgreement(t, RPM, pairs, output(t, cmd, len(pairs)))
}
