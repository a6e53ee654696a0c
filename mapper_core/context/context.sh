#!/bin/sh
# Applies the context that OpenNebula gives a virtual machine: names, keys, addresses (context settings), and its start script
# (context script); without an argument both.
# It is what `mapper-cli image build` adds to images; any POSIX shell and iproute2 or busybox will do.
# Variables: OpenNebula's documentation of the section CONTEXT of templates.

PATH=/usr/sbin:/usr/bin:/sbin:/bin
for directory in /context /mnt/context /media/context; do
    [ ! -r "$directory/context.sh" ] || break
done
[ -r "$directory/context.sh" ] || exit 0
. "$directory/context.sh"

value() { eval "printf '%s' \"\${$1-}\""; } # the content of the variable that is called $1

prefix_of() { # 255.255.255.0 -> 24
    bits=0
    for byte in $(echo "$1" | tr . ' '); do
        while [ "$byte" -gt 0 ]; do
            bits=$((bits + byte % 2))
            byte=$((byte / 2))
        done
    done
    echo "$bits"
}

set_up_system() { # name, time zone, keys, password
    name=${SET_HOSTNAME-}
    if [ -n "$name" ]; then
        echo "$name" >/etc/hostname
        hostname "$name" 2>/dev/null || echo "$name" >/proc/sys/kernel/hostname
    fi
    if [ -n "${TIMEZONE-}" ] && [ -e "/usr/share/zoneinfo/$TIMEZONE" ]; then
        ln -sf "/usr/share/zoneinfo/$TIMEZONE" /etc/localtime
    fi
    if [ -n "${SSH_PUBLIC_KEY-}" ]; then
        mkdir -p -m 700 /root/.ssh
        touch /root/.ssh/authorized_keys
        chmod 600 /root/.ssh/authorized_keys
        echo "$SSH_PUBLIC_KEY" | while IFS= read -r key; do
            grep -qxF "$key" /root/.ssh/authorized_keys || echo "$key" >>/root/.ssh/authorized_keys
        done
    fi
    if [ -n "${CRYPTED_PASSWORD_BASE64-}" ]; then
        printf 'root:%s\n' "$(printf '%s' "$CRYPTED_PASSWORD_BASE64" | base64 -d)" | chpasswd -e
    elif [ -n "${PASSWORD_BASE64-}" ]; then
        printf 'root:%s\n' "$(printf '%s' "$PASSWORD_BASE64" | base64 -d)" | chpasswd
    elif [ -n "${PASSWORD-}" ]; then
        printf 'root:%s\n' "$PASSWORD" | chpasswd
    fi
}

set_up_network() { # an interface is known by its hardware address
    ip link set lo up 2>/dev/null
    number=0
    while [ "$number" -lt 64 ]; do
        mac=$(value "ETH${number}_MAC" | tr A-F a-f)
        address=$(value "ETH${number}_IP")
        if [ -n "$mac" ]; then
            for path in /sys/class/net/*; do
                [ "$(cat "$path/address" 2>/dev/null)" = "$mac" ] || continue
                interface=${path##*/}
                mask=$(value "ETH${number}_MASK")
                gateway=$(value "ETH${number}_GATEWAY")
                mtu=$(value "ETH${number}_MTU")
                address6=$(value "ETH${number}_IP6")
                gateway6=$(value "ETH${number}_IP6_GATEWAY")
                [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
                [ -z "$address" ] || ip address add "$address/$(prefix_of "${mask:-255.255.255.0}")" dev "$interface" 2>/dev/null
                [ -z "$address6" ] || ip address add "$address6/64" dev "$interface" 2>/dev/null
                ip link set "$interface" up
                [ -z "$gateway" ] || ip route add default via "$gateway" dev "$interface" 2>/dev/null
                [ -z "$gateway6" ] || ip -6 route add default via "$gateway6" dev "$interface" 2>/dev/null
            done
        fi
        servers="${servers-} $(value "ETH${number}_DNS")"
        number=$((number + 1))
    done
    servers=$(echo ${servers-} ${DNS-})
    if [ -n "$servers" ] && [ ! -L /etc/resolv.conf ]; then
        for server in $servers; do echo "nameserver $server"; done >/etc/resolv.conf
    fi
}

run_script() {
    if [ -n "${START_SCRIPT_BASE64-}" ]; then
        START_SCRIPT=$(printf '%s' "$START_SCRIPT_BASE64" | base64 -d)
    fi
    if [ -n "${START_SCRIPT-}" ]; then
        script=$(mktemp)
        printf '%s\n' "$START_SCRIPT" >"$script"
        chmod 700 "$script"
        case $START_SCRIPT in
        '#!'*) "$script" ;;
        *) sh "$script" ;;
        esac
        rm -f "$script"
    fi
}

if [ "${1-}" != script ]; then
    set_up_system
    set_up_network
fi
if [ "${1-}" != settings ]; then
    run_script
fi
exit 0
