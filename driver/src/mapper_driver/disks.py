"""A disk of OpenNebula as the mapper wants it: location, format, where files it refers to may lie, how to reach it."""

from __future__ import annotations

import os
import posixpath

from mapper_core import policy
from mapper_core.errors import Refused
from mapper_core.model import Disk

from .opennebula.config import Config
from .opennebula.vm import DiskKind, VmDisk, VmIdentity


def allowed_dirs(disk: VmDisk, vm: VmIdentity, config: Config) -> tuple[str, ...]:
    """Directories in which files that the disk's image refers to may lie.

    The machine's own directory, the datastore its image came from (a copy-on-write disk has the image as its
    backing file), and what the administrator adds; not the other machines, nor the images of other datastores.
    """
    dirs = [vm.directory]
    if disk.kind in (DiskKind.IMAGE, DiskKind.CDROM) and disk.datastore_id is not None:
        locations = (posixpath.dirname(vm.datastore_dir), config.datastore_location)
        dirs.extend(f"{location.rstrip('/')}/{disk.datastore_id}" for location in locations)
    return tuple(dict.fromkeys((*dirs, *config.allowed_dirs)))


def mapper_disk(disk: VmDisk, vm: VmIdentity, config: Config) -> Disk:
    """The disk as an argument for the mapper."""
    return Disk(disk.location, disk.format, allowed_dirs(disk, vm, config), cluster_settings(disk, config))


def cluster_settings(disk: VmDisk, config: Config) -> tuple[tuple[str, str], ...]:
    """How to reach the cluster of a network disk; empty for disks of this host.

    :raises Refused: for a file elsewhere than the administrator allows. The attributes come with the machine, and a
        configuration of the cluster's client that its owner has written could make root write log files anywhere.
    """
    cluster = disk.cluster
    if cluster is None:
        return ()
    for name in (cluster.conf, cluster.keyfile):
        real = os.path.realpath(name) if name else ""
        if real and not any(policy.is_below(real, os.path.realpath(allowed)) for allowed in config.cluster_dirs):
            raise Refused(
                f"disk {disk.id} is reached by {name}, which is outside of the allowed directories",
                subject=f"disk {disk.id}",
                hint=f"put it into {' or '.join(config.cluster_dirs)}, or allow its directory (cluster_dirs in the lxdrc)",
            )
    pairs = (
        ("user", cluster.user),
        ("conf", cluster.conf),
        ("mon_host", cluster.hosts),
        ("keyfile", cluster.keyfile),
        ("secret", cluster.secret),
    )
    return tuple((name, value) for name, value in pairs if value)
