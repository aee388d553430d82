package main

import (
	"path/filepath"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/liveapply/liveapply/internal/config"
)

// The units that apply updates images: those that the kernel command line names by their paths, and by URLs.
const (
	updatesByPath = "liveapply-updates.service"
	updatesByURL  = "liveapply-updates-url.service"
)

// updates has the images applied that liveapply.updates= names. The units say when that is. In the system, the whole boot wants them and not
// sysinit.target, though they come before that: every unit that is started later wants sysinit.target, and would have what has failed tried again.
func updates(configuration config.Dirs, dir string, initrd bool) error {
	byPath, byURL, err := updatesAsked(configuration)
	if err != nil {
		return err
	}
	target := "default.target"
	if initrd {
		target = "initrd.target"
	}
	if byURL {
		if err := want(dir, target, filepath.Join(unitDir, updatesByURL)); err != nil {
			return err
		}
	}
	if !byPath {
		return nil
	}
	if !initrd {
		// In the initrd, sysinit.target comes before the root is mounted, and so before this.
		if err := write(dir, updatesByPath+".d/10-liveapply.conf", beforeSysinit); err != nil {
			return err
		}
	}
	return want(dir, target, filepath.Join(unitDir, updatesByPath))
}

// beforeSysinit also comes before that what reads fragments which an image may bring.
var beforeSysinit = []*unit.UnitOption{
	unit.NewUnitOption("Unit", "Before", "sysinit.target systemd-sysext.service systemd-tmpfiles-setup.service"),
}

// updatesAsked tells whether the kernel command line names images by path, and by URL.
func updatesAsked(configuration config.Dirs) (byPath, byURL bool, err error) {
	images, err := configuration.UpdatesImages()
	for _, image := range images {
		byURL = byURL || image.IsURL()
		byPath = byPath || !image.IsURL()
	}
	return byPath, byURL, err
}
