// Package qemu boots real systems whole, from the kernel on, in a virtual machine: an OSTree system from a disk, and a live system from a
// squashfs on a medium, with Debian's kernel and the initramfs that dracut makes with the project's module in it.
//
// A [Lab] is that of package nspawn, which makes the commits, and keeps what this one makes of them. A [System] is a disk with the kernel,
// the initramfs and the kernel command line to boot it with. A [Machine] has a copy of that disk:
//
//	system := lab.OSTreeDisk(t)
//	m := system.Machine(t)
//	m.Boot("liveapply.updates=/updates.img")
//	m.Run("systemctl", "--failed")
//	m.PowerOff()
//
// The processor is emulated in software, so the tests need nothing of the host that any machine does not have. They need root and have the
// build tag qemu; test/run runs them.
package qemu
