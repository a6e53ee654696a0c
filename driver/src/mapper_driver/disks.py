"""A disk of OpenNebula as the mapper wants it: location, format, and where files it refers to may lie."""

from __future__ import annotations

import posixpath

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
    return Disk(source=disk.location, format=disk.format, allowed_dirs=allowed_dirs(disk, vm, config))
