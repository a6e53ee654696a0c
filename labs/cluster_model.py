"""What a lab's cluster consists of: its record, configuration, pools, clients and keys."""

from __future__ import annotations

import base64
import json
import os
import struct
import time
from dataclasses import asdict, dataclass

#: Ports of the monitor are looked for here: below the range from which the kernel takes ports for connections
#: (ip_local_port_range, 32768 and up), so that a stopped monitor finds its ports free when it comes back.
PORTS = range(20000, 30000, 2)
#: Size of the sparse file behind the OSD.
OSD_BYTES = 8 << 30

POOLS = ("one", "two")
NAMESPACE = "ns"  # in each pool
#: What each client may do: capabilities for the monitor and for the OSD.
CLIENTS = {
    "admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    "oneadmin": {"mon": "profile rbd", "osd": "profile rbd pool=one"},
    "libvirt": {"mon": "profile rbd", "osd": "profile rbd pool=one, profile rbd pool=two"},
    "nobody": {"mon": "allow r"},  # may connect, and nothing else
}

CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{port},v1:127.0.0.1:{port_v1}]
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
ms_bind_ipv6 = false
# whole seconds; a daemon that has just been killed still has its ports for a moment; 5 by default
ms_bind_retry_delay = 1
run_dir = {dir}
crash_dir = {dir}/crash
keyring = {dir}/ceph.$name.keyring
[mon]
mon_data = {dir}/mon
keyring = {dir}/mon/keyring
mon_initial_members = a
mon_cluster_log_to_file = false
mon_allow_pool_delete = true
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
# percent of the disk that must be free: it is that of the machine, and says nothing about this cluster
mon_data_avail_warn = 2
mon_data_avail_crit = 1
# seconds for which changes are collected; 1 by default
paxos_propose_interval = 0.05
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
log_file =
log_to_stderr = true
[osd]
# reads are allowed for this times osd_heartbeat_grace (20 seconds) after the last word of other OSDs. There are none: one
# that was paused for longer may answer no read any more (Ceph 16: "waiting for readable", for ever); 0.8 by default
osd_pool_default_read_lease_ratio = 500
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
osd_data = {dir}/osd
keyring = {dir}/osd/keyring
osd_objectstore = bluestore
bluestore_block_size = {osd_bytes}
bluestore_fsck_on_mkfs = false
# milliseconds; closing the device takes as long, and happens about ten times until the OSD is up; 250 by default
bdev_aio_poll_ms = 20
bluestore_cache_autotune = false
bluestore_cache_size = 134217728
osd_class_update_on_start = false
# seconds after which a client that has vanished is no watcher any more; 30 by default
osd_client_watch_timeout = 15
log_file =
log_to_stderr = true
[client]
# rbd-nbd is a client that Ceph treats as a daemon: without these it would write to /var/log and /run
log_file =
admin_socket =
"""


@dataclass(frozen=True)
class Lab:
    """What identifies a lab; kept in its directory. Its daemons are not recorded: they are found by their arguments.

    :param dir: everything of the lab is below.
    :param fsid: the cluster's identity.
    :param port: the monitor's port for protocol version 2; that for version 1 is the next one.
    :param complete: whether `up` came to its end, so that the data are worth keeping.
    """

    dir: str
    fsid: str = ""
    port: int = 0
    complete: bool = False

    @property
    def conf(self) -> str:
        """The configuration, for CEPH_CONF."""
        return f"{self.dir}/ceph.conf"

    def configuration(self) -> str:
        """What stands in it."""
        return CONFIGURATION.format(
            dir=self.dir, fsid=self.fsid, port=self.port, port_v1=self.port + 1, osd_bytes=OSD_BYTES
        )

    def keyring(self, client: str) -> str:
        """File with a client's key."""
        return f"{self.dir}/ceph.client.{client}.keyring"

    def log(self, name: str) -> str:
        """What a daemon prints."""
        return f"{self.dir}/{name}.log"

    def save(self) -> None:
        """Replace the record on disk in one step."""
        temporary = f"{self.dir}/lab.json.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
        os.replace(temporary, f"{self.dir}/lab.json")

    @staticmethod
    def load(directory: str) -> Lab | None:
        """Read the record; ``None`` when there is none."""
        try:
            with open(f"{directory}/lab.json", encoding="utf-8") as file:
                return Lab(**json.load(file))
        except FileNotFoundError:
            return None


def new_key() -> str:
    """A new secret of cephx: type 1 (AES), time of creation, length, random bytes (src/auth/Crypto.cc, CryptoKey::encode)."""
    return base64.b64encode(struct.pack("<HIIH", 1, int(time.time()), 0, 16) + os.urandom(16)).decode()


def keyring_entry(entity: str, key: str, caps: dict[str, str]) -> str:
    """An entry of a keyring file."""
    lines = [f"[{entity}]", f"\tkey = {key}", *(f'\tcaps {service} = "{text}"' for service, text in caps.items())]
    return "\n".join(lines) + "\n"
