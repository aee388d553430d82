package fleetlock

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// client is a machine that asks a server of the test. Neither a proxy nor a name server of this machine is asked: some have an answer for every
// name.
func client(t *testing.T, base string) *Client {
	t.Helper()
	u, err := ParseURL(base)
	if err != nil {
		t.Fatal(err)
	}
	c := &Client{URL: u, Group: "workers", ID: "c988d2509fdf4cdcbed39037c56406fb", HTTP: NewHTTP()}
	transport := c.HTTP.Transport.(*http.Transport)
	transport.Proxy = nil
	noNames := func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no name server") }
	transport.DialContext = (&net.Dialer{Resolver: &net.Resolver{PreferGo: true, Dial: noNames}}).DialContext
	return c
}

// server answers with a handler, until the end of the test.
func server(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s
}

// answering answers all requests alike.
func answering(t *testing.T, status int, body string) *Client {
	t.Helper()
	return client(t, server(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	}).URL)
}

func TestRequestIsThatOfTheProtocol(t *testing.T) {
	type seen struct {
		Method, Path, Header string
		Body                 map[string]any
	}
	var got []seen
	s := server(t, func(_ http.ResponseWriter, r *http.Request) {
		one := seen{Method: r.Method, Path: r.URL.Path, Header: r.Header.Get("fleet-lock-protocol")}
		if err := json.NewDecoder(r.Body).Decode(&one.Body); err != nil {
			t.Error(err)
		}
		got = append(got, one)
	})
	body := map[string]any{"client_params": map[string]any{"group": "workers", "id": "c988d2509fdf4cdcbed39037c56406fb"}}
	for _, base := range []string{s.URL, s.URL + "/", s.URL + "/base", s.URL + "/base/"} {
		got = nil
		c := client(t, base)
		for _, operation := range []func(context.Context) error{c.Acquire, c.Release} {
			if err := operation(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		path := strings.TrimSuffix(c.URL.Path, "/")
		want := []seen{{"POST", path + "/v1/pre-reboot", "true", body}, {"POST", path + "/v1/steady-state", "true", body}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("requests to %s (-want +got):\n%s", base, diff)
		}
	}
}

func TestOnly200IsSuccess(t *testing.T) {
	for _, test := range []struct {
		status int
		body   string
		isWait bool
		says   string
	}{
		{200, "", false, ""},
		{200, "not JSON", false, ""},
		{201, "", false, "the server answers 201 Created"},
		{204, "", false, "the server answers 204 No Content"},
		{302, "", false, "the server answers 302 Found"},
		{400, `{"kind": "failed_validation", "value": "unknown group \"workers\""}`, false,
			`the server answers 400 Bad Request: unknown group "workers" (failed_validation)`},
		{401, "<html>", false, "the server answers 401 Unauthorized"},
		{404, "", false, "the server answers 404 Not Found"},
		{408, "", true, "the server answers 408 Request Timeout"},
		{409, `{"kind": "failed_lock_semaphore_full", "value": "all slots are locked already"}`, true,
			"the server answers 409 Conflict: all slots are locked already (failed_lock_semaphore_full)"},
		{412, `{"kind": "failed_lock_semaphore_full", "value": "all slots are locked already"}`, true,
			"the server answers 412 Precondition Failed: all slots are locked already (failed_lock_semaphore_full)"},
		{412, "", false, "the server answers 412 Precondition Failed"},
		{423, `{"kind": "locked", "value": "held by another"}`, true, "the server answers 423 Locked: held by another (locked)"},
		{429, "", true, "the server answers 429 Too Many Requests"},
		{466, `{"kind": "", "value": "no kind"}`, false, "the server answers 466"},
		{500, `{"kind": "failed_lock", "value": "etcd is away"}`, true, "the server answers 500 Internal Server Error: etcd is away (failed_lock)"},
		{500, `["kind", "value"]`, true, "the server answers 500 Internal Server Error"},
		{502, "<html>Bad Gateway</html>", true, "the server answers 502 Bad Gateway"},
		{503, `{"kind": "a", "value": "b"` + strings.Repeat(" ", answerLimit), true, "the server answers 503 Service Unavailable"},
	} {
		c := answering(t, test.status, test.body)
		for name, operation := range map[string]func(context.Context) error{"acquire": c.Acquire, "release": c.Release} {
			err := operation(t.Context())
			if (err != nil) != (test.says != "") || err != nil && err.Error() != test.says {
				t.Errorf("%s, %d %.80s: got %v, want %q", name, test.status, test.body, err, test.says)
			}
			if errors.Is(err, ErrWait) != test.isWait {
				t.Errorf("%s, %d %.80s: it is a wait: %t", name, test.status, test.body, !test.isWait)
			}
			if refusal := (*Refusal)(nil); err != nil && (!errors.As(err, &refusal) || refusal.Status != test.status) {
				t.Errorf("%s, %d: the refusal is %+v", name, test.status, refusal)
			}
		}
	}
}

// The protocol's header is there so that a redirection is not followed by mistake.
func TestRedirectionIsNotFollowed(t *testing.T) {
	other := server(t, func(http.ResponseWriter, *http.Request) { t.Error("the request was sent on") })
	for _, status := range []int{301, 302, 303, 307, 308} {
		s := server(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, status) })
		if err := client(t, s.URL).Acquire(t.Context()); err == nil || errors.Is(err, ErrWait) {
			t.Errorf("%d: got %v", status, err)
		}
	}
}

func TestServerThatIsAwayIsWaitedFor(t *testing.T) {
	gone := server(t, nil)
	gone.Close()
	for name, base := range map[string]string{
		"nobody listens":                gone.URL,
		"no such host":                  "http://host.invalid",
		"a certificate of nobody known": selfSigned(t),
		"it closes the connection":      speaking(t, ""),
		"it ends in its answer":         speaking(t, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 100\r\n\r\nshort"),
		"it does not speak HTTP":        speaking(t, "220 mail.example.org ESMTP\r\n"),
		"its header has no end":         speaking(t, "HTTP/1.1 200 OK\r\n"+strings.Repeat("X-Y: z\r\n", answerLimit/4)),
	} {
		err := client(t, base).Acquire(t.Context())
		if !errors.Is(err, ErrWait) || !strings.HasPrefix(err.Error(), "the server does not answer: ") || strings.Contains(err.Error(), "v1/pre-reboot") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// selfSigned serves HTTPS with a certificate that no authority has signed.
func selfSigned(t *testing.T) string {
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

// speaking says the same on each connection, and closes it.
func speaking(t *testing.T, answer string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = http.ReadRequest(bufio.NewReader(conn))
			_, _ = io.WriteString(conn, answer)
			conn.Close()
		}
	}()
	return "http://" + listener.Addr().String()
}

func TestHTTPSWithAKnownCertificate(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer s.Close()
	c := client(t, s.URL)
	c.HTTP = s.Client()
	if err := c.Acquire(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRequestThatIsGivenUpIsNoWaitForEver(t *testing.T) {
	arrived := make(chan struct{})
	s := server(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // only then net/http looks whether the client is still there
		close(arrived)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	attempts := 0
	err := Backoff{time.Hour, time.Hour}.Retry(ctx, func(ctx context.Context) error {
		attempts++
		return client(t, s.URL).Acquire(ctx)
	}, func(error) { t.Error("it waits for another attempt") })
	if !errors.Is(err, context.Canceled) || attempts != 1 {
		t.Errorf("after %d attempts: %v", attempts, err)
	}
}

func TestBadURLs(t *testing.T) {
	for _, bad := range []string{"", "fleet.example.com", "ftp://fleet.example.com", "https:///base", "https://fleet.example.com/?a=b", "https://fleet.example.com/#a",
		"http://fleet.example.com:port", "http://a b/", "https://fleet.example.com\n"} {
		if got, err := ParseURL(bad); err == nil {
			t.Errorf("%q is taken for %v", bad, got)
		}
	}
}

func TestPasswordIsNotShown(t *testing.T) {
	c := client(t, "https://machine:secret@lock.example/base")
	if got, want := c.String(), "a slot of https://machine:xxxxx@lock.example/base (group workers)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	c.URL.Host = "host.invalid"
	if err := c.Acquire(t.Context()); strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}
