#!/bin/sh
# Runs a program in a copy of a tree of Debian 12, as its only root directory: debian12.sh TREE SHARED PROGRAM [ARG...]
#
# To be run in mount and pid namespaces of its own (unshare --mount --propagation private --pid --fork --kill-child): with the
# program all that it started ends, and all that it mounted goes. TREE is not written. SHARED is seen at /shared.
set -eu
tree=$1 shared=$2
shift 2
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
mkdir -p "$shared/root"
mount -t tmpfs -o mode=755 none "$shared/root"
cd "$shared/root"
mkdir upper work new
mount -t overlay -o "lowerdir=$tree,upperdir=upper,workdir=work" none new
cd new
mkdir -p shared
mount --bind "$shared" shared
mount -t proc none proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 none run
mkdir -m 1777 run/lock
rm -f etc/resolv.conf # nothing in a lab talks to the internet
echo "127.0.0.1 localhost $(uname -n)" >etc/hosts
pivot_root . .
umount --lazy . # the old root lies upon the new one: see pivot_root(2)
exec "$@"
