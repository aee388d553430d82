// Command fleetlock is a server of the FleetLock protocol, written for the tests from its specification
// (https://coreos.github.io/zincati/development/fleetlock/protocol/); it shares no code with the client that it judges.
//
//	fleetlock FILE GROUP SLOTS LISTENERS [die-after-write]
//
// Who holds one of the SLOTS of the GROUP is in FILE, an id a line, so it can be killed at any instant and started again. It serves LISTENERS
// sockets, which it is given as file descriptors from 3 on. With die-after-write it ends right after it has changed FILE: the client gets no answer.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
)

func main() {
	if len(os.Args) < 5 {
		log.Fatal("usage: fleetlock FILE GROUP SLOTS LISTENERS [die-after-write]")
	}
	s := &semaphore{file: os.Args[1], group: os.Args[2], slots: number(os.Args[3]), dies: len(os.Args) > 5}
	http.HandleFunc("/base/v1/pre-reboot", s.operation(s.lock))
	http.HandleFunc("/base/v1/steady-state", s.operation(s.unlock))
	failed := make(chan error)
	for i := range number(os.Args[4]) {
		listener, err := net.FileListener(os.NewFile(uintptr(3+i), "listener"))
		if err != nil {
			log.Fatal(err)
		}
		go func() { failed <- http.Serve(listener, nil) }()
	}
	log.Fatal(<-failed)
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		log.Fatal(err)
	}
	return n
}

// semaphore is counted, and its locks are owned and recursive.
type semaphore struct {
	mu          sync.Mutex
	file, group string
	slots       int
	dies        bool
}

// refusal is an answer that is not 200.
type refusal struct {
	status int
	Kind   string `json:"kind"`
	Value  string `json:"value"`
}

func (r *refusal) Error() string { return r.Value }

// operation is what both have in common.
func (s *semaphore) operation(do func(id string) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		id, err := s.client(r)
		if err == nil {
			err = do(id)
		}
		log.Printf("%s of %s: %v", r.URL.Path, id, err)
		if err == nil {
			return
		}
		answer := &refusal{500, "internal_error", err.Error()}
		errors.As(err, &answer)
		w.WriteHeader(answer.status)
		json.NewEncoder(w).Encode(answer)
	}
}

// client checks a request and tells whose it is.
func (s *semaphore) client(r *http.Request) (id string, err error) {
	if r.Method != http.MethodPost {
		return "", &refusal{405, "method_not_allowed", "only POST is"}
	}
	if r.Header.Get("fleet-lock-protocol") != "true" {
		return "", &refusal{400, "missing_header", "fleet-lock-protocol: true is missing"}
	}
	var body struct {
		Params struct{ ID, Group string } `json:"client_params"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		return "", &refusal{400, "bad_body", err.Error()}
	}
	if id = body.Params.ID; id == "" || strings.ContainsAny(id, "\r\n") {
		return "", &refusal{400, "bad_id", fmt.Sprintf("%q is no id", id)}
	}
	if body.Params.Group != s.group {
		return id, &refusal{400, "unknown_group", fmt.Sprintf("there is no group %q", body.Params.Group)}
	}
	return id, nil
}

func (s *semaphore) lock(id string) error {
	holders, err := s.read()
	if err != nil || slices.Contains(holders, id) {
		return err
	}
	if len(holders) >= s.slots {
		return &refusal{409, "failed_lock_semaphore_full", "semaphore currently full, all slots are locked already"}
	}
	return s.write(append(holders, id))
}

func (s *semaphore) unlock(id string) error {
	holders, err := s.read()
	if err != nil || !slices.Contains(holders, id) {
		return err
	}
	return s.write(slices.DeleteFunc(holders, func(other string) bool { return other == id }))
}

func (s *semaphore) read() ([]string, error) {
	content, err := os.ReadFile(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.Fields(string(content)), err
}

// write replaces the file: it is whole, whenever the server is killed.
func (s *semaphore) write(holders []string) error {
	if err := os.WriteFile(s.file+".new", []byte(strings.Join(holders, "\n")), 0o600); err != nil {
		return err
	}
	if err := os.Rename(s.file+".new", s.file); err != nil {
		return err
	}
	if s.dies {
		os.Exit(0)
	}
	return nil
}
