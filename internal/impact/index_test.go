package impact

import "testing"

func TestIndexesFollowFromPackages(t *testing.T) {
	for name, want := range map[string]bool{
		"etc/passwd": true, "etc/ld.so.cache": true, "share/mime/mime.cache": true, "share/mime/text/plain.xml": true, "share/icons/hicolor/icon-theme.cache": true,
		"lib/x86_64-linux-gnu/gio/modules/giomodule.cache": true, "lib/sysimage/rpm/rpmdb.sqlite": true, "share/rpm": true, "lib/modules/6.1/modules.dep": true,
		"share/dpkg/database/status": true, "lib/tmpfiles.d/image-var.conf": true,
		"share/rpm-config": false, "share/dpkg/cputable": false, "share/icons/hicolor/x.png": false, "lib/modules/6.1/kernel/fs/x.ko": false, "etc/passwd.conf": false,
		"lib/tmpfiles.d/var.conf": false, "": false,
	} {
		if got := IsIndex(name, []string{"lib/tmpfiles.d/image-*.conf"}, []string{"share/dpkg/database"}); got != want {
			t.Errorf("%s: got %v", name, got)
		}
	}
	for _, pattern := range indexes {
		if !IsIndex(pattern, nil, nil) { // a * matches itself; what cannot be parsed matches nothing
			t.Errorf("%s is no pattern", pattern)
		}
	}
}
