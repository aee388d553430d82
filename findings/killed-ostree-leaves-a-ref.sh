#!/bin/bash
# ostree replaces a ref by a link beside it, whose name is tmp. and six characters, and a rename over it. Killed between the two, it leaves that name, which is a ref like
# any other from then on: "ostree refs" lists it, it keeps its commit from being pruned, and no later command removes it.
#
# Seen with ostree 2025.x of Debian 13.
# Whoever compares refs before and after a power cut, or wonders why a commit is not pruned, finds refs that nobody has made.
#
# Needs root and mmdebstrap. Fails if that changes.
set -euo pipefail

dir=$(mktemp -d)
root=$dir/root
trap 'umount "$root/proc" 2>/dev/null || true; rm -rf "$dir"' EXIT

mmdebstrap --quiet --variant=minbase --include=ostree,strace trixie "$root" >/dev/null 2>&1
version=$(dpkg-query --admindir="$root/var/lib/dpkg" --show --showformat='${Version}' ostree)
[[ $version == 2025.* ]] || { echo "this was seen with ostree 2025, not $version" >&2; exit 1; }
mount -t proc proc "$root/proc"
inside() { chroot "$root" "$@"; }

inside mkdir /tree
inside ostree init --repo=/repo --mode=bare
first=$(inside ostree commit --repo=/repo --branch=moves --tree=dir=/tree --subject=first)
second=$(inside ostree commit --repo=/repo --branch=other --tree=dir=/tree --subject=second)
inside strace -f -o /dev/null -e trace=renameat -e inject=renameat:signal=SIGKILL ostree refs --repo=/repo --force --create=moves "$second" && exit 1
inside ostree refs --repo=/repo --delete other # the commit has no other ref that somebody made
inside ostree prune --repo=/repo --refs-only >/dev/null
inside ostree refs --repo=/repo --force --create=later "$first"

refs=$(inside ostree refs --repo=/repo | sort | sed 's/^tmp\.......$/tmp.??????/' | tr '\n' ' ')
echo "refs: $refs"
[[ $refs == "later moves tmp.?????? " ]] || { echo "expected a ref tmp.?????? among them" >&2; exit 1; }
[[ $(inside ostree rev-parse --repo=/repo moves) == "$first" ]] || { echo "the ref has moved" >&2; exit 1; }
inside ostree show --repo=/repo "$second" >/dev/null || { echo "the commit of the ref that nobody made was pruned" >&2; exit 1; }
echo "the commit of the ref that nobody made is still there"
