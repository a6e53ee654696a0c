#!/bin/sh
# Starts a program with Debian 13 as its root directory: debian13.sh TREE LAB PROGRAM [ARG...]
#
# To be run in a mount namespace of its own, with private propagation: pivot_root and not chroot, because the kernel
# gives a process in a chroot no user namespace (user_namespaces(7)). TREE is never written. The host's directory LAB is
# seen under the same path on both sides, and LAB/host with what is mounted in it by now. Standard output is closed when
# all is in place; the program writes to stderr.
set -eu
tree=$1 lab=$2
shift 2
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
mount -t tmpfs -o mode=755 none "$lab/root"
cd "$lab/root"
for name in bin lib lib64 sbin; do
    ln -s "usr/$name" "$name"
done
mkdir -p usr proc sys dev run root var/lib var/log "./$lab"
mkdir -m 1777 tmp var/tmp
mount --bind -o ro "$tree/usr" usr
cp -a "$tree/etc" .
cp usr/share/base-passwd/passwd.master etc/passwd
cp usr/share/base-passwd/group.master etc/group
echo root:1000000:1000000000 | tee etc/subuid >etc/subgid
rm -f etc/resolv.conf # nothing in a lab talks to the internet: the daemon would look for lists of images
mount -t proc none proc
mount --rbind /sys sys
mount --rbind /dev dev
mount --bind "$lab" "./$lab"
[ ! -d "$lab/host" ] || mount --rbind "$lab/host" "./$lab/host"
pivot_root . .
umount --lazy . # the old root lies upon the new one: see pivot_root(2)
exec "$@" >&2
