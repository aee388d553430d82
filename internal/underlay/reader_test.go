package underlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

func TestReadersSeeOneTreeOrTheOther(t *testing.T) {
	for name, l := range layouts {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, l)
			m.tmpfs("local", "local")
			m.write("root/usr/version", "0")
			stop := make(chan struct{})
			results := make(chan error)
			for range 2 {
				go func() { results <- readUntil(stop, m.usr.Path) }()
			}
			for i := range 100 {
				name := strconv.Itoa(i + 1)
				_, err := m.usr.Switch(stackOf(name, m.layer(name)))
				m.check(err)
			}
			close(stop)
			for range 2 {
				if err := <-results; err != nil {
					t.Error(err)
				}
			}
			m.check(m.usr.Detach())
		})
	}
}

// readUntil reads files that all trees have until it is told to stop. The trees are numbered.
func readUntil(stop chan struct{}, usr string) error {
	last := 0
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		content, err := os.ReadFile(filepath.Join(usr, "version"))
		if err != nil {
			return err
		}
		now, err := strconv.Atoi(string(content))
		if err != nil {
			return err
		}
		if now < last {
			return fmt.Errorf("tree %d was seen after tree %d", now, last)
		}
		last = now
		if _, err := os.ReadFile(filepath.Join(usr, "bin/tool")); err != nil {
			return err
		}
		if err := readMounted(filepath.Join(usr, "local/name")); err != nil {
			return err
		}
	}
}

// readMounted reads a file in a mount below /usr. See walkTime for why it looks twice.
func readMounted(path string) error {
	_, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		_, err = os.ReadFile(path)
	}
	return err
}
