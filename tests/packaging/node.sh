#!/bin/sh
# The life of the package on a node that is a front-end too; run by labs/debian12.sh in a clean Debian 12, see test_debian.py.
# /shared has the package, the disks and what oned sends; what is seen goes to /shared/out.
set -eux
out=/shared/out
one=/var/lib/one
files() { find /etc /usr /var /opt /root /home -xdev ! -path '/var/lib/dpkg/*' ! -path '/var/log/*' ! -path '/var/cache/*' \
    ! -path '/var/lib/lxd*' ! -path '/var/lib/lxcfs*' ! -path '/root/.config*' \( -type d -printf '%p/ %m %u\n' -o -printf '%p %m %u %l %s\n' \) | sort; }
as_oneadmin() { setpriv --reuid oneadmin --regid oneadmin --init-groups env -i PATH=/usr/bin:/bin HOME=$one "$@"; }

# --- OpenNebula, as its packages leave it ---
useradd --system --create-home --home-dir $one --shell /bin/bash oneadmin
mkdir -p $one/remotes/im/common.d $one/remotes/vmm/kvm $one/datastores/0/7801
cp /shared/VERSION $one/remotes/VERSION
for name in monitord-client.rb monitord-client_control.sh date.sh; do
    printf '#!/bin/sh\n' >$one/remotes/im/common.d/$name
done
chown -R oneadmin:oneadmin $one
files >$out/before

# --- installed ---
dpkg --install /shared/mapper.deb >$out/dpkg-install
visudo --check --strict --quiet
cp -rL $one/remotes/. /var/tmp/one && chown -R oneadmin:oneadmin /var/tmp/one # onehost sync
printf ':stop_timeout: 20\n:log:\n  :durations: true\n  :json: true\n' >/var/tmp/one/etc/vmm/lxd/lxdrc
mv /shared/disk.0 /shared/disk.1 $one/datastores/0/7801/
chown -R oneadmin:oneadmin $one/datastores
lxd --group root --logfile /shared/out/lxd.log &
lxd waitready --timeout 20
lxc storage create default dir >/dev/null 2>&1
lxc profile device add default root disk path=/ pool=default >/dev/null 2>&1
mapper-driver check --json >$out/check.json 2>$out/check.err || echo $? >$out/check.status
sudo -n -l -U oneadmin >$out/sudo-list

# --- OpenNebula is upgraded: its package writes its own files ---
echo 6.8.3 >$one/remotes/VERSION
printf "OpenNebula's\n" >$one/remotes/vmm/lxd/deploy
dpkg-trigger --no-await --by-package=mount $one/remotes
dpkg --configure --pending >$out/dpkg-triggered
cmp $one/remotes/vmm/lxd/deploy /var/tmp/one/vmm/lxd/deploy
rm $one/remotes/vmm/lxd/deploy /var/lib/mapper/originals$one/remotes/vmm/lxd/deploy
cp /shared/VERSION $one/remotes/VERSION
mapper-driver install-remotes --programs /usr/lib/mapper/bin >>$out/dpkg-triggered

# --- a machine, by OpenNebula's user ---
call() { # ACTION ARGUMENT... < XML
    action=$1
    shift
    status=0
    as_oneadmin LD_PRELOAD=/nonexistent PYTHONPATH=/shared/evil LXD_SOCKET=/nonexistent MAPPER_LXDRC=/nonexistent \
        /var/tmp/one/vmm/lxd/"$action" "$@" >$out/"$action".out 2>$out/"$action".err || status=$?
    echo $status >$out/"$action".status
}
probe() {
    (cd /var/tmp/one/im/lxd.d && as_oneadmin "/var/tmp/one/im/lxd.d/../lxd-probes.d/$1/mapper.sh" lxd 2 node </shared/agent.xml)
}
call deploy $one//datastores/0/7801/deployment.0 node 7801 node </shared/vm.xml
inside() { # FILE OUTPUT: on a busy machine LXD 5.0 sometimes loses what a command printed (canonical/lxd#11422)
    for _ in 1 2 3 4 5; do
        lxc exec one-7801 -- cat "$1" >"$2" || true
        [ ! -s "$2" ] || break
    done
}
inside /proc/1/mountinfo $out/inside-mounts
inside /data/hello $out/inside-hello
call poll one-7801 node 7801 node </shared/action.xml
probe vm/status >$out/status
probe vm/monitor >$out/monitor
mkdir -p /tmp/theirs/vmm/lxd
chown -R nobody /tmp/theirs
for attempt in "run /gone deploy x" "run /tmp/theirs/vmm/lxd deploy x" "boot" "install-remotes" "run ../x deploy x"; do
    as_oneadmin sh -c "sudo -n mapper-driver-root $attempt </dev/null" >>$out/refused 2>&1 && echo "allowed: $attempt" >>$out/refused
done
as_oneadmin sudo -n mapper-driver check >>$out/refused 2>&1 && echo "allowed: mapper-driver" >>$out/refused
as_oneadmin sudo -n id >>$out/refused 2>&1 && echo "allowed: id" >>$out/refused
rm -rf /tmp/theirs
call cancel one-7801 node 7801 node </shared/action.xml
cp /var/log/mapper/driver.json $out/driver.json
mapper-cli ls --json >$out/ls.json

# --- removed ---
lxd shutdown --timeout 20
mkdir -p /var/lib/mapper/containers /var/lib/mapper/consoles # of machines that nobody has ended
touch /var/lib/mapper/containers/one-1.json /var/lib/mapper/consoles/one-1.json
dpkg --remove mapper >$out/dpkg-remove
files >$out/after-remove
dpkg --purge mapper >>$out/dpkg-remove
rm -rf /var/tmp/one
mv $one/datastores/0/7801/disk.0 $one/datastores/0/7801/disk.1 /shared/ # what the machine has written is read outside
files >$out/after
ls -A /var/log >$out/logs
rmdir /sys/fs/cgroup/lxc.pivot /sys/fs/cgroup/*/lxc.pivot 2>/dev/null || true # another daemon may use it
touch $out/finished
