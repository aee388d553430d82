package impact

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLinesOfTmpfilesThatDoMoreThanAdd(t *testing.T) {
	const changing = `w /run/knob - - - - 1
w+ /run/log - - - - more
F /var/lib/a/file - - - - text
f+ /var/lib/a/file - - - - text
L+ /var/lib/a/link - - - - /usr/share/a
L+! /run/a/link
C+ /var/lib/a/tree - - - - /usr/share/a
p+ /run/pipe
d= /run/a 0755
z /var/lib/a 0750 root adm
Z "/var/lib/with space" 0750 root adm
'm' '/run/a' 0755
t /var/lib/a - - - - user.a=b
h /var/log/journal - - - - +C
a+ %L/journal - - - - g:adm:r
r /run/nologin
z /srv/a 0755
z /tmp/a 0755
Z %h/a 0755
R! /var/lib/a/old
D /run/a 0755
  z   /run   0755`
	var want []string
	for line := range strings.Lines(changing) {
		want = append(want, strings.TrimSpace(line))
	}
	const others = `
# z /run/a 0755
d /run/a 0755
f /var/lib/a/file - - - - text
L /var/lib/a/link
C /var/lib/a/tree
q /var/lib/machines
e /var/cache/a - - - 10d
x /var/tmp/a
w /sys/knob - - - - 1
z /boot/a 0755
z /variable/a 0755
z /run/../etc/a
"
z
`
	if diff := cmp.Diff(want, TmpfilesChanges(changing+others)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := TmpfilesChanges(""); got != nil {
		t.Errorf("of nothing: %q", got)
	}
}
