package impact

import (
	"path"
	"slices"

	"github.com/liveapply/liveapply/internal/treediff"
)

// indexes are the files below /usr, as patterns of path.Match, that list what all packages have: the tools that make them are run when a package comes or
// goes, and say nothing of their own. Sources: the triggers of Debian's packages, the file triggers of Fedora's, deb-systemd-helper(1p), and what rpm-ostree and
// image builders make.
var indexes = []string{
	// accounts, which come with packages (sysusers.d(5), nss-altfiles)
	"lib/passwd", "lib/group",
	"etc/passwd", "etc/passwd-", "etc/group", "etc/group-", "etc/shadow", "etc/shadow-", "etc/gshadow", "etc/gshadow-", "etc/subuid", "etc/subuid-", "etc/subgid", "etc/subgid-",
	"etc/shells", // add-shell(8)
	// ldconfig(8), systemd-hwdb(8), depmod(8) of kernels that do not run, localedef(1)
	"etc/ld.so.cache", "etc/udev/hwdb.bin", "lib/udev/hwdb.bin", "lib/modules/*/modules.*", "lib/locale/locale-archive",
	// certificates: update-ca-certificates(8), update-ca-trust(8)
	"etc/ssl/certs/ca-certificates.crt", "etc/pki/ca-trust/extracted/*/*",
	// desktops: update-mime-database(1), update-desktop-database(1), gtk-update-icon-cache(1), glib-compile-schemas(1), gio-querymodules(1), gdk-pixbuf-query-loaders(1)
	"share/mime/*", "share/mime/*/*.xml", "share/applications/mimeinfo.cache", "share/icons/*/icon-theme.cache", "share/glib-2.0/schemas/gschemas.compiled",
	"lib/*/gio/modules/giomodule.cache", "lib/gio/modules/giomodule.cache", "lib64/gio/modules/giomodule.cache",
	"lib/*/gdk-pixbuf-2.0/*/loaders.cache", "lib/gdk-pixbuf-2.0/*/loaders.cache", "lib64/gdk-pixbuf-2.0/*/loaders.cache",
	"lib/*/gtk-3.0/*/immodules.cache", "lib64/gtk-3.0/*/immodules.cache",
	"share/fonts/*/fonts.dir", "share/fonts/*/*/fonts.dir", "share/fonts/*/fonts.scale", "share/fonts/*/*/fonts.scale",
	// documents and markup: install-info(1), update-catalog(8), update-xmlcatalog(8)
	"share/info/dir", "etc/sgml/catalog", "etc/xml/catalog", "etc/mailcap",
	// what rpm-ostree makes of what packages have in /var
	"lib/tmpfiles.d/rpm-ostree-*.conf", "lib/tmpfiles.d/pkg-*.conf",
}

// databases are the directories in which package managers keep theirs, besides that of dpkg, which may be anywhere.
var databases = []string{"share/rpm", "lib/sysimage/rpm", "lib/sysimage/rpm-ostree-base-db"}

// IsIndex tells whether a path below /usr follows from which packages there are: an index, or in a database of packages. More of either are given as patterns of
// indexes, and as directories.
func IsIndex(name string, moreIndexes, moreDatabases []string) bool {
	return slices.ContainsFunc(slices.Concat(databases, moreDatabases), func(dir string) bool { return treediff.Within(name, dir) }) ||
		slices.ContainsFunc(slices.Concat(indexes, moreIndexes), func(pattern string) bool {
			matched, err := path.Match(pattern, name)
			return matched && err == nil
		})
}
