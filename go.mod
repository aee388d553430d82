module github.com/liveapply/liveapply

go 1.24.0

require (
	github.com/cavaliergopher/cpio v1.0.1
	github.com/coreos/go-systemd/v22 v22.7.0
	github.com/godbus/dbus/v5 v5.2.4
	github.com/google/go-cmp v0.7.0
	github.com/google/renameio/v2 v2.0.0
	github.com/klauspost/compress v1.19.2
	github.com/moby/sys/mountinfo v0.7.2
	github.com/spf13/pflag v1.0.10
	github.com/therootcompany/xz v1.0.1
	golang.org/x/sync v0.19.0
	golang.org/x/sys v0.40.0
	pgregory.net/rapid v1.3.0
)
