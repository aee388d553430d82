package report

import "testing"

func TestShareIsOfWhatIsCounted(t *testing.T) {
	for status, want := range map[string]float64{
		Counted("building the layer", 0, 8):   0,
		Counted("building the layer", 3, 8):   0.375,
		Counted("building 5 of 6: all", 8, 8): 1,
	} {
		if share, counted := Share(status); !counted || share != want {
			t.Errorf("%q: %v, %v", status, share, counted)
		}
	}
	for _, status := range []string{"", "switching /usr", "2 of 3 units failed", Counted("x", 0, 0), Counted("x", 9, 8), Counted("x", -1, 8),
		"x: 1 of 99999999999999999999"} {
		if share, counted := Share(status); counted {
			t.Errorf("%q: %v", status, share)
		}
	}
}
