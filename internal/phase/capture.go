package phase

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/underlay"
)

// runIntoEtc runs a tool that writes files below /etc, and puts what it wrote to the given paths there under the journal. The
// tool itself sees an /etc whose changes go elsewhere, in a mount namespace of its own; it changes nothing that the
// journal does not know.
func runIntoEtc(ctx context.Context, s *machine.Storage, argv []string, paths ...string) error {
	scratch, err := os.MkdirTemp(s.Machine.State.Run, machine.ScratchPrefix)
	if err != nil {
		return fmt.Errorf("running %s: %w", argv[0], err)
	}
	defer os.RemoveAll(scratch)

	before, err := readFiles(s.EtcDirs().Etc, paths)
	if err != nil {
		return fmt.Errorf("running %s: %w", argv[0], err)
	}
	written, err := capture(ctx, scratch, argv)
	if err != nil {
		return fmt.Errorf("running %s: %w", strings.Join(argv, " "), err)
	}
	after, err := readFiles(written, paths)
	if err != nil {
		return fmt.Errorf("running %s: %w", argv[0], err)
	}
	var files []etcmerge.NewFile
	for path, content := range after { // what the tool left alone is not there
		files = append(files, etcmerge.NewFile{Path: path, Content: content, Base: before[path]})
	}
	plan, err := etcmerge.PlanFiles(s.EtcDirs(), files)
	if err != nil {
		return err
	}
	_, err = changeEtc(ctx, s, plan)
	return err
}

// readFiles returns the content of those of the paths below dir that exist. A tool may have been given a link to follow: that is
// none of ours.
func readFiles(dir string, paths []string) (map[string][]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	contents := map[string][]byte{}
	for _, path := range paths {
		file, err := root.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		content, err := io.ReadAll(file)
		file.Close()
		if err != nil {
			return nil, err
		}
		contents[path] = content
	}
	return contents, nil
}

// capture runs argv with an overlay on /etc and returns the directory that has what was written.
func capture(ctx context.Context, scratch string, argv []string) (string, error) {
	upper, work := filepath.Join(scratch, "upper"), filepath.Join(scratch, "work")
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", err
		}
	}
	return upper, underlay.InMountNamespace(func() error {
		options := fmt.Sprintf("lowerdir=/etc,upperdir=%s,workdir=%s", upper, work)
		if err := unix.Mount("overlay", "/etc", "overlay", 0, options); err != nil {
			return fmt.Errorf("mounting an overlay on /etc: %w", err)
		}
		var output bytes.Buffer
		tool := exec.CommandContext(ctx, argv[0], argv[1:]...)
		tool.Stdout, tool.Stderr = &output, &output
		if err := tool.Run(); err != nil {
			return fmt.Errorf("%w: %s", err, strings.TrimSpace(output.String()))
		}
		return nil
	})
}
