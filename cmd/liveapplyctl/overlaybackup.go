package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"github.com/spf13/pflag"

	"github.com/liveapply/liveapply/internal/machine"
	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/internal/overlay/content"
)

const overlayBackupDetails = `FILE is NAME.tar.zst in this directory, if it is not given, or - for standard output. It has all that the overlay has: owners, modes, extended attributes, what is
hidden, and where the overlay belongs. Only root can write it, and read it.`

// backupExtension is what a backup is called, behind the name of its overlay.
const backupExtension = ".tar.zst"

func overlayBackupCommand(*pflag.FlagSet) func(context.Context, []string) error {
	return func(_ context.Context, args []string) error {
		name, file := args[0], args[0]+backupExtension
		if len(args) == 2 {
			file = args[1]
		}
		if file == "-" && openScreen(os.Stdout).isTerminal() {
			return errors.New("overlay backup: standard output is a terminal, and a backup is no text: name a file")
		}
		m, err := machine.OpenAnywhere()
		if err != nil {
			return err
		}
		o, err := findOverlay(m, name)
		if err != nil {
			return err
		}
		if file == "-" {
			return onlyRoot(name, content.Backup(o, os.Stdout))
		}
		if err := writeBackup(o, file); err != nil {
			return onlyRoot(name, err)
		}
		fmt.Printf("The backup of overlay %s is %s.\n", name, file)
		return nil
	}
}

// writeBackup writes the whole file, or none.
func writeBackup(o overlay.Placed, path string) error {
	file, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return err
	}
	defer func() { _ = file.Cleanup() }() // of what is not complete
	if err := content.Backup(o, file); err != nil {
		return err
	}
	return file.CloseAtomicallyReplace()
}
