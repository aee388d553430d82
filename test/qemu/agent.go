package qemu

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/liveapply/liveapply/test/nspawn"
)

// agent is a connection to the QEMU guest agent in a machine (https://www.qemu.org/docs/master/interop/qemu-ga-ref.html), which runs commands
// there without a network.
type agent struct {
	conn    net.Conn
	replies *bufio.Reader
}

// flushed is the byte before the answer to guest-sync-delimited: what comes before it is of nobody's.
const flushed = 0xff

// poll is the time between two questions whether a command has ended; the agent has no other way to tell.
const poll = 50 * time.Millisecond

func listen(path string) (*net.UnixListener, error) {
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}

// greet waits until the agent of a machine answers, or the machine has ended. qemu holds the greeting until the machine reads it.
func greet(listener *net.UnixListener, ended <-chan struct{}, limit time.Duration) (*agent, error) {
	listener.SetDeadline(time.Now().Add(limit)) // an error is Accept's, too
	conn, err := listener.Accept()
	if err != nil {
		return nil, err
	}
	a := &agent{conn, bufio.NewReader(conn)}
	greeted := make(chan error, 1)
	go func() { greeted <- a.sync(limit) }()
	select {
	case err = <-greeted:
	case <-ended:
		err = errors.New("it has ended")
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return a, nil
}

func (a *agent) close() { a.conn.Close() }

func (a *agent) sync(limit time.Duration) error {
	if err := a.send(limit, "guest-sync-delimited", map[string]any{"id": 1}); err != nil {
		return err
	}
	if _, err := a.replies.ReadBytes(flushed); err != nil {
		return err
	}
	return a.receive(new(int))
}

// run runs a command, which reads input, and waits for its end.
func (a *agent) run(input []byte, name string, args ...string) (nspawn.Result, error) {
	var process struct {
		PID int `json:"pid"`
	}
	err := a.call("guest-exec", map[string]any{
		"path": name, "arg": args, "input-data": base64.StdEncoding.EncodeToString(input), "capture-output": true,
		"env": []string{"PATH=/usr/sbin:/usr/bin", "HOME=/root", "LC_ALL=C.UTF-8", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER="},
	}, &process)
	if err != nil {
		return nspawn.Result{}, err
	}
	for deadline := time.Now().Add(commandLimit); time.Now().Before(deadline); time.Sleep(poll) {
		var status struct {
			Exited    bool   `json:"exited"`
			Code      *int   `json:"exitcode"`
			Stdout    []byte `json:"out-data"`
			Stderr    []byte `json:"err-data"`
			Truncated bool   `json:"out-truncated"`
		}
		if err := a.call("guest-exec-status", map[string]any{"pid": process.PID}, &status); err != nil {
			return nspawn.Result{}, err
		}
		if status.Truncated {
			return nspawn.Result{}, errors.New("its output is too long for the agent")
		}
		if status.Exited {
			result := nspawn.Result{Stdout: trimmed(status.Stdout), Stderr: trimmed(status.Stderr), Code: -1}
			if status.Code != nil {
				result.Code = *status.Code
			}
			return result, nil
		}
	}
	return nspawn.Result{}, errors.New("it still runs")
}

func trimmed(output []byte) string { return strings.TrimSuffix(string(output), "\n") }

func (a *agent) call(command string, arguments map[string]any, result any) error {
	if err := a.send(commandLimit, command, arguments); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if err := a.receive(result); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

func (a *agent) send(limit time.Duration, command string, arguments map[string]any) error {
	a.conn.SetDeadline(time.Now().Add(limit)) // an error is the write's, too
	return json.NewEncoder(a.conn).Encode(map[string]any{"execute": command, "arguments": arguments})
}

func (a *agent) receive(result any) error {
	line, err := a.replies.ReadBytes('\n')
	if err != nil {
		return err
	}
	var reply struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Description string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(line, &reply); err != nil {
		return err
	}
	if reply.Error != nil {
		return errors.New(reply.Error.Description)
	}
	return json.Unmarshal(reply.Return, result)
}
