package overlay

import "path/filepath"

// ExtensionRelease is what systemd wants to see in a directory of ExtensionDirectories=: any system may take it.
const ExtensionRelease = "ID=_any\n"

// ExtensionReleaseIn is the file, in a tree, that says so of usr/lib or of etc.
func ExtensionReleaseIn(dir string) string {
	return filepath.Join(dir, "extension-release.d", "extension-release."+TreeName)
}

// isExtensionRelease tells these files: they are no content.
func isExtensionRelease(path string) bool {
	return path == ExtensionReleaseIn("usr/lib") || path == ExtensionReleaseIn("etc")
}
