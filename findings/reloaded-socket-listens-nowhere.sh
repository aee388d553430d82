#!/bin/bash
# A socket unit that is active gets another ListenStream=, and systemd reads its units again (daemon-reload). systemctl says then that the socket is active, and that
# it listens at the new address. The kernel has a socket neither there nor at the old address: the old one was closed, and no new one is made before a restart. Put the
# old line back and reload, and there is still none.
#
# Seen with systemd 257.x of Debian 13, as process 1 of a container.
# Whoever changes units and reloads has to restart sockets whose address changed; a health check by "systemctl is-active" does not notice.
#
# Needs root, mmdebstrap and systemd-nspawn. Fails if that changes.
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
root=$dir/root

mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv trixie "$root" >/dev/null 2>&1
version=$(dpkg-query --admindir="$root/var/lib/dpkg" --show --showformat='${Version}' systemd)
[[ $version == 257.* ]] || { echo "this was seen with systemd 257, not $version" >&2; exit 1; }

cat >"$root/etc/systemd/system/lab.socket" <<'UNIT'
[Socket]
ListenStream=/run/lab-old
UNIT
cat >"$root/etc/systemd/system/lab.service" <<'UNIT'
[Service]
ExecStart=sleep infinity
UNIT
cat >"$root/etc/look" <<'SH'
#!/bin/sh
look() {
	{
		echo "$(systemctl is-active lab.socket) $(systemctl show --value --property=Listen lab.socket)"
		grep -o '/run/lab-.*' /proc/net/unix || echo none
	} >"/var/$1"
}
systemctl start lab.socket
look before
sed -i s/old/new/ /etc/systemd/system/lab.socket
systemctl daemon-reload
look reloaded
sed -i s/new/old/ /etc/systemd/system/lab.socket
systemctl daemon-reload
look back
systemctl restart lab.socket
look restarted
SH
cat >"$root/etc/systemd/system/look.service" <<'UNIT'
[Unit]
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=/bin/sh /etc/look
UNIT
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -sf /etc/systemd/system/look.service "$root/etc/systemd/system/multi-user.target.wants/"
timeout 120 systemd-nspawn --quiet --register=no --keep-unit --directory="$root" --boot >/dev/null 2>&1 </dev/null || true

expect() {
	local got
	got=$(tr '\n' ' ' <"$root/var/$1")
	echo "$1: $got"
	[[ $got == "$2 " ]] || { echo "expected: $2" >&2; exit 1; }
}
expect before 'active /run/lab-old (Stream) /run/lab-old'
expect reloaded 'active /run/lab-new (Stream) none'
expect back 'active /run/lab-old (Stream) none'
expect restarted 'active /run/lab-old (Stream) /run/lab-old'
