#!/bin/bash
# ostree replaces a ref by linking the new file beside the old one, as tmp.XXXXXX, and renaming it. Killed in between, as by a power cut, it leaves that file, and
# what is in refs/heads is a ref: `ostree refs` lists it, and it keeps its commit from being pruned.
#
# Seen with ostree 2025.2 of Debian 13. Whoever compares the refs of two states, or wonders what keeps a commit, looks for such names, too.
#
# Needs root and mmdebstrap. Fails if that changes.
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
root=$dir/root

mmdebstrap --quiet --variant=minbase --include=ostree,strace trixie "$root" >/dev/null 2>&1
version=$(dpkg-query --admindir="$root/var/lib/dpkg" --show --showformat='${Version}' ostree)
[[ $version == 2025.2-* ]] || { echo "this was seen with ostree 2025.2, not $version" >&2; exit 1; }

cat >"$root/look" <<'LOOK'
set -eu
mkdir /tree
ostree --repo=/repo init --mode=bare-user
echo 1 >/tree/file
ostree --repo=/repo commit --branch=kept --tree=dir=/tree >/dev/null
ostree --repo=/repo refs --create=moves kept
echo 2 >/tree/file
new=$(ostree --repo=/repo commit --orphan --tree=dir=/tree)
strace -f -qq -o /dev/null -e inject=renameat:signal=SIGKILL ostree --repo=/repo refs --force --create=moves "$new" || true
echo "moves is still the old one: $([ "$(ostree --repo=/repo rev-parse moves)" != "$new" ] && echo yes)"
ostree --repo=/repo prune --refs-only >/dev/null
for ref in $(ostree --repo=/repo refs); do
	case $ref in tmp.??????) echo "left is a ref, of the new one: $([ "$(ostree --repo=/repo rev-parse "$ref")" = "$new" ] && echo yes)" ;; esac
done
LOOK
said=$(chroot "$root" sh /look)
echo "$said"
for expected in "moves is still the old one: yes" "left is a ref, of the new one: yes"; do
	[[ $said == *"$expected"* ]] || { echo "expected: $expected" >&2; exit 1; }
done
