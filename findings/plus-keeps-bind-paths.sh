#!/bin/bash
# systemd.service(5) says of the prefix "+" of a command line that "the various file system namespacing options" are not applied to it. PrivateTmp= is
# not; BindPaths= of the same unit is: the command sees what is bound, and not what the host has there.
#
# Seen with systemd 257.x of Debian 13, as process 1 of a container.
# Whoever hides a path from a service by BindPaths= hides it from its "+" commands, too: they reach the host's by /proc/1/root.
#
# Needs root, mmdebstrap and systemd-nspawn. Fails if that changes.
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
root=$dir/root

mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv trixie "$root" >/dev/null 2>&1
version=$(dpkg-query --admindir="$root/var/lib/dpkg" --show --showformat='${Version}' systemd)
[[ $version == 257.* ]] || { echo "this was seen with systemd 257, not $version" >&2; exit 1; }

mkdir -p "$root/srv/bound" "$root/mnt/host"
cat >"$root/etc/systemd/system/look.service" <<'UNIT'
[Unit]
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
BindPaths=/srv:/mnt
PrivateTmp=yes
ExecStartPre=+/bin/sh -c 'mkdir -p /tmp/host; ls /mnt >/var/plus-mnt'
ExecStart=/bin/sh -c 'ls /mnt >/var/plain-mnt; ls /tmp >/var/plain-tmp'
ExecStartPost=+/bin/sh -c 'ls /tmp >/var/plus-tmp; ls /proc/1/root/mnt >/var/plus-mnt-of-1'
[Install]
WantedBy=multi-user.target
UNIT
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -sf /etc/systemd/system/look.service "$root/etc/systemd/system/multi-user.target.wants/"
timeout 120 systemd-nspawn --quiet --register=no --keep-unit --directory="$root" --boot >/dev/null 2>&1 </dev/null || true

expect() {
	local got
	got=$(tr '\n' ' ' <"$root/var/$1")
	echo "$1: $got"
	[[ $got == *$2* ]] || { echo "expected $2 in it" >&2; exit 1; }
}
expect plain-mnt bound    # a command without the prefix: BindPaths= is applied
expect plus-mnt bound     # with it, too
expect plus-mnt-of-1 host # what the host has there
expect plus-tmp host      # PrivateTmp= is not applied
if grep -q host "$root/var/plain-tmp"; then
	echo "PrivateTmp= is not applied without the prefix" >&2
	exit 1
fi
