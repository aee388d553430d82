package overlay

import (
	"strings"
	"testing"
)

func TestScopesAreOfOneUnitOrAll(t *testing.T) {
	for scope, unit := range map[Scope]string{"user:1000": "user@1000.service", "unit:a@b.service": "a@b.service", `unit:a\x2db.service`: `a\x2db.service`, System: "", Global: ""} {
		if got := scope.Unit(); got != unit {
			t.Errorf("the scope %s is of %q", scope, got)
		}
	}
	for _, scope := range []string{"user:root", "user:-1", "unit:x", "unit:a/b.service", "unit:.service/..", "unit:", "global:", "",
		"unit:@x.service", "unit:a@.service", "unit:a@b@c.service", "unit:a b.service", "unit:" + strings.Repeat("a", 248) + ".service"} {
		if got, err := ParseScope(scope); err == nil {
			t.Errorf("%q is the scope %q", scope, got)
		}
	}
}

func TestNamesAreThoseOfFiles(t *testing.T) {
	for _, name := range []string{"a", "9", "A.b_c-d", strings.Repeat("x", 64)} {
		if err := CheckName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", ".", ".a", "-a", "_a", "a/b", "a b", "a\n", "ä", "a\xff", "a:b", IndexName, strings.Repeat("x", 65)} {
		if CheckName(name) == nil {
			t.Errorf("%q is the name of an overlay", name)
		}
	}
}
