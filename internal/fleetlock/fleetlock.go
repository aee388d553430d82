// Package fleetlock asks the lock server of a fleet for one of its slots, and gives it back, so that only so many machines change
// at once. It speaks the FleetLock protocol, version 1, as Zincati does and airlock answers:
// https://coreos.github.io/zincati/development/fleetlock/protocol/
package fleetlock

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// The two operations of the protocol, relative to the server's URL.
const (
	acquirePath = "v1/pre-reboot"
	releasePath = "v1/steady-state"
)

const (
	requestLimit = 30 * time.Second // for a request and its answer
	answerLimit  = 64 << 10         // bytes of an answer that are read
)

// ErrWait is what a request failed with if the same request may succeed later: no slot is free, or the server is away.
var ErrWait = errors.New("not now")

// Wait makes an ErrWait of an error.
func Wait(err error) error { return &wait{err} }

type wait struct{ error }

func (w *wait) Unwrap() error        { return w.error }
func (w *wait) Is(target error) bool { return target == ErrWait }

// Client is a machine of a fleet.
type Client struct {
	URL   *url.URL // of the server; the operations are below it
	Group string   // of machines that share slots
	ID    string   // of the machine: what owns a slot
	HTTP  *http.Client
}

// ParseURL parses the URL of a server.
func ParseURL(s string) (*url.URL, error) {
	server, err := url.Parse(s)
	if err != nil || server.Scheme != "http" && server.Scheme != "https" || server.Host == "" || server.RawQuery != "" || server.Fragment != "" {
		return nil, errors.New("not the URL of a server, as in https://fleet.example.com")
	}
	return server, nil
}

// NewHTTP makes the HTTP client of a machine. It keeps no connections: minutes are between two requests, and the server may have moved.
func NewHTTP() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true
	transport.MaxResponseHeaderBytes = answerLimit
	return &http.Client{Transport: transport, CheckRedirect: keepRedirects}
}

// keepRedirects has a redirection be the answer: the protocol's header says that a request was meant for whom it reaches.
func keepRedirects(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Acquire takes a slot. A machine that has one already keeps it, so a request whose answer was lost can be made again. The error is an
// ErrWait or, if the server wants no such request, a [Refusal].
func (c *Client) Acquire(ctx context.Context) error { return c.post(ctx, acquirePath) }

// Release gives the slot back. Without one that succeeds, too. The errors are those of Acquire.
func (c *Client) Release(ctx context.Context) error { return c.post(ctx, releasePath) }

// request is the body of both operations.
type request struct {
	Params params `json:"client_params"`
}

type params struct {
	ID    string `json:"id"`
	Group string `json:"group"`
}

func (c *Client) post(ctx context.Context, path string) error {
	body, err := json.Marshal(request{params{c.ID, c.Group}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL.JoinPath(path).String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	post.Header.Set("fleet-lock-protocol", "true")
	post.Header.Set("Content-Type", "application/json")
	answer, err := c.HTTP.Do(post)
	if err != nil {
		return away(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode == http.StatusOK {
		return nil
	}
	said, err := io.ReadAll(io.LimitReader(answer.Body, answerLimit))
	if err != nil {
		return away(err)
	}
	return parseRefusal(answer.StatusCode, said)
}

// away is the error of a request that got no answer. The URL, which net/http puts in front, is known to whoever reads of it.
func away(err error) error {
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return Wait(fmt.Errorf("the server does not answer: %w", err))
}

// String names what is asked for, without a password that the URL may have.
func (c *Client) String() string {
	return fmt.Sprintf("a slot of %s (group %s)", c.URL.Redacted(), c.Group)
}
