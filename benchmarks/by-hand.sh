#!/bin/sh
# What an administrator would write for one known image: qemu tool, loop device, partitions, blkid, mount. No checks, no
# journal, no locks. Uses the kernel's nbd where there is one, and else the storage daemon's FUSE export.
set -eu
action=$1 image=$2 target=$3 state=$4

case $action in
up)
    mkdir "$state"
    if [ -b /dev/nbd0 ]; then
        device=/dev/nbd0
        qemu-nbd -f qcow2 --cache=none -c $device "$image"
    else
        touch "$state/export"
        qemu-storage-daemon --daemonize --pidfile "$state/pid" \
            --blockdev "driver=qcow2,node-name=n,file.driver=file,file.filename=$image" \
            --export "type=fuse,id=e,node-name=n,mountpoint=$state/export,writable=on,allow-other=off"
        device=$(losetup --find --show "$state/export")
    fi
    echo "$device" >"$state/device"
    partx --add "$device" 2>/dev/null || [ -b "${device}p1" ]
    [ "$(blkid -p -s TYPE -o value "${device}p1")" = ext4 ]
    mount -o nosuid,nodev "${device}p1" "$target"
    home=
    for partition in "$device"p*; do
        case $(blkid -p -s LABEL -o value "$partition") in people) home=$partition ;; esac
    done
    grep -q '^LABEL=people /home' "$target/etc/fstab"
    mount -o nosuid,nodev "$home" "$target/home"
    ;;
down)
    device=$(cat "$state/device")
    umount "$target/home" "$target"
    case $device in
    /dev/nbd*) qemu-nbd -d "$device" >/dev/null ;;
    *)
        partx --delete "$device"
        losetup --detach "$device"
        # the daemon removes its pid file when it ends
        pid=$(cat "$state/pid")
        kill "$pid"
        timeout 10 tail --pid="$pid" -s 0.02 -f /dev/null
        ;;
    esac
    rm -r "$state"
    ;;
esac
