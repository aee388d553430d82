package overlay

import "testing"

func TestScopesAreOfOneUnitOrAll(t *testing.T) {
	for scope, unit := range map[Scope]string{"user:1000": "user@1000.service", "unit:a@b.service": "a@b.service", System: "", Global: ""} {
		if got := scope.Unit(); got != unit {
			t.Errorf("the scope %s is of %q", scope, got)
		}
	}
	for _, scope := range []string{"user:root", "user:-1", "unit:x", "unit:a/b.service", "unit:.service/..", "unit:", "global:", ""} {
		if got, err := ParseScope(scope); err == nil {
			t.Errorf("%q is the scope %q", scope, got)
		}
	}
}
