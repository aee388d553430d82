// Package nspawn boots real OSTree Debian systems under real systemd, in systemd-nspawn, and lets
// tests act on them: live-apply a commit, stage, reboot, cut the power, look inside.
//
// A [Lab] holds what the tests share: base trees made from Debian packages, once, and kept in a cache;
// a repo for this run, with commits derived from them; the project, installed by meson into a commit.
// A [Machine] is one sysroot and, while it is on, the container that runs from it:
//
//	v1 := lab.WithProduct(t, lab.Base(t, nspawn.Trixie, nspawn.Minimal))
//	v2 := lab.Derive(t, v1, func(tree *nspawn.Tree) { tree.Write("usr/share/hello", "hello\n", 0o644) })
//	m := lab.Machine(t, v1, nspawn.Options{})
//	m.Boot()
//	m.Pull(v2)
//	m.Run("systemctl", "start", "liveapply@"+v2+".service")
//
// The way from the boot loader to the first process is that of a real machine: the boot loader's entries
// say what starts, OSTree's own ostree-prepare-root sets up / , /usr, /etc and a read-only /sysroot, and
// its generator makes /var. The kernel is the only thing that is not started (see the script boot).
//
// The tests need root and have the build tag nspawn; test/run runs them.
package nspawn
