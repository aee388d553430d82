package config

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/liveapply/liveapply/internal/fuzztest"
)

// perByte is how much memory reading may take for a byte of input: there is a warning for each key that is not known.
const perByte = 512

const sample = `# liveapply.conf
[Apply]
Allow=replace
Transient=no
VerifyContent = on
RequireSignature=true
`

// What is taken from a file is what its lines say.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte("[Auto]\nApply=replace\nWindow=Sat..Sun 02:00 4h\nWindow= \\\n 1h\nFleetLock=https://fleet\nUpdateCommand=a\\\n b\n"))
	f.Add([]byte("[Overlay]\nMaxSize=1.5G\nAllowPaths=/etc /usr/*\nAllowSetuid=yes\nContentScan=/bin/scan -r\n"))
	f.Add([]byte("[Apply]\nAllow=force\nRequestedBy=x \\\n y\n[Other]\nA=b\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, isRequest := range []bool{false, true} {
			config := &Config{Allow: Replace}
			var err error
			fuzztest.Bounded(t, len(data), perByte, func() { err = config.parse(bytes.NewReader(data), "x.conf", isRequest) })
			if err != nil {
				continue
			}
			if !slices.Contains([]Allow{Additive, Replace, Force}, config.Allow) || !bytes.Contains(data, []byte(config.Allow)) && config.Allow != Replace {
				t.Errorf("%q allows %q", data, config.Allow)
			}
			for _, value := range append([]string{config.Auto.UpdateCommand, config.Auto.RandomizedDelaySec}, config.Auto.OnCalendar...) {
				if strings.ContainsAny(value, "\r\n") || strings.HasSuffix(value, `\`) {
					t.Errorf("%q puts %q into a unit, which is more than a line", data, value)
				}
			}
			if isRequest && !cmp.Equal(config.Auto, Auto{}) {
				t.Errorf("the request %q changes what happens without a person", data)
			}
			if isRequest && !cmp.Equal(config.Overlay, Overlay{}) || config.Overlay.MaxSize < 0 {
				t.Errorf("%q has overlays be %+v", data, config.Overlay)
			}
			if config.RequestedBy+config.Revision != "" && !isRequest {
				t.Errorf("%q, which is no request, was requested by %q, as %q", data, config.RequestedBy, config.Revision)
			}
			if (config.Transient || config.VerifyContent || config.RequireSignature) && !bytes.Contains(data, []byte("[Apply]")) {
				t.Errorf("%q, without a section, says something", data)
			}
		}
	})
}

// A request that can be written is read as it was meant: nobody's name changes what is asked for.
func FuzzRequest(f *testing.F) {
	f.Add("additive", true, "root on pts/0", "debian:stable/x86_64")
	f.Add("additive", true, "somebody\\", "") // what goes on in the next line
	f.Add("", false, strings.Repeat("x", 3000), "")
	f.Add("force", false, " a; b # c ", "stable^")
	f.Fuzz(func(t *testing.T, allow string, transient bool, requestedBy, revision string) {
		want := withDefaults(Config{Allow: Replace, Transient: transient, RequestedBy: requestedBy, Revision: revision})
		request := Request{Transient: transient, RequestedBy: requestedBy, Revision: revision}
		if allow != "" {
			var err error
			if request.Allow, err = ParseAllow(allow); err != nil {
				return
			}
			want.Allow = request.Allow
		}
		content, err := request.encode()
		if err != nil {
			return
		}
		got := defaults()
		if err := got.parse(bytes.NewReader(content), "request", true); err != nil {
			t.Fatalf("%q was not read: %v", content, err)
		}
		want.RequestedBy, got.RequestedBy = strings.TrimSpace(want.RequestedBy), strings.TrimSpace(got.RequestedBy)
		want.Revision, got.Revision = strings.TrimSpace(want.Revision), strings.TrimSpace(got.Revision)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%+v was written as %q (-want +got):\n%s", request, content, diff)
		}
	})
}
